"""Streaming generators as their caller sees them: items arrive one by one as objects of their own.

Lives here: the state that replies feed, and ObjectRefGenerator that users iterate. Does not: running the
generator (`retinue.core.worker`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from retinue.core import references
from retinue.core.ids import return_id
from retinue.core.ownership.table import ERROR, INLINE, STORED
from retinue.core.references import ObjectRef
from retinue.core.transport import threads
from retinue.core.wire.messages import StreamCredit, StreamItem

if TYPE_CHECKING:
    from retinue.core.client.runtime import Runtime
    from retinue.core.client.tasks import TaskRecord

T = TypeVar("T")


class StreamState:
    """Items that came and were not taken. All methods are called under the runtime's lock."""

    __slots__ = ("consumed", "is_dropped", "is_finished", "items", "next_index", "task_id", "waiters")

    def __init__(self, task_id: bytes) -> None:
        self.task_id = task_id
        self.items: deque[ObjectRef[Any]] = deque()
        self.is_finished = False
        self.is_dropped = False
        self.consumed = 0
        self.next_index = 0  # items of a repeated attempt below this are known already
        self.waiters: list[Callable[[], None]] = []

    def item(
        self, runtime: Runtime, task: TaskRecord, message: StreamItem, payload: bytes
    ) -> list[Callable[[], None]]:
        if message.index < self.next_index:
            return []
        self.next_index = message.index + 1
        object_id = return_id(self.task_id, message.index + 1)
        info = message.info
        runtime.table.own(object_id, None)
        contained = runtime.ownership.take_contained(info.contained)
        if info.node_id:
            runtime.table.resolve(
                object_id, STORED, size=info.size, nodes=(info.node_id,), contained=contained
            )
        else:
            state = ERROR if info.is_error else INLINE
            runtime.table.resolve(object_id, state, blob=payload, contained=contained)
        ref: ObjectRef[Any] = ObjectRef(object_id)
        if not self.is_dropped:
            self.items.append(ref)
        return self._wake()

    def finished(self, error_blob: bytes | None) -> list[Callable[[], None]]:
        """The generator returned, or raised: then its last item is the error."""
        self.is_finished = True
        if error_blob is not None and not self.is_dropped:
            object_id = return_id(self.task_id, self.next_index + 1)
            table = references._required_runtime().table  # type: ignore[attr-defined]
            table.own(object_id, None)
            table.resolve(object_id, ERROR, blob=error_blob)
            self.items.append(ObjectRef(object_id))
        return self._wake()

    def _wake(self) -> list[Callable[[], None]]:
        waiters, self.waiters = self.waiters, []
        return waiters


