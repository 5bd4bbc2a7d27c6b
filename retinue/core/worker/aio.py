"""The executor of async actors: one uvloop loop runs the methods and reads the callers' connections.

A task per call: driving the first step directly would gain 9 to 49 % for methods that never suspend, but
`current_task()`, timeouts and cancellation would be wrong. Replies are gathered within one turn of the loop.

Lives here: that loop and its concurrency limits. Does not: what a call is (`running`).
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from retinue.core.client.runtime import Context, Runtime
from retinue.core.errors import AsyncioActorExit
from retinue.core.transport.threads import Connection
from retinue.core.wire.framing import encode
from retinue.core.wire.messages import (
    REPLY_REFUSED,
    Call,
    CancelCall,
    Define,
    ExpectExit,
    Hello,
    LeaseBegin,
    Reply,
    StreamCredit,
)
from retinue.core.worker import context
from retinue.core.worker.actors import DEFAULT_GROUP, method_of
from retinue.core.worker.order import FrameOrder
from retinue.core.worker.running import ANSWERS_S, CallRunner, forget_frames, reason_to_leave
from retinue.core.worker.sync import EXIT

logger = logging.getLogger(__name__)

DEFAULT_MAX_CONCURRENCY = 1000


class Group:
    """A concurrency group: how many calls may run at once, and those that wait, in order."""

    __slots__ = ("limit", "running", "waiting")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running = 0
        self.waiting: deque[tuple[Connection, Call, bytes]] = deque()


class LoopContext(Context):
    """What runs on the loop's thread: each asyncio task knows for itself."""

    @property
    def task_id(self) -> bytes:  # type: ignore[override]
        running = context.running.get()
        return running.task_id if running is not None else b""


