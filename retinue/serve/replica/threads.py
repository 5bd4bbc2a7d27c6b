"""Threads for plain `def` code of users: calls, and generators whose items come back in bursts.

Lives here: the pool, and what cancelling means for threads: the flag of the request is set, and whoever waits
goes on waiting until the code has returned. Does not: which code needs a thread (`user_code`).
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from retinue.core.doors import cancellable
from retinue.serve.context import request_context

# A generator runs ahead of its reader by so many items at most.
MAX_ITEMS_AHEAD = 64
JOIN_S = 5.0


class Job:
    """One function call for a thread. Its result comes back to the loop by `_end`."""

    __slots__ = ("_claim", "_context", "_function", "_loop", "_waiter", "error", "is_over", "value")

    def __init__(self, loop: asyncio.AbstractEventLoop, function: Callable[[], Any]) -> None:
        self._loop = loop
        self._function = function
        self._context = contextvars.copy_context()
        self._context.run(cancellable.set, request_context.get())
        self._claim = [None]  # popped by the thread that runs it, or by whoever gives it up before: atomic
        self._waiter: asyncio.Future[None] | None = None
        self.value: Any = None
        self.error: BaseException | None = None
        self.is_over = False

    def run(self) -> None:
        """In the thread."""
        try:
            self._claim.pop()
        except IndexError:
            return
        try:
            value, error = self._context.run(self._function), None
        except BaseException as exc:  # noqa: BLE001 - user code: it belongs to the caller
            value, error = None, exc
        try:
            self._loop.call_soon_threadsafe(self._end, value, error)
        except RuntimeError:
            pass  # the loop has ended, and the replica with it

    def _end(self, value: Any, error: BaseException | None) -> None:
        self.value, self.error, self.is_over = value, error, True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def result(self) -> Any:
        """Wait for it. Cancelled: tell the code, and wait until it has returned."""
        is_cancelled = False
        while not self.is_over:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                is_cancelled = True
                request_context.get().is_cancelled = True
                if self._claim:
                    try:
                        self._claim.pop()
                        raise
                    except IndexError:
                        pass  # a thread has just begun it
        if is_cancelled:
            raise asyncio.CancelledError
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # else it, and every frame in it, would wait for the collector
        return self.value


class ThreadPool:
    """At most `limit` threads, started as they are needed. Jobs above it wait in order."""

    def __init__(self, limit: int, name: str) -> None:
        self.limit = limit
        self._name = name
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._unfinished = 0  # jobs: the loop's own count

    async def run(self, function: Callable[[], Any]) -> Any:
        """Call it in a thread, in a copy of this context."""
        job = Job(asyncio.get_running_loop(), function)
        self._unfinished += 1
        if self._unfinished > len(self._threads) < self.limit:
            self._start_thread()
        self._jobs.put(job)
        try:
            return await job.result()
        finally:
            self._unfinished -= 1

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
            del job  # its result is the caller's now

    def close(self, join_s: float = JOIN_S) -> None:
        """End the threads; those that still run user code end with it, or with the process."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(join_s)
            join_s = 0.1 if thread.is_alive() else join_s
        self._threads.clear()


class ThreadIterator:
    """The items of a plain generator that runs in a thread, for the loop. It holds the thread until its end.

    `convert` is applied to each item in the thread. Closing stops it at its next item, and waits for that.
    """

    def __init__(
        self, pool: ThreadPool, make: Callable[[], Iterator[Any]], convert: Callable[[Any], Any] | None = None
    ) -> None:
        self._pool = pool
        self._make = make
        self._convert = convert
        self._items: deque[Any] = deque()
        self._room = threading.Event()
        self._is_waiting = False
        self._is_closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._producer: asyncio.Task[None] | None = None

    def __aiter__(self) -> ThreadIterator:
        return self

    async def __anext__(self) -> Any:
        if not self._items:
            await self._wait_items()
            if not self._items:
                self._raise_end()
        item = self._items.popleft()
        self._room.set()
        return item

    async def _wait_items(self) -> None:
        """Until there are items, or it is over."""
        if self._producer is None:
            self._producer = self._loop.create_task(self._pool.run(self._produce))
            self._producer.add_done_callback(self._wake)
        while not self._items and not self._producer.done():
            self._waiter = self._loop.create_future()
            self._is_waiting = True
            if self._items:
                break  # came before the thread could see that we wait
            await self._waiter
        self._is_waiting = False

    def _raise_end(self) -> None:
        assert self._producer is not None
        if not self._producer.cancelled():
            error = self._producer.exception()
            if error is not None:
                raise error
        raise StopAsyncIteration

    def _wake(self, _: object = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _produce(self) -> None:
        """In the thread."""
        items = self._items
        convert = self._convert
        source = iter(self._make())
        try:
            for item in source:
                if self._is_closed:
                    return
                items.append(item if convert is None else convert(item))
                if self._is_waiting:
                    self._is_waiting = False
                    self._loop.call_soon_threadsafe(self._wake)
                if len(items) >= MAX_ITEMS_AHEAD:
                    self._room.clear()
                    # Looked at again: the reader takes items first and sets the event then.
                    if len(items) >= MAX_ITEMS_AHEAD and not self._is_closed:
                        self._room.wait()
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()

    async def aclose(self) -> None:
        """Stop it; returns when its code has."""
        self._is_closed = True
        request_context.get().is_cancelled = True
        self._room.set()
        producer = self._producer
        if producer is None or producer.done():
            return
        # Waits through further cancellations: the slot is taken while the code runs.
        while not producer.done():
            try:
                await asyncio.wait({producer})
            except asyncio.CancelledError:
                continue
        if not producer.cancelled():
            producer.exception()  # nobody is there to hear of it
