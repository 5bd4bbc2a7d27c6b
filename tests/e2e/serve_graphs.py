"""Applications of several deployments for the tests of calls; replicas import this module."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

from pydantic import BaseModel

from retinue import serve
from retinue.serve.handle import DeploymentHandle

TINY = {"num_cpus": 0.1}


class OwnError(Exception):
    """With more than a message."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code


@serve.deployment(ray_actor_options=TINY, num_replicas=2, max_ongoing_requests=50)
class Adder:
    def __init__(self, amount: int = 1) -> None:
        self.amount = amount
        self.cancelled = 0
        self.began = 0

    async def __call__(self, x: Any) -> Any:
        return x + self.amount

    async def slow(self, x: int, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return x + self.amount

    async def fail(self, code: int) -> None:
        raise OwnError(code, "of the user's own")

    async def items(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number + self.amount
            await asyncio.sleep(0)

    def thread_items(self, count: int) -> Iterator[int]:
        yield from range(count)

    async def broken_items(self) -> AsyncIterator[int]:
        yield 1
        raise OwnError(3, "in a stream")

    async def forever(self) -> None:
        self.began += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def facts(self) -> dict[str, int]:
        return {"pid": os.getpid(), "began": self.began, "cancelled": self.cancelled}


@serve.deployment(ray_actor_options=TINY, max_ongoing_requests=50)
class Batched:
    def __init__(self) -> None:
        self.sizes: list[int] = []

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.05)
    async def double(self, numbers: list[int]) -> list[Any]:
        self.sizes.append(len(numbers))
        await asyncio.sleep(0.01)
        return [OwnError(n, "one of a batch") if n < 0 else 2 * n for n in numbers]

    async def __call__(self, number: int) -> int:
        doubled: int = await self.double(number)
        return doubled

    async def taken(self) -> list[int]:
        return self.sizes


@serve.deployment(ray_actor_options=TINY, max_ongoing_requests=50)
class Graph:
    def __init__(
        self, first: DeploymentHandle[Any], second: DeploymentHandle[Any], others: Any = None
    ) -> None:
        self.first = first
        self.second = second
        self.others = others or {}

    async def __call__(self, x: int) -> int:
        """A chain: the first one's answer goes to the second one without waiting here."""
        answer: int = await self.second.remote(self.first.remote(x))
        return answer

    async def fan_out(self, count: int) -> list[int]:
        return list(await asyncio.gather(*(self.first.remote(n) for n in range(count))))

    async def either(self, x: int) -> int:
        chosen = self.others["even" if x % 2 == 0 else "odd"]
        answer: int = await chosen.remote(x)
        return answer

    async def stream(self, count: int) -> AsyncIterator[int]:
        async for item in self.first.options(stream=True).items.remote(count):
            yield item * 10

    async def nested_fail(self) -> str:
        try:
            await self.first.fail.remote(7)
        except OwnError as error:
            return f"caught {error.code}"
        return "nothing"

    async def fail_through(self) -> None:
        await self.first.fail.remote(8)

    async def forever(self) -> None:
        await self.first.forever.remote()


graph = Graph.bind(
    Adder.options(name="First").bind(1),
    Adder.options(name="Second").bind(10),
    {"even": Adder.options(name="Even").bind(100), "odd": Adder.options(name="Odd").bind(1000)},
)


@serve.deployment(ray_actor_options=TINY, num_replicas=2, max_ongoing_requests=20)
class Multi:
    def __init__(self) -> None:
        self.loads: list[str] = []

    @serve.multiplexed(max_num_models_per_replica=2)
    async def model(self, model_id: str) -> str:
        self.loads.append(model_id)
        await asyncio.sleep(0.01)
        return f"<{model_id}>"

    async def __call__(self) -> str:
        model: str = await self.model()
        return model

    async def facts(self) -> list[str]:
        return self.loads


# --- built from a config file


class Settings(BaseModel):
    amount: int = 1
    names: list[str] = []


def build(args: Settings) -> Any:
    return Named.bind(args.names, args.amount)


@serve.deployment(ray_actor_options=TINY)
class Named:
    def __init__(self, names: list[str], amount: int) -> None:
        self.told = {"names": names, "amount": amount}

    async def __call__(self) -> dict[str, Any]:
        return self.told
