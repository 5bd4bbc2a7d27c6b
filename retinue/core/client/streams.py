"""Streaming generators as their caller sees them: items arrive one by one as objects of their own.

Lives here: the state that replies feed, and ObjectRefGenerator that users iterate. Does not: running the
generator (`retinue.core.worker`).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from retinue.core import references
from retinue.core.client.runtime import Runtime
from retinue.core.client.waiting import Wait
from retinue.core.ids import return_id
from retinue.core.ownership.table import ERROR
from retinue.core.references import ObjectRef
from retinue.core.wire.messages import StreamItem

if TYPE_CHECKING:
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

    def item(self, runtime: Runtime, message: StreamItem, payload: bytes) -> list[Callable[[], None]]:
        object_id = return_id(self.task_id, message.index + 1)
        if message.index < self.next_index or self.is_finished:
            runtime.ownership.refuse_return(object_id, message.info)
            return []
        self.next_index = message.index + 1
        runtime.table.own(object_id, None)
        runtime.ownership.take_return(object_id, message.info, payload)
        ref: ObjectRef[Any] = ObjectRef(object_id)
        if not self.is_dropped:
            self.items.append(ref)
        return self._wake()

    def finished(
        self, error_blob: bytes | None, contained: list[bytes] | None = None
    ) -> list[Callable[[], None]]:
        """The generator returned, or raised: then its last item is the error. Later ends are ignored."""
        if self.is_finished:
            return []
        self.is_finished = True
        if error_blob is not None and not self.is_dropped:
            object_id = return_id(self.task_id, self.next_index + 1)
            table = references._required_runtime().table  # type: ignore[attr-defined]
            table.own(object_id, None)
            for held in contained or ():
                table.use(held)
            table.resolve(object_id, ERROR, blob=error_blob, contained=contained)
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
        try:
            ref = state.items.popleft()
        except IndexError:
            return None
        state.consumed += 1
        if self._limit > 0 and not state.is_finished:
            connection = self._task.conn
            if connection is not None:
                self._runtime.ownership.send_credit(self._task, connection)
        return ref

    def __iter__(self) -> Iterator[ObjectRef[T]]:
        return self

    def __next__(self) -> ObjectRef[T]:
        return self._next_sync(None)

    def _next_sync(self, timeout_s: float | None) -> ObjectRef[T]:
        """The next reference; a nil one if none came within `timeout_s`. Raises StopIteration at the end."""
        ref = self._take()
        if ref is not None:
            return ref
        state = self._state
        runtime = self._runtime
        wait = Wait(runtime.context.hook, None if timeout_s is None else time.monotonic() + timeout_s)
        try:
            while True:
                is_finished = state.is_finished  # first: what is there then, was there before the end
                ref = self._take()
                if ref is not None:
                    return ref
                if is_finished:
                    raise StopIteration
                if runtime.is_stopping:
                    raise ConnectionError("retinue was shut down while waiting for a generator's item")
                limit = wait.limit()
                if limit <= 0:
                    return ObjectRef(b"\xff" * 28)
                self._wait_for_change(limit)
        finally:
            wait.over()

    def _wait_for_change(self, limit_s: float) -> None:
        self._runtime.send_gathered()
        connection = self._task.conn
        if connection is None:
            self._runtime.watch_new_connections()
        elif not connection.is_closed and connection.read_for(self._is_waiting, limit_s):
            return
        woken = threading.Lock()
        woken.acquire()
        self._add_waiter(lambda: woken.release() if woken.locked() else None)
        woken.acquire(timeout=limit_s)

    def _is_waiting(self) -> bool:
        return not self._state.items and not self._state.is_finished

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
        import asyncio  # whoever comes here has it; see `Runtime._check_not_on_loop`

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
