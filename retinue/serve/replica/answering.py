"""Sending what HTTP handlers answer: one complete reply, or a head and chunks as they come.

The first chunk goes with the head, so that code which fails before it becomes a 500 and not a broken stream.
Chunks that come in one turn of the loop are joined by the connection (`core.doors`), one frame for all.

Lives here: streams of answers. Does not: what an answer is (`http`), slots (`door`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from retinue.serve.messages import pack
from retinue.serve.replica.http import Answer, chunk_of
from retinue.serve.replica.user_code import close

# A generator that never awaits gives the loop to others after so long.
SLICE_S = 0.005


async def begin(answer: Answer) -> AsyncIterator[bytes]:
    """Wait for the first chunk; then a stream of items. Raises what the code raises before that chunk."""
    try:
        first = chunk_of(await anext(answer.chunks))
    except StopAsyncIteration:
        return _finish(answer, pack(answer.head))
    except BaseException:
        await close(answer.chunks)
        raise
    return _go_on(answer, pack(answer.head, first))


async def _finish(answer: Answer, first: bytes) -> AsyncIterator[bytes]:
    yield first
    if answer.after is not None:
        await answer.after()


async def _go_on(answer: Answer, first: bytes) -> AsyncIterator[bytes]:
    chunks = answer.chunks
    try:
        yield first
        until = time.monotonic() + SLICE_S
        async for chunk in chunks:
            yield chunk if type(chunk) is bytes else chunk_of(chunk)
            if time.monotonic() > until:
                # Also for those that have just awaited: it costs them a turn in 5 ms.
                await asyncio.sleep(0)
                until = time.monotonic() + SLICE_S
    finally:
        await close(chunks)
    if answer.after is not None:
        await answer.after()
