"""Texts in, vectors out: a real model behind dynamic batching that knows what padding costs.

Requests of all clients meet in one method that computes them together. Texts of a batch are padded to its
longest one, so the size of a batch is not how many texts it has, but how many tokens with padding.
"""

import asyncio
from collections.abc import Sequence

import numpy as np
import torch
from starlette.exceptions import HTTPException
from starlette.requests import Request

from examples.minilm import Encoder, padded_tokens
from retinue import serve

MAX_BATCH_TOKENS = 4096  # with padding: about a second of one core
MAX_TEXTS = 256  # of one request


class Embedder:
    """Computes texts of different requests together. Other examples use it too."""

    def __init__(self) -> None:
        torch.set_num_threads(1)  # replicas are the parallelism; threads of several would only compete
        self._encoder = Encoder()
        self._encoder.encode(["the first run of a model is slower than all others"])

    async def embed(self, texts: Sequence[str]) -> np.ndarray:
        """A row for each text."""
        return np.stack(await asyncio.gather(*[self._embed(self._encoder.tokenize(text)) for text in texts]))

    # Not `async def`: it runs in a thread, so that the replica goes on accepting requests meanwhile.
    @serve.batch(max_batch_size=MAX_BATCH_TOKENS, batch_wait_timeout_s=0.01, batch_size_fn=padded_tokens)
    def _embed(self, tokenized: list[list[int]]) -> list[np.ndarray]:
        return list(self._encoder.encode_tokens(tokenized))


@serve.deployment(max_ongoing_requests=64, ray_actor_options={"num_cpus": 0.3})
class TextEmbeddings(Embedder):
    async def __call__(self, request: Request) -> dict[str, object]:
        """`{"texts": ["...", ...]}` to `{"embeddings": [[...], ...], "dimension": 384}`."""
        body = await request.json()
        texts = body.get("texts") if isinstance(body, dict) else None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise HTTPException(422, 'the body is {"texts": ["a text", ...]}')
        if not 1 <= len(texts) <= MAX_TEXTS:
            raise HTTPException(422, f"texts has 1 to {MAX_TEXTS} texts, not {len(texts)}")
        rows = await self.embed(texts)
        return {"embeddings": rows, "dimension": rows.shape[1]}


app = TextEmbeddings.bind()