class ObjectRefGenerator(Generic[T]):
    """The items of a streaming task, as references, in order; iterate it, or iterate it asynchronously.

    Dropping or closing it cancels the generator. If the generator raises, the last reference raises
    that error when it is fetched.
    """

    def __init__(self, runtime: Runtime, task: TaskRecord, completion: ObjectRef[None]) -> None:
        self._runtime = runtime
        self._task = task
        self._state: StreamState = task.stream
        self._completion = completion
        self._limit = task.options.stream_backpressure if task.options is not None else -1

    # --- taking items

    def _take(self) -> ObjectRef[T] | None:
        state = self._state
        if not state.items:
            return None
        ref = state.items.popleft()
        state.consumed += 1
        if self._limit > 0 and not state.is_finished:
            self._send_credit()
        return ref

    def _send_credit(self) -> None:
        connection = self._task.conn
        if connection is None:
            return
        context = connection.context
        address = getattr(context, "address", None)
        if address is not None:
            self._runtime.peers.send(address, StreamCredit(self._task.task_id, self._state.consumed))

    def __iter__(self) -> Iterator[ObjectRef[T]]:
        return self

    def __next__(self) -> ObjectRef[T]:
        return self._next_sync(None)

    def _next_sync(self, timeout_s: float | None) -> ObjectRef[T]:
        """The next reference; a nil one if none came within `timeout_s`. Raises StopIteration at the end."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        state = self._state
        hook = self._runtime.context.hook
        announced = False
        try:
            while True:
                ref = self._take()
                if ref is not None:
                    return ref
                if state.is_finished:
                    raise StopIteration
                limit = threads.RECHECK_S
                if deadline is not None:
                    limit = min(limit, deadline - time.monotonic())
                    if limit <= 0:
                        return ObjectRef(b"\xff" * 28)
                if hook is not None and not announced:
                    hook.blocked()
                    announced = True
                self._wait_for_change(limit)
        finally:
            if announced and hook is not None:
                hook.unblocked()

    def _wait_for_change(self, limit_s: float) -> None:
        self._runtime.send_gathered()
        connection = self._task.conn
        if connection is not None and connection.read_lock.acquire(blocking=False):
            try:
                if (
                    not self._state.items
                    and not self._state.is_finished
                    and connection.wait_readable(limit_s)
                ):
                    connection.receive(wait=False)
            finally:
                connection.read_lock.release()
            return
        if connection is None:
            self._runtime.watch_new_connections()
        woken = threading.Lock()
        woken.acquire()
        self._add_waiter(lambda: woken.release() if woken.locked() else None)
        woken.acquire(timeout=limit_s)

    def _add_waiter(self, wake: Callable[[], None]) -> None:
        with self._runtime.lock:
            ready = bool(self._state.items) or self._state.is_finished
            if not ready:
                self._state.waiters.append(wake)
        if ready:
            wake()

    def __aiter__(self) -> AsyncIterator[ObjectRef[T]]:
        return self

    async def __anext__(self) -> ObjectRef[T]:
        while True:
            ref = self._take()
            if ref is not None:
                return ref
            if self._state.is_finished:
                raise StopAsyncIteration
            await self._changed()

    async def _changed(self) -> None:
        self._runtime.send_gathered()
        loop = asyncio.get_running_loop()
        changed: asyncio.Future[None] = loop.create_future()
        thread_id = threading.get_ident()

        def set_changed() -> None:
            if not changed.done():
                changed.set_result(None)

        def wake() -> None:
            if threading.get_ident() == thread_id:
                set_changed()
            elif not loop.is_closed():
                loop.call_soon_threadsafe(set_changed)

        connection = self._task.conn
        if connection is None:
            self._runtime.watch_new_connections()
        else:
            self._runtime.watch_for_a_while(connection)
        self._add_waiter(wake)
        await changed

    # --- asking

    def completed(self) -> ObjectRef[None]:
        """A reference that is ready when the generator has ended; fetching it raises what it raised."""
        return self._completion

    def next_ready(self) -> bool:
        """Whether `next()` would return at once."""
        return bool(self._state.items) or self._state.is_finished

    def is_finished(self) -> bool:
        """Whether every item was taken and there will be no more."""
        return self._state.is_finished and not self._state.items

    # --- ending

    def close(self) -> None:
        """Cancel the generator and drop what was not taken."""
        self._state.is_dropped = True
        self._state.items.clear()
        if not self._state.is_finished and not self._runtime.is_stopping:
            from retinue.core.api import cancel_task

            cancel_task(self._runtime, self._task, force=False, recursive=True)

    async def aclose(self) -> None:
        self.close()

    def send(self, value: None) -> ObjectRef[T]:
        """As `next`; only None can be sent, as the generator runs elsewhere."""
        if value is not None:
            raise TypeError("a remote generator cannot be sent values")
        return self.__next__()

    async def asend(self, value: None) -> ObjectRef[T]:
        if value is not None:
            raise TypeError("a remote generator cannot be sent values")
        return await self.__anext__()

    def throw(self, value: BaseException) -> None:
        """Close it and raise the exception here; the remote generator sees a cancellation."""
        self.close()
        raise value

    async def athrow(self, value: BaseException) -> None:
        self.throw(value)

    def task_id(self) -> Any:
        return self._completion.task_id()

    def __del__(self) -> None:
        state = self._state
        if not state.is_finished and not self._runtime.is_stopping:
            # A finalizer takes no locks: the I/O thread cancels.
            state.is_dropped = True
            task, runtime = self._task, self._runtime

            def cancel() -> None:
                from retinue.core.api import cancel_task

                cancel_task(runtime, task, force=False, recursive=True)

            runtime.io._posted.append(cancel)

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._completion.hex()[:48]})"

    def __reduce__(self) -> Any:
        raise TypeError("an ObjectRefGenerator stays in the process that called the task; pass its items on")
