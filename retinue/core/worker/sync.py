"""The executor of tasks and synchronous actors: one thread reads its callers' sockets and runs their calls.

Reading on the thread that runs user code saves the hand-over between threads (32,000 calls/s against
17,000). Replies are gathered while there is more to do, and the I/O thread flushes them every 2 ms
while user code runs, so that a finished answer never waits for the slow call behind it. For tasks the I/O
thread also hands unstarted calls back to their callers when the running one blocks or lasts.

Lives here: that loop, cancelling by KeyboardInterrupt, hand-back. Does not: what a call is (`running`),
threaded and async actors.
"""

from __future__ import annotations

import functools
import logging
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any

from retinue.core.client.runtime import Runtime, WaitHook
from retinue.core.transport.threads import Connection
from retinue.core.wire.framing import encode
from retinue.core.wire.messages import (
    REPLY_REFUSED,
    Blocked,
    Call,
    CancelCall,
    Define,
    ExpectExit,
    HandBack,
    Hello,
    LeaseBegin,
    Reply,
    StreamCredit,
    Unblocked,
    WorkerExit,
)
from retinue.core.worker import context
from retinue.core.worker.order import FrameOrder
from retinue.core.worker.running import CallRunner, forget_frames, is_generator, reason_to_leave

logger = logging.getLogger(__name__)

HAND_BACK_S = 0.002
BUSY_TICK_S = 0.002
LINGER_S = 0.05
CONSUMER_CHECK_S = 1.0
_OWN_MODULES = "retinue.core."

EXIT = "exit"

# Ignored by default: where user code has taken our handler away, a wake-up is late, and kills nobody.
_WAKE_SIGNAL = signal.SIGURG

Item = tuple[Connection, Any, bytes]


class _Woken(Exception):
    """Look again: there is another caller, or the end."""


