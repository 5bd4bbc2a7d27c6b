"""Sending what HTTP handlers answer: one complete reply, or a head and chunks as they come.

The first chunk goes with the head, so that code which fails before it becomes a 500 and not a broken stream.
Chunks that come in one turn of the loop are joined by the connection (`core.doors`), one frame for all.

Lives here: streams of answers. Does not: what an answer is (`http`), slots (`door`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from retinue.serve.context import RequestContext, request_context
from retinue.serve.messages import pack
from retinue.serve.replica.http import Answer, chunk_of
from retinue.serve.replica.measures import note_failure
from retinue.serve.replica.user_code import close

# A generator that never awaits gives the loop to others after so long.
SLICE_S = 0.005
MAX_UNREAD_ITEMS = 64  # of a request that goes on without its client


class Turn:
    """When a generator has had the loop for long enough. Those that await give up a turn in 5 ms too."""

    __slots__ = ("_end",)

    def __init__(self) -> None:
        self._end = time.monotonic() + SLICE_S

    def is_over(self) -> bool:
        now = time.monotonic()
        if now < self._end:
            return False
        self._end = now + SLICE_S
        return True


async def begin(answer: Answer) -> AsyncIterator[bytes]:
    """Wait for the first chunk; then a stream of items. Raises what the code raises before that chunk."""
    try:
        first = chunk_of(await anext(answer.chunks))
    except StopAsyncIteration:
        request_context.get().status = answer.head.status
        return _finish(answer, pack(answer.head))
    except BaseException:
        await close(answer.chunks)
        raise
    entered = request_context.get()
    entered.status = answer.head.status
    return _go_on(answer, pack(answer.head, first), entered)


async def single(item: bytes) -> AsyncIterator[bytes]:
    yield item


async def _finish(answer: Answer, first: bytes) -> AsyncIterator[bytes]:
    yield first
    if answer.after is not None:
        await answer.after()


async def _go_on(answer: Answer, first: bytes, entered: RequestContext) -> AsyncIterator[bytes]:
    chunks = answer.chunks
    try:
        yield first
        turn = Turn()
        async for chunk in chunks:
            yield chunk if type(chunk) is bytes else chunk_of(chunk)
            if turn.is_over():
                await asyncio.sleep(0)
    except BaseException as error:
        note_failure(entered, error)
        raise
    finally:
        await close(chunks)
    if answer.after is not None:
        await answer.after()


class Shielded:
    """An answer whose code runs to its end, also when its client has left (x-request-disconnect-disabled)."""

    def __init__(self, work: Coroutine[Any, Any, bytes | AsyncIterator[bytes]]) -> None:
        self._items: deque[bytes] = deque()
        self._reply: bytes | None = None
        self._is_begun = False
        self._has_left = False
        self._changed = asyncio.Event()
        self._task = asyncio.ensure_future(self._run(work))

    async def _run(self, work: Coroutine[Any, Any, bytes | AsyncIterator[bytes]]) -> None:
        try:
            answer = await work
            self._is_begun = True
            if isinstance(answer, bytes):
                self._reply = answer
                return
            try:
                async for item in answer:
                    if self._has_left:
                        continue
                    self._items.append(item)
                    self._changed.set()
                    while len(self._items) >= MAX_UNREAD_ITEMS and not self._has_left:
                        await self._wait()
            finally:
                await close(answer)
        finally:
            self._changed.set()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def begin(self) -> bytes | AsyncIterator[bytes]:
        """The reply, or items. Raises what the code raised."""
        try:
            while not (self._items or self._task.done()):
                await self._wait()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if self._task.done() and self._task.exception() is not None and not self._items:
            self._task.result()
        return self if self._reply is None else self._reply

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._items:
            if self._task.done():
                self._task.result()
                raise StopAsyncIteration
            await self._wait()
        item = self._items.popleft()
        self._changed.set()
        return item

    async def aclose(self) -> None:
        """Nobody reads on. Returns when the code has, whoever cancels meanwhile."""
        self._has_left = True
        self._items.clear()
        self._changed.set()
        while not self._task.done():
            try:
                await asyncio.wait({self._task})
            except asyncio.CancelledError:
                continue
        self._task.exception()
