"""A language model that streams its words as server-sent events, and stops when its reader leaves.

Each word is an event as soon as it is there. A reader that leaves ends the generator within milliseconds: the
work for it stops, and `/stats` counts it.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Annotated

import torch
from fastapi import FastAPI, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from examples.token_stream.model import trained
from retinue import serve

api = FastAPI(title="A small language model, streamed")


class Stats(BaseModel):
    """Streams of this replica. `cancelled`: their readers left before the end."""

    running: int = 0
    finished: int = 0
    cancelled: int = 0
    words: int = 0


@serve.deployment(max_ongoing_requests=100, ray_actor_options={"num_cpus": 0.2})
@serve.ingress(api)
class TokenStream:
    def __init__(self, epochs: int, topics: list[str] | None) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self._model = trained(epochs, topics)
        self._stats = Stats()

    @api.get("/generate")
    async def generate(
        self,
        prompt: Annotated[str, Query(max_length=500)] = "The try statement",
        words: Annotated[int, Query(ge=1, le=10_000)] = 60,
        temperature: Annotated[float, Query(ge=0, le=2)] = 0.6,
        seed: Annotated[int | None, Query(description="The same text for the same seed.")] = None,
        pause_s: Annotated[
            float, Query(ge=0, le=1, description="After each word, as if it took that.")
        ] = 0.02,
    ) -> StreamingResponse:
        """Events with `{"word": ...}` each, then one named `done`. (Try it with `curl -N`.)"""
        text = islice(self._model.write(prompt, temperature=temperature, seed=seed), words)
        return StreamingResponse(self._events(text, pause_s), media_type="text/event-stream")

    async def _events(self, text: Iterator[str], pause_s: float) -> AsyncIterator[str]:
        self._stats.running += 1
        count = 0
        is_whole = False
        try:
            for word in text:
                yield event({"word": word})
                count += 1
                await asyncio.sleep(pause_s)  # also lets others have their turn
            yield event({"words": count}, name="done")
            is_whole = True
        finally:  # also if the reader has left: then asyncio.CancelledError is raised above
            self._stats.running -= 1
            self._stats.words += count
            self._stats.finished += is_whole
            self._stats.cancelled += not is_whole

    @api.get("/stats")
    async def stats(self) -> Stats:
        return self._stats


def event(content: dict[str, object], name: str = "") -> str:
    """One server-sent event."""
    return (f"event: {name}\n" if name else "") + f"data: {json.dumps(content)}\n\n"


class Settings(BaseModel):
    """Arguments of `build`."""

    epochs: int = Field(default=5, ge=1, description="Passes over the text; each takes 1 to 2 seconds.")
    topics: list[str] | None = Field(default=None, description="What it has read; all topics unless set.")


def build(settings: Settings) -> serve.Application:
    return TokenStream.bind(settings.epochs, settings.topics)
