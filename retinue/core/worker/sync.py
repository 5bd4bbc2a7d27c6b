"""The executor of tasks and of synchronous actors: one thread reads its callers' sockets and runs their calls.

Reading on the thread that runs user code saves the hand-over between threads (32,000 calls/s against
17,000). Replies are gathered while there is more to do, and the I/O thread flushes them every 2 ms
while user code runs, so that a finished answer never waits for the slow call behind it. For tasks the I/O
thread also hands unstarted calls back to their callers when the running one blocks or lasts.

Lives here: that loop, cancelling by KeyboardInterrupt, hand-back. Does not: what a call is (`running`),
threaded and async actors.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections import deque
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
from retinue.core.worker.running import ActorExit, CallRunner, is_generator

logger = logging.getLogger(__name__)

HAND_BACK_S = 0.002
BUSY_TICK_S = 0.002
LINGER_S = 0.05
FLUSH_BYTES = 64 * 1024

Item = tuple[Connection, Any, bytes]


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
        self._in_user_code = False
        self._running_id = b""
        self._interrupting = b""
        self._cancelled: dict[bytes, None] = {}
        self._blocked = 0
        self._seen_calls = 0
        self._busy_until = 0.0
        self._credits: dict[bytes, int] = {}
        self._credit = threading.Condition()
        self._stopping: Any = None
        self._main_thread = threading.get_ident()
        self.running: context.RunningCall | None = None
        self._call_counts: dict[bytes, int] = {}

    # --- called on the I/O thread

    def adopt(self, connection: Connection) -> None:
        """A caller connected."""
        connection.on_message = self._on_message
        connection.on_close = self._closed
        self._connections[connection.fd] = connection
        self.epoll.register(connection.fd, select.EPOLLIN)
        self.runtime.io.post(self.wake)

    def _closed(self, connection: Connection) -> None:
        self._connections.pop(connection.fd, None)
        self._replies.pop(connection, None)

    def wake(self) -> None:
        os.eventfd_write(self._event, 1)

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
        if message.force and self._running_id == task_id:
            os.kill(os.getpid(), signal.SIGKILL)
        self._cancelled[task_id] = None
        if len(self._cancelled) > 10_000:
            self._cancelled.pop(next(iter(self._cancelled)))
        running = self.running
        if running is not None and running.task_id == task_id:
            running.is_cancelled = True
            if self.facts.actor_spec is None:
                self._interrupting = task_id
                signal.pthread_kill(self._main_thread, signal.SIGINT)
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
        """SIGINT raises KeyboardInterrupt only in the very task that is to be cancelled."""
        self._main_thread = threading.get_ident()
        signal.signal(signal.SIGINT, self._on_interrupt)

    def _on_interrupt(self, signum: int, frame: Any) -> None:
        if self._in_user_code and self._running_id == self._interrupting:
            self._interrupting = b""
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
        if task_id in self._cancelled:
            self.send(connection, self.runner.cancelled_reply(call))
            return
        if call.incarnation != self.facts.incarnation:
            self.send(connection, encode(Reply(task_id, REPLY_REFUSED)))
            return
        self._running_id = task_id
        begin = self._started_at = time.monotonic()
        if self.runtime.io.is_sleeping:
            self.runtime.io.wake_if_sleeping()
        ctx = self.runtime.context
        ctx.task_id = task_id
        ctx.puts = 0
        failed = ""
        try:
            value, new = self._call(connection, call, payload)
            self._answer(connection, call, value, int((time.monotonic() - begin) * 1e6), new)
        except ActorExit as error:
            self._leave(str(error))
        except BaseException as error:
            failed = type(error).__name__
            self._fail(connection, call, error, int((time.monotonic() - begin) * 1e6))
        finally:
            running, self.running = self.running, None
            self._running_id = b""
            self._started_at = 0.0
            name = running.name if running is not None else call.method
            ended = time.monotonic()
            self.runner.finished(task_id, name, begin, ended, failed)

    def _call(self, connection: Connection, call: Call, payload: bytes) -> tuple[Any, list[bytes]]:
        """Run user code; its arguments are gone when this returns, unless user code kept them."""
        running = self.running = self.runner.started(call, self._started_at)
        context.running.set(running)
        function = self.target(call)
        new: list[bytes] = []
        options = call.options
        try:
            if payload or options is not None:
                args, kwargs, new = self.runner.load_args(call, payload)
                self._in_user_code = True
                value = function(*args, **kwargs)
                if options is not None and options.streaming:
                    self._stream(connection, call, value)
                    value = None
            else:
                self._in_user_code = True
                value = function()
        finally:
            self._in_user_code = False
        return value, new

    def _answer(self, connection: Connection, call: Call, value: Any, exec_us: int, new: list[bytes]) -> None:
        if not new:
            self.runner.reply(
                connection, call, value, exec_us, lambda frame: self._send_now(connection, frame)
            )
        else:
            self.runner.reply(
                connection,
                call,
                value,
                exec_us,
                lambda frame: self.runner.settle(new, lambda: self._send_now(connection, frame)),
            )
        if call.options is not None and call.options.max_calls:
            self._calls_left(call)

    def _send_now(self, connection: Connection, frame: bytes) -> None:
        if threading.get_ident() == self._main_thread:
            self.send(connection, frame)
        else:
            connection.send_frame(frame)

    def _fail(self, connection: Connection, call: Call, error: BaseException, exec_us: int) -> None:
        is_cancelled = self.running is not None and self.running.is_cancelled
        if isinstance(error, KeyboardInterrupt) and is_cancelled:
            self.send(connection, self.runner.cancelled_reply(call))
            return
        self.send(connection, self.runner.error_reply(call, error, exec_us))

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

    def _stream(self, connection: Connection, call: Call, value: Any) -> None:
        """Send a generator's items as they come, pausing while the consumer is behind."""
        if not is_generator(value):
            raise TypeError(
                f"num_returns='streaming' needs a generator, the task returned {type(value).__name__}"
            )
        assert call.options is not None
        limit = call.options.stream_backpressure
        index = 0
        try:
            for item in value:
                self.runner.stream_item(
                    connection, call, index, item, lambda f: self._send_now(connection, f)
                )
                del item
                index += 1
                self.flush()
                if limit > 0:
                    self._await_credit(call.task_id, index, limit)
                if call.task_id in self._cancelled:
                    raise KeyboardInterrupt
        except BaseException:
            close = getattr(value, "close", None)
            if close is not None:
                close()
            raise
        finally:
            self._credits.pop(call.task_id, None)

    def _await_credit(self, task_id: bytes, sent: int, limit: int) -> None:
        with self._credit:
            while sent - self._credits.get(task_id, 0) >= limit and task_id not in self._cancelled:
                self._credit.wait()

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


EXIT = "exit"
