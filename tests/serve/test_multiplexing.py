"""Models in one replica: which are kept, concurrent loads, unloading, what routers hear."""

import asyncio
import gc
from collections.abc import Awaitable, Iterator
from typing import Any

import pytest

from retinue.serve.context import RequestContext, request_context
from retinue.serve.multiplexing import multiplexed, registry


def run(test: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test

    asyncio.run(bounded())


@pytest.fixture
def told() -> Iterator[list[tuple[list[str], list[str]]]]:
    heard: list[tuple[list[str], list[str]]] = []
    registry.listener = lambda loaded, loading: heard.append((list(loaded), list(loading)))
    yield heard
    registry.listener = None


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """No models of other tests, whose hosts are in cycles."""
    gc.collect()
    yield
    gc.collect()


class Weights:
    ended: list[str] = []  # noqa: RUF012

    def __init__(self, name: str) -> None:
        self.name = name

    def __del__(self) -> None:
        Weights.ended.append(self.name)


class Host:
    def __init__(self) -> None:
        self.loads: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        Weights.ended.clear()

    @multiplexed(max_num_models_per_replica=2)
    async def model(self, model_id: str) -> Weights:
        self.loads.append(model_id)
        await self.gate.wait()
        if model_id == "bad":
            raise OSError("no such weights")
        return Weights(model_id)


def test_a_loaded_model_is_kept() -> None:
    async def test() -> None:
        host = Host()
        assert await host.model("a") is await host.model("a")
        assert host.loads == ["a"]

    run(test())


def test_the_least_recently_used_leaves_and_its_end_is_run_once() -> None:
    async def test() -> None:
        host = Host()
        for model_id in "abac":
            await host.model(model_id)
        assert Weights.ended == ["b"]
        await host.model("b")
        assert Weights.ended == ["b", "a"]
        await registry.unload_all()
        assert sorted(Weights.ended) == ["a", "b", "b", "c"]

    run(test())


def test_concurrent_requests_for_a_model_are_one_load() -> None:
    async def test() -> None:
        host = Host()
        host.gate.clear()
        asking = [asyncio.ensure_future(host.model("a")) for _ in range(5)]
        await asyncio.sleep(0)
        asking[0].cancel()
        host.gate.set()
        models = await asyncio.gather(*asking[1:])
        assert len({id(model) for model in models}) == 1
        assert host.loads == ["a"]

    run(test())


def test_more_models_than_places_load_in_turn() -> None:
    async def test() -> None:
        host = Host()
        host.gate.clear()
        asking = [asyncio.ensure_future(host.model(model_id)) for model_id in "abcd"]
        while len(host.loads) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert host.loads == ["a", "b"]
        host.gate.set()
        assert [model.name for model in await asyncio.gather(*asking)] == list("abcd")
        assert len(registry.loaded()) == 2

    run(test())


def test_a_load_that_fails_is_tried_again() -> None:
    async def test() -> None:
        host = Host()
        for _ in range(2):
            with pytest.raises(OSError, match="no such weights"):
                await host.model("bad")
        assert host.loads == ["bad", "bad"]

    run(test())


def test_routers_hear_of_each_change(told: list[Any]) -> None:
    async def test() -> None:
        host = Host()
        await host.model("a")
        await host.model("b")
        await host.model("c")
        assert told == [
            ([], ["a"]),
            (["a"], []),
            (["a"], ["b"]),
            (["a", "b"], []),
            (["a", "b"], ["c"]),
            (["b"], ["c"]),
            (["b", "c"], []),
        ]

    run(test())


def test_the_requests_own_model_is_the_default() -> None:
    async def test() -> None:
        host = Host()
        request_context.set(RequestContext(multiplexed_model_id="m"))
        assert (await host.model()).name == "m"
        request_context.set(RequestContext())
        with pytest.raises(ValueError, match="serve_multiplexed_model_id"):
            await host.model()
        with pytest.raises(TypeError):
            await host.model(5)

    run(test())


def test_functions_can_be_loaders_too() -> None:
    @multiplexed
    async def load(model_id: str) -> str:
        return model_id * 2

    async def test() -> None:
        assert await load("a") == "aa"
        assert await load(model_id="b") == "bb"

    run(test())


def test_what_cannot_be_a_loader_is_refused() -> None:
    with pytest.raises(TypeError, match="async def"):
        multiplexed(lambda model_id: None)
    with pytest.raises(TypeError, match="one argument"):

        @multiplexed
        async def none() -> None: ...

    with pytest.raises(ValueError, match="positive"):
        multiplexed(max_num_models_per_replica=0)
    with pytest.raises(TypeError, match="int"):
        multiplexed(max_num_models_per_replica=1.5)  # type: ignore[arg-type]
