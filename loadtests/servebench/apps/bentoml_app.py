"""BentoML: one worker, services chosen by SERVEBENCH_WORK. Started by `bentoml serve`."""

import asyncio
import os
from collections.abc import AsyncGenerator

import bentoml
from common import BATCH_SIZE, BATCH_WAIT_S, CHUNKS, PATH, double, embedder, event, timed_event

QUIET = {"access": {"enabled": False}}


@bentoml.service(workers=1, traffic={"timeout": 30}, logging=QUIET)
class Echo:
    @bentoml.api(route=PATH)
    async def echo(self, text: str, n: int) -> dict:
        return {"text": text, "n": n}


@bentoml.service(workers=1, traffic={"timeout": 30}, logging=QUIET)
class Stream:
    @bentoml.api(route=PATH)
    async def stream(self, chunks: int = CHUNKS, pause_ms: int = 0) -> AsyncGenerator[str, None]:
        for number in range(chunks):
            if pause_ms:
                await asyncio.sleep(pause_ms / 1e3 if number else 0)
                yield timed_event(number)
            else:
                yield event(number)


@bentoml.service(workers=1, traffic={"timeout": 30}, logging=QUIET)
class Batch:
    @bentoml.api(
        route=PATH, batchable=True, max_batch_size=BATCH_SIZE, max_latency_ms=int(BATCH_WAIT_S * 1e3) + 100
    )
    async def double(self, n: list[int]) -> list[int]:
        return double(n)


@bentoml.service(workers=1, traffic={"timeout": 60}, logging=QUIET)
class Embed:
    def __init__(self) -> None:
        self.model = embedder()

    @bentoml.api(route=PATH, batchable=True, max_batch_size=BATCH_SIZE, max_latency_ms=2000)
    def embed(self, text: list[str]) -> list[list[float]]:
        return self.model.embed(text)


service = {"echo": Echo, "stream": Stream, "batch": Batch, "embed": Embed}[os.environ["SERVEBENCH_WORK"]]
