"""Applications of `test_serve_monitoring`. Replicas import this module: it imports no test tools."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from typing import Any

from retinue import serve

TINY = {"num_cpus": 0.1}
logger = logging.getLogger("retinue.serve")


@serve.deployment(
    num_replicas=2, ray_actor_options=TINY, logging_config={"encoding": "JSON", "log_level": "DEBUG"}
)
class Model:
    def __init__(self) -> None:
        logger.debug("constructed")

    async def predict(self, number: int) -> int:
        logger.info("predicting", extra={"number": number})
        if number < 0:
            raise ValueError("negative")
        return number + 1

    async def items(self, count: int) -> AsyncIterator[int]:
        for item in range(count):
            yield item

    @serve.batch(max_batch_size=4)
    async def batched(self, numbers: list[int]) -> list[int]:
        return numbers

    @serve.multiplexed(max_num_models_per_replica=1)
    async def load(self, model_id: str) -> str:
        return model_id

    async def both(self, number: int) -> int:
        await self.load(f"m{number % 2}")
        return await self.batched(number)

    async def die(self) -> None:
        logger.error("the last words")
        os._exit(3)


@serve.deployment(ray_actor_options=TINY, logging_config={"enable_access_log": False})
class Front:
    def __init__(self, model: Any) -> None:
        self._model = model

    async def __call__(self, request: Any) -> Any:
        number = int(request.query_params["n"])
        return {"answer": await self._model.predict.remote(number)}