class AsyncActorExecutor:
    """Runs an async actor's methods; plain `def` methods run on the loop too, as in Ray."""

    def __init__(self, runtime: Runtime, runner: CallRunner, facts: context.WorkerFacts) -> None:
        self.runtime = runtime
        self.runner = runner
        self.facts = facts
        spec = facts.actor_spec
        assert spec is not None
        self._groups = {DEFAULT_GROUP: Group(spec.max_concurrency or DEFAULT_MAX_CONCURRENCY)}
        for name, size in spec.concurrency_groups.items():
            self._groups[name] = Group(size)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections: dict[int, Connection] = {}
        self._replies: dict[Connection, list[bytes]] = {}
        self._tasks: dict[bytes, asyncio.Task[None]] = {}
        self._running_calls: dict[bytes, context.RunningCall] = {}
        self._cancelled: dict[bytes, None] = {}
        self._credits: dict[bytes, int] = {}
        self._credit_waiters: dict[bytes, asyncio.Future[None]] = {}
        self._streams: dict[bytes, Connection] = {}  # streaming calls, and who consumes them
        self._stopping: Any = None
        self._stopped: asyncio.Event | None = None
        self._thread_id = 0
        self._early: list[Callable[[], None]] = []  # what came before there was a loop
        self._early_lock = threading.Lock()

    # --- called on the I/O thread

    def adopt(self, connection: Connection) -> None:
        connection.on_message = self._on_message
        connection.on_close = self._closed
        self._connections[connection.fd] = connection
        # Behind the calls that came in one piece with the Hello: they are being handled now.
        self.runtime.io.post(lambda: self._on_loop(self._read, connection))

    def _on_loop(self, function: Callable[..., None], *args: Any) -> None:
        """Run a function on the loop, from any thread, in the order of asking."""
        if threading.get_ident() == self._thread_id:
            function(*args)
            return
        with self._early_lock:
            if self._loop is None:
                self._early.append(functools.partial(function, *args))
                return
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            pass  # the loop has ended, and with it the actor

    def connections(self) -> list[Connection]:
        return list(self._connections.values())

    def _read(self, connection: Connection) -> None:
        assert self._loop is not None
        connection.read_on(self._loop)
        connection.try_receive()

    def _closed(self, connection: Connection) -> None:
        if self._connections.get(connection.fd) is connection:
            del self._connections[connection.fd]
        self._on_loop(self._caller_gone, connection)

    def _caller_gone(self, connection: Connection) -> None:
        """Nobody will take the items of its streams: what makes them is told at once."""
        self._replies.pop(connection, None)
        for task_id in [t for t, c in self._streams.items() if c is connection]:
            self._cancel_call(task_id)

    def stop(self, reason: Any) -> None:
        self._stopping = reason
        self._on_loop(self._check_stop)

    def running_calls(self) -> list[context.RunningCall]:
        """For whoever asks what this process does; called on the I/O thread."""
        return list(self._running_calls.values())

    def tick(self, now: float) -> float:
        self.runner.flush_events(now)
        return 1.0 if not self.runner.events else 0.5

    def cancel(self, message: CancelCall) -> None:
        self._on_loop(self._cancel, message)

    def credit(self, message: StreamCredit) -> None:
        self._on_loop(self._credited, message)

    # --- on the loop

    def run(self) -> Any:
        """Serve until told to stop; returns the reason."""
        import uvloop

        return uvloop.run(self._serve())

    async def _serve(self) -> Any:
        self._stopped = asyncio.Event()
        self._thread_id = threading.get_ident()
        self.runtime.context = LoopContext()
        with self._early_lock:
            self._loop = asyncio.get_running_loop()
        for function in self._early:
            function()
        self._early.clear()
        await self._stopped.wait()
        deadline = time.monotonic() + ANSWERS_S
        while self.runner.has_unanswered() and time.monotonic() < deadline:  # noqa: ASYNC110 - once in its life
            await asyncio.sleep(0.002)
        self._flush()
        return self._stopping

    def _check_stop(self) -> None:
        """End once what was accepted has finished."""
        assert self._stopped is not None
        for connection in list(self._connections.values()):
            connection.try_receive()
        if self._stopping is not None and (self._stopping == EXIT or not self._tasks):
            self._stopped.set()

    def _on_message(self, connection: Connection, message: Any, payload: bytes) -> None:
        kind = type(message)
        if kind is Call:
            self._on_loop(self._call_arrived, connection, message, payload)
        elif kind is Define:
            self.runner.define(message, payload)
        elif kind is LeaseBegin:
            context.apply_lease(self.facts, message.resources, message.instances)
        elif kind is not Hello:
            raise ConnectionError(f"unexpected {kind.__name__} on a call connection")

    def _call_arrived(self, connection: Connection, call: Call, payload: bytes) -> None:
        if call.incarnation != self.facts.incarnation:
            self._send(connection, encode(Reply(call.task_id, REPLY_REFUSED)))
            return
        name = call.options.concurrency_group if call.options is not None else ""
        group = self._groups.get(name or DEFAULT_GROUP)
        if group is None:
            error = ValueError(f"the actor has no concurrency group {name!r}; it has {sorted(self._groups)}")
            self.runner.reply_error(connection, call, error, 0, functools.partial(self._send, connection))
            return
        if group.running >= group.limit:
            group.waiting.append((connection, call, payload))
        else:
            self._start(group, connection, call, payload)

    def _start(self, group: Group, connection: Connection, call: Call, payload: bytes) -> None:
        assert self._loop is not None
        group.running += 1
        self._tasks[call.task_id] = self._loop.create_task(self._run(group, connection, call, payload))

    async def _run(self, group: Group, connection: Connection, call: Call, payload: bytes) -> None:
        begin = time.monotonic()
        task_id = call.task_id
        runner = self.runner
        running = self._running_calls[task_id] = runner.started(call, begin)
        context.running.set(running)
        failed = ""
        send = functools.partial(self._conclude, connection, running)
        try:
            if task_id in self._cancelled:
                raise asyncio.CancelledError
            value = await self._call(connection, running, call, payload)
            runner.reply(connection, call, value, int((time.monotonic() - begin) * 1e6), send)
        except AsyncioActorExit as error:
            self._leave(str(error))
        except SystemExit as error:
            self._leave(reason_to_leave(error))
        except asyncio.CancelledError as error:
            failed = "CancelledError"
            forget_frames(error)
            send(runner.cancelled_reply(call))
        except BaseException as error:
            failed = type(error).__name__
            runner.reply_error(connection, call, error, int((time.monotonic() - begin) * 1e6), send)
        finally:
            del self._tasks[task_id]
            del self._running_calls[task_id]
            runner.finished(running, begin, time.monotonic(), failed)
            group.running -= 1
            if group.waiting:
                self._start(group, *group.waiting.popleft())
            elif self._stopping is not None:
                self._check_stop()

    def _conclude(self, connection: Connection, running: context.RunningCall, frame: bytes) -> None:
        if running.borrowed is None and running.order is None:
            self._on_loop(self._send, connection, frame)
        else:
            self.runner.conclude(running, frame, lambda last: self._on_loop(self._send, connection, last))

    async def _call(
        self, connection: Connection, running: context.RunningCall, call: Call, payload: bytes
    ) -> Any:
        method = method_of(self.facts, call.method)
        options = call.options
        if options is not None and (options.args_object is not None or len(payload) > call.args_size):
            # Arguments in the store are fetched by a round trip or a transfer: not on the loop.
            assert self._loop is not None
            own = contextvars.copy_context()
            loading = self._loop.run_in_executor(None, own.run, self.runner.load_args, running, call, payload)
            args, kwargs = await loading
        else:
            args, kwargs = self.runner.load_args(running, call, payload)
        value = method(*args, **kwargs)
        if inspect.isawaitable(value):
            value = await value
        if options is not None and options.streaming:
            await self._stream(connection, running, call, value)
            value = None
        return value

    async def _stream(
        self, connection: Connection, running: context.RunningCall, call: Call, value: Any
    ) -> None:
        assert call.options is not None
        limit = call.options.stream_backpressure
        order = running.order = FrameOrder(functools.partial(self._send, connection), self._on_loop)
        index = 0
        self._streams[call.task_id] = connection
        try:
            if connection.is_closed:
                raise asyncio.CancelledError
            if hasattr(value, "__aiter__"):
                async for item in value:
                    self.runner.stream_item(connection, call, index, item, order)
                    index += 1
                    if limit > 0:
                        await self._await_credit(call.task_id, index, limit)
            elif hasattr(value, "__next__"):
                for item in value:
                    self.runner.stream_item(connection, call, index, item, order)
                    index += 1
                    if limit > 0:
                        await self._await_credit(call.task_id, index, limit)
                    else:
                        await asyncio.sleep(0)
            else:
                raise TypeError(f"num_returns='streaming' needs a generator, got {type(value).__name__}")
        finally:
            del self._streams[call.task_id]
            self._credits.pop(call.task_id, None)
            if hasattr(value, "aclose"):
                await value.aclose()

    async def _await_credit(self, task_id: bytes, sent: int, limit: int) -> None:
        assert self._loop is not None
        while sent - self._credits.get(task_id, 0) >= limit:
            waiter = self._credit_waiters[task_id] = self._loop.create_future()
            try:
                await waiter
            finally:
                self._credit_waiters.pop(task_id, None)

    def _credited(self, message: StreamCredit) -> None:
        self._credits[message.task_id] = message.consumed
        waiter = self._credit_waiters.get(message.task_id)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _cancel(self, message: CancelCall) -> None:
        self._cancel_call(message.task_id)
        if message.recursive:
            from retinue.core.api import cancel_children

            cancel_children(self.runtime, message.task_id)

    def _cancel_call(self, task_id: bytes) -> None:
        running = self._running_calls.get(task_id)
        if running is not None:
            running.is_cancelled = True
            self._tasks[task_id].cancel()
            return
        # It waits for its turn, or for the first step of its asyncio task, which `cancel` would skip whole.
        self._cancelled[task_id] = None
        if len(self._cancelled) > 10_000:
            self._cancelled.pop(next(iter(self._cancelled)))

    def _send(self, connection: Connection, frame: bytes) -> None:
        """Keep a frame to the end of this turn of the loop."""
        if not self._replies:
            assert self._loop is not None
            self._loop.call_soon(self._flush)
        frames = self._replies.get(connection)
        if frames is None:
            self._replies[connection] = [frame]
        else:
            frames.append(frame)

    def _flush(self) -> None:
        replies, self._replies = self._replies, {}
        for connection, frames in replies.items():
            connection.send_frame(frames[0] if len(frames) == 1 else b"".join(frames))

    def _leave(self, reason: str) -> None:
        if self.runtime.agent is not None:
            self.runtime.agent.send(ExpectExit(reason or "exit_actor() was called"))
        self._stopping = EXIT
        assert self._stopped is not None
        self._stopped.set()
