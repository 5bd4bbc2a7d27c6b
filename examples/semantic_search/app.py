"""Search Python's reference by meaning: a web API, an embedder, and an index that keeps its state.

    Search (FastAPI, typed, /docs)  ->  Embedder (2 replicas, batched)
                                    ->  Index (passages and their vectors, in memory)

The vector of a question goes from embedder to index without a stop in between: Search passes it on before it
is computed. At its first start the index has all passages embedded by the replicas of Embedder, in some
seconds; the result is kept for the next start.
"""

import asyncio
import io
import logging
from pydoc_data.topics import topics as all_topics
from typing import Annotated

import numpy as np
from fastapi import FastAPI, Query
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, Field, field_validator

from examples.cache import cache_file, keep
from examples.semantic_search.passages import Passage, passages
from examples.text_embeddings.app import Embedder
from retinue import serve
from retinue.serve.handle import DeploymentHandle

logger = logging.getLogger("retinue.serve")

TEXTS_AT_ONCE = 16


class Hit(BaseModel):
    """A passage that answers. `score`: 1 means the same as the question, 0 has nothing to do with it."""

    topic: str
    heading: str
    score: float
    text: str


class Answer(BaseModel):
    question: str
    searched: int = Field(description="How many passages the index holds.")
    hits: list[Hit]


class NewPassage(BaseModel):
    text: str = Field(min_length=1, max_length=2000)
    topic: str = Field(default="note", max_length=100)
    heading: str = Field(default="", max_length=200)


class Size(BaseModel):
    passages: int


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Index:
    """Passages and their vectors. Its state is in memory: there is one replica of it."""

    async def __init__(self, embedder: DeploymentHandle, topics: list[str] | None = None) -> None:
        self._embedder = embedder
        self._passages = passages(topics)
        self._vectors = await self._embedded([passage.searched for passage in self._passages])

    def search(self, vector: np.ndarray, question: str, k: int) -> Answer:
        scores = self._vectors @ vector[0]
        best = np.argsort(-scores)[:k]
        hits = [_hit(self._passages[index], float(scores[index])) for index in best]
        return Answer(question=question, searched=len(self._passages), hits=hits)

    async def add(self, passage: Passage) -> int:
        """How many there are then."""
        vector = await self._embedder.embed.remote([passage.searched])
        self._passages.append(passage)
        self._vectors = np.concatenate([self._vectors, vector])
        return len(self._passages)

    # --- at the start

    async def _embedded(self, texts: list[str]) -> np.ndarray:
        """Their vectors; those of the last start, if it had the same texts and the same model."""
        file = cache_file("semantic-search.npy", texts)
        if file.exists():
            kept: np.ndarray = np.load(file)
            if np.allclose(kept[:1], await self._embedder.embed.remote(texts[:1]), atol=1e-3):
                logger.info("%d vectors come from %s", len(kept), file)
                return kept
        vectors = await self._embed_all(texts)
        content = io.BytesIO()
        np.save(content, vectors)
        keep(file, content.getvalue())
        return vectors

    async def _embed_all(self, texts: list[str]) -> np.ndarray:
        """A few texts a request: each finds a replica that has room, so both are busy to the end."""
        logger.info("embedding %d passages", len(texts))
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # little padding
        parts = [order[start : start + TEXTS_AT_ONCE] for start in range(0, len(order), TEXTS_AT_ONCE)]
        rows = await asyncio.gather(
            *[self._embedder.embed.remote([texts[index] for index in part]) for part in parts]
        )
        vectors = np.empty((len(texts), rows[0].shape[1]), np.float32)
        vectors[order] = np.concatenate(rows)
        return vectors


def _hit(passage: Passage, score: float) -> Hit:
    return Hit(topic=passage.topic, heading=passage.heading, score=round(score, 4), text=passage.text)


api = FastAPI(
    title="Python's reference, searched by meaning",
    description="Questions in plain words; answers are passages of the text that `help()` shows.",
)


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
@serve.ingress(api)
class Search:
    def __init__(self, embedder: DeploymentHandle, index: DeploymentHandle) -> None:
        self._embedder = embedder
        self._index = index

    @api.get("/search")
    async def search(
        self,
        q: Annotated[str, Query(min_length=1, max_length=500, examples=["how do I catch an exception"])],
        k: Annotated[int, Query(ge=1, le=20, description="How many passages.")] = 5,
    ) -> Answer:
        """The passages that are nearest to the question, best first."""
        vector = self._embedder.embed.remote([q])  # not awaited: it goes straight to the index
        return await self._index.search.remote(vector, q, k)

    @api.post("/passages", status_code=201)
    async def add(self, new: NewPassage) -> Size:
        """Add a passage, until the index is started again."""
        passage = Passage(new.topic, new.heading or new.topic, new.text, new.text)
        return Size(passages=await self._index.add.remote(passage))

    @api.get("/", include_in_schema=False)
    async def home(self) -> RedirectResponse:
        return RedirectResponse("docs")


class Settings(BaseModel):
    """Arguments of `build`, as config files and `serve run ... key=value` give them."""

    topics: list[str] | None = Field(default=None, description="What to search; all topics unless set.")

    @field_validator("topics", mode="before")
    @classmethod
    def _may_be_one_text(cls, topics: object) -> object:
        """From a command line: topics=try,raise."""
        return topics.split(",") if isinstance(topics, str) else topics

    @field_validator("topics")
    @classmethod
    def _are_known(cls, topics: list[str] | None) -> list[str] | None:
        unknown = sorted(set(topics or ()) - set(all_topics))
        if unknown:
            raise ValueError(f"help() has no topic {', '.join(map(repr, unknown))}")
        return topics


def build(settings: Settings) -> serve.Application:
    deployment = serve.deployment(
        Embedder, num_replicas=2, max_ongoing_requests=16, ray_actor_options={"num_cpus": 0.3}
    )
    embedder = deployment.bind()
    return Search.bind(embedder, Index.bind(embedder, settings.topics))
