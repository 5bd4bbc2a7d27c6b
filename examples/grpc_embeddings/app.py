"""The embedder of text_embeddings behind gRPC: one call for many texts, and a stream of texts to vectors.

The service is in embeddings.proto; the config file names the generated function that registers it. Methods of
the deployment have the names of the service's methods, and get and return its messages.
"""

import asyncio
from collections.abc import AsyncIterator

import grpc
import numpy as np

from examples.grpc_embeddings.embeddings_pb2 import Text, Texts, Vector, Vectors
from examples.text_embeddings.app import MAX_TEXTS, Embedder
from retinue import serve
from retinue.serve.grpc_util import RetinueServegRPCContext, gRPCInputStream

AHEAD = 64  # texts of a stream that are read before their vectors are sent


@serve.deployment(max_ongoing_requests=64, ray_actor_options={"num_cpus": 0.2})
class Embeddings(Embedder):
    async def Embed(self, request: Texts, grpc_context: RetinueServegRPCContext) -> Vectors:
        if not 1 <= len(request.texts) <= MAX_TEXTS:
            grpc_context.set_code(grpc.StatusCode.INVALID_ARGUMENT)
            grpc_context.set_details(f"there are 1 to {MAX_TEXTS} texts in a call, not {len(request.texts)}")
            return Vectors()
        rows = await self.embed(list(request.texts))
        return Vectors(vectors=[Vector(values=row) for row in rows])

    async def EmbedEach(self, texts: gRPCInputStream[Text]) -> AsyncIterator[Vector]:
        """Vectors in the texts' order, each as soon as it is there; texts are read on meanwhile."""
        begun: asyncio.Queue[tuple[str, asyncio.Task[np.ndarray]] | None] = asyncio.Queue(AHEAD)

        async def read() -> None:
            async for text in texts:
                await begun.put((text.id, tasks.create_task(self.embed([text.text]))))
            await begun.put(None)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read())
            while (item := await begun.get()) is not None:
                name, task = item
                yield Vector(id=name, values=(await task)[0])


app = Embeddings.bind()
