"""Runs the batches of one function on one loop: the shell of `batcher`.

A lone item costs 4 us on the way, one of 32 in a batch 0.8. Lives here: the loop, the timer, results and
streams of results. Does not: when a batch begins (`batcher`), what users see (`decorator`).
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from retinue.serve.batching.batcher import Batcher, Waiting
from retinue.serve.batching.measures import measures
from retinue.serve.context import RequestContext, batch_request_contexts, request_context
from retinue.serve.exceptions import RetinueServeException

# A batch that generates runs ahead of its slowest reader by so many items at most.
MAX_UNREAD = 64


class Entry(Waiting):
    """One call of the function, waiting or in a batch."""

    __slots__ = ("batch", "context", "future", "stream")

    def __init__(self, item: Any, context: RequestContext, future: asyncio.Future[Any] | None = None) -> None:
        # As the base class does it: a call of that would be a tenth of a lone item's cost.
        self.item = item
        self.key = context.multiplexed_model_id
        self.deadline = context.deadline
        self.context = context
        self.future: asyncio.Future[Any] = future  # type: ignore[assignment]
        self.stream: ItemStream | None = None
        self.batch: Batch | None = None

    def fail(self, error: BaseException) -> None:
        if self.stream is not None:
            self.stream.end(error)
        elif not self.future.done():
            self.future.set_exception(error)


class Batch:
    """A batch that runs. When nobody waits for any of its results, it is cancelled."""

    __slots__ = ("began", "entries", "is_running", "left", "task")

    def __init__(self, entries: Sequence[Entry], began: float) -> None:
        self.entries = entries
        self.began = began
        self.left = len(entries)
        self.is_running = False
        self.task: asyncio.Task[None] | None = None
        for entry in entries:
            entry.batch = self

    def leave(self) -> None:
        self.left -= 1
        # A task that is cancelled before it begins would not even tell that it is over.
        if not self.left and self.is_running and self.task is not None:
            self.task.cancel()


class BatchRunner:
    """`call` gets the items of a batch: it returns results, to be awaited, or generates them."""

    def __init__(
        self, call: Callable[[list[Any]], Any], batcher: Batcher, name: str, *, is_generator: bool
    ) -> None:
        self.batcher = batcher
        self._call = call
        self._is_generator = is_generator
        self.name = name
        self._measured_as = (name,)
        self.loop = asyncio.get_running_loop()
        self._is_beginning = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._context = contextvars.Context()  # batches begin in none of their requests'
        measures.add(self)

    # --- one call

    def add(self, item: Any) -> Entry:
        """An entry whose future gets the result. If nobody waits for that any more: `leave`."""
        entry = Entry(item, request_context.get(), self.loop.create_future())
        self._add(entry)
        return entry

    async def results(self, item: Any) -> AsyncIterator[Any]:
        """The same, for batches that generate."""
        entry = Entry(item, request_context.get())
        stream = entry.stream = ItemStream()
        self._add(entry)
        is_complete = False
        try:
            async for result in stream:
                yield result
            is_complete = True
        finally:
            if not is_complete:
                stream.close()
                self.leave(entry)

    def _add(self, entry: Entry) -> None:
        self.batcher.add(entry, time.monotonic())
        if not self._is_beginning and self.batcher.running < self.batcher.max_concurrent_batches:
            # At the end of this turn, so that calls that come together are computed together.
            self._is_beginning = True
            self.loop.call_soon(self._begin, context=self._context)
        elif entry.deadline:
            self._set_timer()

    def leave(self, entry: Entry) -> None:
        if not self.batcher.remove(entry) and entry.batch is not None:
            entry.batch.leave()

    # --- batches

    def _begin(self) -> None:
        self._is_beginning = False
        batcher = self.batcher
        now = time.monotonic()
        for late in batcher.take_late(now):
            assert isinstance(late, Entry)
            late.fail(TimeoutError(f"the request's deadline passed while it waited for {self.name}"))
        while len(batcher) and batcher.running < batcher.max_concurrent_batches:
            while (oversized := batcher.take_oversized()) is not None:
                assert isinstance(oversized, Entry)
                oversized.fail(batcher.why_unfit(oversized, self.name))
            entries = batcher.begin(now)
            if not entries:
                break
            batch = Batch(entries, now)  # type: ignore[arg-type]
            batch.task = self.loop.create_task(self._run(batch))
            self._tasks.add(batch.task)
        if self._timer is not None or len(batcher):
            self._set_timer()

    def _set_timer(self) -> None:
        tick = self.batcher.next_tick
        if self._timer is not None:
            if self._timer_at <= tick:
                return
            self._timer.cancel()
            self._timer = None
        if tick != float("inf"):
            self._timer_at = tick
            delay = max(0.0, tick - time.monotonic())
            self._timer = self.loop.call_later(delay, self._tick, context=self._context)

    def _tick(self) -> None:
        self._timer = None
        self._begin()

    async def _run(self, batch: Batch) -> None:
        entries = batch.entries
        batch.is_running = True
        try:
            if not batch.left:
                raise asyncio.CancelledError  # all have left in this very turn
            _enter(entries)
            answer = self._call([entry.item for entry in entries])
            if self._is_generator:
                await self._give_items(answer, entries)
            else:
                self._give(await answer, entries)
        except asyncio.CancelledError:
            error = RetinueServeException(f"a batch of {self.name} was cancelled")
            for entry in entries:
                entry.fail(error)
            raise
        except Exception as error:  # noqa: BLE001 - user code: it belongs to the callers
            for entry in entries:
                entry.fail(error)
        finally:
            self._tasks.discard(batch.task)
            batch.entries = ()  # else it and its entries would wait for the collector, holding results
            began, now = batch.began, time.monotonic()
            measures.ran(self._measured_as, len(entries), began - entries[0].arrived, now - began)
            self.batcher.ended(len(entries), began=began, now=now)
            if len(self.batcher) and not self._is_beginning:
                self._begin()

    def _check(self, results: Any, count: int) -> None:
        if type(results) is list and len(results) == count:
            return
        if not hasattr(results, "__len__"):
            raise TypeError(
                f"{self.name} is a batched function: it returns a list, not {type(results).__name__}"
            )
        if len(results) != count:
            raise RetinueServeException(
                f"{self.name} got a batch of {count} items and returned {len(results)} results"
            )

    def _give(self, results: Any, entries: Sequence[Entry]) -> None:
        self._check(results, len(entries))
        for entry, result in zip(entries, results, strict=True):
            future = entry.future
            if not future.done():
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    async def _give_items(self, generator: Any, entries: Sequence[Entry]) -> None:
        streams: list[ItemStream] = [entry.stream for entry in entries]  # type: ignore[misc]
        try:
            async for results in generator:
                self._check(results, len(entries))
                for stream, result in zip(streams, results, strict=True):
                    if _is_end(result):
                        stream.end()
                    elif isinstance(result, Exception):
                        stream.end(result)
                    else:
                        stream.put(result)
                if all(stream.is_over for stream in streams):
                    break
                for stream in streams:
                    await stream.wait_room()
        finally:
            await generator.aclose()
        for stream in streams:
            stream.end()


def _is_end(result: Any) -> bool:
    """Whether a generating batch has said that one item is complete: by the class, or an instance of it."""
    ends = (StopIteration, StopAsyncIteration)
    return isinstance(result, ends) or result is StopIteration or result is StopAsyncIteration


def _enter(entries: Sequence[Entry]) -> None:
    """The context of a batch: of a lone item its request's; else their model, and the first one's trace."""
    first = entries[0].context
    if len(entries) > 1:
        model_id = first.multiplexed_model_id
        first = RequestContext(app_name=first.app_name, multiplexed_model_id=model_id, trace=first.trace)
    request_context.set(first)
    batch_request_contexts.set([entry.context for entry in entries])


class ItemStream:
    """The results of one call, as the batch generates them."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._error: BaseException | None = None
        self.is_over = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    def put(self, item: Any) -> None:
        if not self.is_over:
            self._items.append(item)
            _wake(self._reader)

    def end(self, error: BaseException | None = None) -> None:
        if not self.is_over:
            self.is_over = True
            self._error = error
            _wake(self._reader)

    def close(self) -> None:
        """Nobody reads on."""
        self.is_over = True
        self._items.clear()
        _wake(self._writer)

    async def wait_room(self) -> None:
        while len(self._items) >= MAX_UNREAD and not self.is_over:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer

    def __aiter__(self) -> ItemStream:
        return self

    async def __anext__(self) -> Any:
        while not self._items:
            if self.is_over:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        _wake(self._writer)
        return self._items.popleft()


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