class SyncExecutor(WaitHook):
    """Runs calls one at a time on the process's main thread.

    `run()` returns when the process should end, or with a message for another executor (BecomeActor).
    """

    def __init__(self, runtime: Runtime, runner: CallRunner, facts: context.WorkerFacts) -> None:
        self.runtime = runtime
        self.runner = runner
        self.facts = facts
        self.queue: deque[Item] = deque()
        self.epoll = select.epoll()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.epoll.register(self._event, select.EPOLLIN)
        self._connections: dict[int, Connection] = {}
        self._replies: dict[Connection, list[bytes]] = {}
        self._flush_lock = threading.Lock()
        self._started_at = 0.0  # monotonic; 0 while nothing runs
        self._cancelled: dict[bytes, None] = {}
        self._blocked = 0
        self._seen_calls = 0
        self._busy_until = 0.0
        self._credits: dict[bytes, int] = {}
        self._credit = threading.Condition()
        self._stopping: Any = None
        self._main_thread = threading.get_ident()
        self._only: Connection | None = None  # the one caller, while there is but one
        self._is_receiving = False  # from the only caller, without epoll
        self.running: context.RunningCall | None = None
        self._call_counts: dict[bytes, int] = {}

    # --- called on the I/O thread

    def adopt(self, connection: Connection) -> None:
        """A caller connected."""
        connection.on_message = self._on_message
        connection.on_closing = self._closing
        connection.on_close = self._closed
        self._connections[connection.fd] = connection
        self._note_only()
        self.epoll.register(connection.fd, select.EPOLLIN)
        self.runtime.io.post(self.wake)

    def _closing(self, connection: Connection) -> None:
        # While the descriptor is open: a child that user code forked may keep it so, and readable.
        if self._connections.get(connection.fd) is connection:
            del self._connections[connection.fd]
            self._note_only()
            self.epoll.unregister(connection.fd)

    def _note_only(self) -> None:
        connections = list(self._connections.values())
        self._only = connections[0] if len(connections) == 1 else None

    def _closed(self, connection: Connection) -> None:
        with self._flush_lock:
            self._replies.pop(connection, None)
        with self._credit:
            self._credit.notify_all()

    def connections(self) -> list[Connection]:
        return list(self._connections.values())

    def wake(self) -> None:
        os.eventfd_write(self._event, 1)
        if self._is_receiving:
            signal.pthread_kill(self._main_thread, _WAKE_SIGNAL)

    def stop(self, reason: Any) -> None:
        """Have `run()` return `reason` once what is accepted has run."""
        self._stopping = reason
        self.wake()

    def running_calls(self) -> list[context.RunningCall]:
        """For whoever asks what this process does."""
        running = self.running
        return [running] if running is not None else []

    def tick(self, now: float) -> float:
        """While user code runs: flush what is finished, hand back what waits behind a long task."""
        runner = self.runner
        runner.flush_events(now)
        if runner.finished_calls != self._seen_calls:
            self._seen_calls = runner.finished_calls
            self._busy_until = now + LINGER_S
        started = self._started_at
        if not started:
            # Staying awake between the calls of a busy caller saves a wake-up for each of them.
            return BUSY_TICK_S if now < self._busy_until else 0.25
        self._repeat_interrupt()
        if self._replies:
            self.flush()
        if self.facts.actor_spec is None and now - started > HAND_BACK_S:
            self._read_ahead()
            self.hand_back()
        return BUSY_TICK_S if now - started < 1.0 else 0.02

    def _read_ahead(self) -> None:
        for fd, _ in self.epoll.poll(0):
            connection = self._connections.get(fd)
            if connection is not None:
                connection.try_receive()

    def hand_back(self) -> None:
        """Give callers back what was not started: nothing waits behind a task that may wait for it."""
        by_connection: dict[Connection, list[bytes]] = {}
        while True:
            try:
                item = self.queue.pop()
            except IndexError:
                break
            connection, message, _ = item
            if type(message) is not Call:
                self.queue.append(item)
                break
            by_connection.setdefault(connection, []).insert(0, message.task_id)
        if by_connection:
            self.flush()
        for connection, task_ids in by_connection.items():
            connection.send(HandBack(task_ids))

    def cancel(self, message: CancelCall) -> None:
        """Drop a call that waits, interrupt one that runs (tasks only), with `force` end the process."""
        task_id = message.task_id
        # First the note, then the look: the main thread does it the other way round.
        self._cancelled[task_id] = None
        if len(self._cancelled) > 10_000:
            self._cancelled.pop(next(iter(self._cancelled)))
        running = self.running
        if running is not None and running.task_id == task_id:
            if message.force:
                os.kill(os.getpid(), signal.SIGKILL)
            running.is_cancelled = True
            self._repeat_interrupt()
        with self._credit:
            self._credit.notify_all()
        if message.recursive:
            from retinue.core.api import cancel_children

            cancel_children(self.runtime, task_id)

    def credit(self, message: StreamCredit) -> None:
        with self._credit:
            self._credits[message.task_id] = message.consumed
            self._credit.notify_all()

    # --- the main thread

    def install_interrupts(self) -> None:
        """SIGINT raises KeyboardInterrupt only in the very task that is to be cancelled, in its own code."""
        self._main_thread = threading.get_ident()
        signal.signal(signal.SIGINT, self._on_interrupt)
        signal.signal(_WAKE_SIGNAL, self._on_wake)

    def _is_to_interrupt(self) -> context.RunningCall | None:
        running = self.running
        if running is None or not running.is_cancelled or running.was_interrupted:
            return None
        return running if self.facts.actor_spec is None else None

    def _repeat_interrupt(self) -> None:
        """On the I/O thread, each tick: a signal that met the runtime's own code did nothing."""
        if self._is_to_interrupt() is not None:
            signal.pthread_kill(self._main_thread, signal.SIGINT)

    def _on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        running = self._is_to_interrupt()
        if running is not None and is_user_code(frame):
            running.was_interrupted = True
            raise KeyboardInterrupt

    def check_interrupted(self) -> None:
        """Where the runtime waits for user code: the place in it at which an interrupt does no harm."""
        running = self._is_to_interrupt()
        if running is not None:
            running.was_interrupted = True
            raise KeyboardInterrupt

    def run(self) -> Any:
        queue = self.queue
        while True:
            while queue:
                try:
                    connection, message, payload = queue.popleft()
                except IndexError:
                    break  # handed back meanwhile
                kind = type(message)
                if kind is Call:
                    self.execute(connection, message, payload)
                elif kind is LeaseBegin:
                    context.apply_lease(self.facts, message.resources, message.instances)
            if self._replies:
                self.flush()
            if self._stopping is not None:
                self._read_ahead()
                if self._stopping == EXIT:
                    if self.facts.actor_spec is None:
                        self.hand_back()
                    return EXIT
                if not queue:
                    return self._stopping
                continue
            only = self._only
            if only is not None and self._receive_from(only):
                continue
            for fd, _ in self.epoll.poll():
                if fd == self._event:
                    try:
                        os.eventfd_read(self._event)
                    except BlockingIOError:
                        pass  # two wake-ups, one read
                    continue
                connection = self._connections.get(fd)  # type: ignore[assignment]
                if connection is not None:
                    with connection.read_lock:
                        if not connection.is_closed:
                            connection.receive(wait=False)

    def _receive_from(self, only: Connection) -> bool:
        """Read the only caller's socket without asking epoll first; False if nothing came for a while.

        A system call of three less: with the reply sent before the call's bookkeeping, 70 us a call for 79.
        """
        try:
            with only.read_lock:
                self._is_receiving = True
                if self._only is only and self._stopping is None and not only.is_closed:
                    return only.receive(wait=True)
                return True
        except _Woken:
            if only.inbox:
                with only.read_lock:
                    only.process()
            return True
        finally:
            self._is_receiving = False

    def _on_wake(self, signum: int, frame: FrameType | None) -> None:
        if self._is_receiving and frame is not None and frame.f_code in _WAKE_SITES:
            self._is_receiving = False
            raise _Woken

    def _on_message(self, connection: Connection, message: Any, payload: bytes) -> None:
        kind = type(message)
        if kind is Call or kind is LeaseBegin:
            self.queue.append((connection, message, payload))
        elif kind is Define:
            self.runner.define(message, payload)
        elif kind is not Hello:
            raise ConnectionError(f"unexpected {kind.__name__} on a call connection")

    def send(self, connection: Connection, frame: bytes) -> None:
        """Keep a reply until there is nothing more to run, or the I/O thread's next tick."""
        with self._flush_lock:
            frames = self._replies.get(connection)
            if frames is None:
                self._replies[connection] = [frame]
            else:
                frames.append(frame)

    def flush(self) -> None:
        with self._flush_lock:
            replies, self._replies = self._replies, {}
            for connection, frames in replies.items():
                connection.send_frame(frames[0] if len(frames) == 1 else b"".join(frames))

    def target(self, call: Call) -> Any:
        return self.runner.function(call.target)

    def execute(self, connection: Connection, call: Call, payload: bytes) -> None:
        """Run one call and have its reply sent, whatever happens."""
        task_id = call.task_id
        if call.incarnation != self.facts.incarnation:
            self.send(connection, encode(Reply(task_id, REPLY_REFUSED)))
            return
        begin = self._started_at = time.monotonic()
        if self.runtime.io.is_sleeping:
            self.runtime.io.wake_if_sleeping()
        running = self.running = self.runner.started(call, begin)
        self._enter(running)
        failed = ""
        try:
            value = self._call(connection, running, call, payload)
            self._answer(connection, running, call, value, int((time.monotonic() - begin) * 1e6))
        except BaseException as error:
            if isinstance(error, SystemExit) and self.facts.actor_spec is not None:
                self.flush()
                self._leave(reason_to_leave(error))
            else:
                failed = type(error).__name__
                self._fail(connection, running, call, error, int((time.monotonic() - begin) * 1e6))
        finally:
            self.running = None
            self._started_at = 0.0
            self.runner.finished(running, begin, time.monotonic(), failed)

    def _enter(self, running: context.RunningCall) -> None:
        """Make this thread's context that of the call."""
        context.running.set(running)
        ctx = self.runtime.context
        ctx.task_id = running.task_id
        ctx.puts = 0
        # Another attempt makes other objects: those of the first may still be held.
        ctx.put_task_id = running.task_id if not running.attempt else self.runtime.ids.task_id()

    def _call(self, connection: Connection, running: context.RunningCall, call: Call, payload: bytes) -> Any:
        """Run user code; its arguments are gone when this returns, unless user code kept them."""
        if self._cancelled and call.task_id in self._cancelled:
            running.is_cancelled = running.was_interrupted = True
            raise KeyboardInterrupt
        function = self.target(call)
        options = call.options
        if not payload and options is None:
            return function()
        args, kwargs = self.runner.load_args(running, call, payload)
        if running.is_cancelled:
            running.was_interrupted = True
            raise KeyboardInterrupt  # meanwhile
        value = function(*args, **kwargs)
        if options is not None and options.streaming:
            self._stream(connection, running, call, value)
            value = None
        return value

    def _answer(
        self, connection: Connection, running: context.RunningCall, call: Call, value: Any, exec_us: int
    ) -> None:
        self.runner.reply(connection, call, value, exec_us, self._last_frame(connection, running))
        if call.options is not None and call.options.max_calls:
            self._calls_left(call)

    def _fail(
        self,
        connection: Connection,
        running: context.RunningCall,
        call: Call,
        error: BaseException,
        exec_us: int,
    ) -> None:
        send = self._last_frame(connection, running)
        if isinstance(error, KeyboardInterrupt) and running.is_cancelled:
            forget_frames(error)
            send(self.runner.cancelled_reply(call))
        else:
            self.runner.reply_error(connection, call, error, exec_us, send)

    def _last_frame(self, connection: Connection, running: context.RunningCall) -> Callable[[bytes], None]:
        """What sends a call's last frame, on whichever thread learns that it may go."""
        return functools.partial(self._conclude, connection, running)

    def _conclude(self, connection: Connection, running: context.RunningCall, frame: bytes) -> None:
        if running.borrowed is None and running.order is None:
            self._send_now(connection, frame)
        else:
            self.runner.conclude(running, frame, functools.partial(self._send_now, connection))

    def _send_now(self, connection: Connection, frame: bytes) -> None:
        """Send a call's last frame, unless more calls wait: then with theirs."""
        if threading.get_ident() != self._main_thread:
            self.send(connection, frame)
            self.flush()
        elif self.queue:
            self.send(connection, frame)
        else:
            # Before the call's own bookkeeping, which runs while the caller wakes up.
            with self._flush_lock:
                frames = self._replies.pop(connection, None)
                if frames is not None:
                    frames.append(frame)
                    frame = b"".join(frames)
                connection.send_frame(frame)

    def _calls_left(self, call: Call) -> None:
        """After `max_calls` runs of a function its worker ends, so that what it leaks goes with it."""
        counts = self._call_counts
        counts[call.target] = counts.get(call.target, 0) + 1
        assert call.options is not None
        if counts[call.target] >= call.options.max_calls:
            self.hand_back()
            for connection in list(self._connections.values()):
                self.send(connection, encode(WorkerExit("max_calls")))
            self.flush()
            self._leave("max_calls reached")

    def _leave(self, reason: str) -> None:
        """End this process in order; calls that were not started are not answered."""
        if self.runtime.agent is not None:
            self.runtime.agent.send(ExpectExit(reason or "exit_actor() was called"))
        self.queue.clear()
        self._stopping = EXIT

    # --- streaming

    def _stream(self, connection: Connection, running: context.RunningCall, call: Call, value: Any) -> None:
        """Send a generator's items as they come, pausing while the consumer is behind."""
        if not is_generator(value):
            raise TypeError(
                f"num_returns='streaming' needs a generator, the task returned {type(value).__name__}"
            )
        assert call.options is not None
        limit = call.options.stream_backpressure
        order = running.order = FrameOrder(functools.partial(self._send_now, connection))
        index = 0
        checked = time.monotonic()
        try:
            for item in value:
                self.runner.stream_item(connection, call, index, item, order)
                del item
                index += 1
                self.flush()
                if limit > 0:
                    self._await_credit(connection, call.task_id, index, limit)
                if call.task_id in self._cancelled:
                    running.is_cancelled = running.was_interrupted = True
                    raise KeyboardInterrupt
                now = time.monotonic()
                if now - checked > CONSUMER_CHECK_S:
                    checked = now
                    self._check_consumer(connection)
        except BaseException:
            close = getattr(value, "close", None)
            if close is not None:
                close()
            raise
        finally:
            self._credits.pop(call.task_id, None)

    def _await_credit(self, connection: Connection, task_id: bytes, sent: int, limit: int) -> None:
        with self._credit:
            while sent - self._credits.get(task_id, 0) >= limit and task_id not in self._cancelled:
                if not self._credit.wait(CONSUMER_CHECK_S):
                    self._check_consumer(connection)

    @staticmethod
    def _check_consumer(connection: Connection) -> None:
        """Nobody reads the connection while user code runs, so its end is looked for without reading."""
        gone = connection.is_closed
        if not gone:
            poll = select.poll()
            poll.register(connection.fd, select.POLLRDHUP)
            gone = bool(poll.poll(0))
        if gone:
            raise ConnectionError("the process that consumed this stream is gone")

    # --- WaitHook: the running call waits for something

    def blocked(self) -> None:
        self._blocked += 1
        if self._blocked == 1:
            if self.facts.actor_spec is None:
                self._read_ahead()
                self.hand_back()
            if self._replies:
                self.flush()
            if self.runtime.agent is not None:
                self.runtime.agent.send(Blocked())

    def unblocked(self) -> None:
        self._blocked -= 1
        if self._blocked == 0 and self.runtime.agent is not None:
            self.runtime.agent.send(Unblocked())


def is_user_code(frame: FrameType | None) -> bool:
    """Whether an exception raised in this frame begins in user code, and not within a call of ours.

    Also what user code called is its own (time.sleep's frame is the caller's); what the runtime called
    (pickle, a lock, a `__reduce__` of the user's) is not: half of its work may be done.
    """
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(_OWN_MODULES):
            return frame.f_code in _CALL_SITES
        frame = frame.f_back
    return False


_CALL_SITES = (SyncExecutor._call.__code__, SyncExecutor._stream.__code__)
# Where a wake-up's exception loses nothing: recv stores into the inbox within one C call.
_WAKE_SITES = (SyncExecutor._receive_from.__code__, Connection.receive.__code__)
