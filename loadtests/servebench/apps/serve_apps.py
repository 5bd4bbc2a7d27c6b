"""Applications for Retinue and Ray alike: their serve libraries have the same names.

The module is chosen by SERVEBENCH_MODULE, since deployments are made when this file is imported.
"""

import asyncio
import importlib
import os

from common import BATCH_SIZE, BATCH_WAIT_S, CHUNKS, MAX_ONGOING, double, embedder, event, timed_event
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse

serve = importlib.import_module(os.environ["SERVEBENCH_MODULE"] + ".serve")


@serve.deployment(max_ongoing_requests=MAX_ONGOING)
class Echo:
    async def __call__(self, request: Request):
        return await request.json()


@serve.deployment(max_ongoing_requests=MAX_ONGOING)
class Raw:
    async def __call__(self, request: Request):
        return PlainTextResponse(str(len(await request.body())))


@serve.deployment(max_ongoing_requests=MAX_ONGOING)
class Stream:
    async def __call__(self, request: Request):
        pause_ms = int(request.query_params.get("pause_ms", 0))
        chunks = int(request.query_params.get("chunks", CHUNKS))
        return StreamingResponse(self._events(chunks, pause_ms / 1e3), media_type="text/event-stream")

    async def _events(self, chunks: int, pause_s: float):
        for number in range(chunks):
            if pause_s:
                await asyncio.sleep(pause_s if number else 0)
                yield timed_event(number)
            else:
                yield event(number)


@serve.deployment(max_ongoing_requests=MAX_ONGOING)
class Batch:
    @serve.batch(max_batch_size=BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_S)
    async def double(self, numbers: list[int]) -> list[int]:
        return double(numbers)

    async def __call__(self, request: Request):
        return {"n": await self.double((await request.json())["n"])}


@serve.deployment(max_ongoing_requests=MAX_ONGOING)
class Embed:
    def __init__(self) -> None:
        self.model = embedder()

    @serve.batch(max_batch_size=BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_S)
    async def embed(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self.model.embed, texts)

    async def __call__(self, request: Request):
        return {"vector": await self.embed((await request.json())["text"])}


@serve.deployment(max_ongoing_requests=MAX_ONGOING)
class Callee:
    async def __call__(self, value: int) -> int:
        return value


@serve.deployment(max_ongoing_requests=MAX_ONGOING)
class Caller:
    """Calls another deployment `n` times, one after the other; answers the times that it took, in us."""

    def __init__(self, callee) -> None:
        self.callee = callee

    async def __call__(self, request: Request):
        import time

        times = []
        for number in range(int(request.query_params["n"])):
            started = time.perf_counter()
            assert await self.callee.remote(number) == number
            times.append((time.perf_counter() - started) * 1e6)
        return times


WORKS = {
    "echo": Echo.bind,
    "raw": Raw.bind,
    "stream": Stream.bind,
    "batch": Batch.bind,
    "embed": Embed.bind,
    "call": lambda: Caller.bind(Callee.bind()),
}

echo = Echo.bind()
