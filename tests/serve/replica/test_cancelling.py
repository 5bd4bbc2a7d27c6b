"""Clients that leave: what user code of each kind hears, and when its slot is free."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from retinue.core.doors import DoorRefusedError
from retinue.serve.context import get_request_context
from retinue.serve.messages import REFUSED_FULL, REPLICA_DOOR, CallHead
from retinue.serve.payload import dump_call
from tests.serve.replica.conftest import Client, Place, Test, http_body

Run = Callable[[Test], None]
begun = threading.Event()
may_end = threading.Event()
seen: list[Any] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    begun.clear()
    may_end.clear()
    seen.clear()


class Model:
    async def wait(self) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    def compute(self) -> None:
        begun.set()
        may_end.wait()
        seen.append(get_request_context().is_cancelled)

    async def generate(self) -> AsyncIterator[int]:
        try:
            for n in range(10**9):
                yield n
        finally:
            begun.set()
            seen.append("closed")

    def produce(self) -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            seen.append("closed")

    async def __call__(self) -> str:
        begun.set()
        await asyncio.to_thread(may_end.wait)
        seen.append("done")
        return "ok"


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - threads set it too
        await asyncio.sleep(0.001)


async def leave(client: Client, method: str) -> None:
    call = asyncio.ensure_future(client.call(method))
    await until(begun.is_set)
    call.cancel()
    await asyncio.wait({call})


def test_coroutines_are_cancelled_at_once(run: Run) -> None:
    async def test(place: Place) -> None:
        client = await place.start(Model)
        await leave(client, "wait")
        await place.idle()
        assert seen == ["cancelled"]

    run(test)


def test_threads_are_told_and_count_until_they_return(run: Run) -> None:
    async def test(place: Place) -> None:
        client = await place.start(Model, limit=1)
        await leave(client, "compute")
        body = dump_call(CallHead("compute"), (), {}, [])
        with pytest.raises(DoorRefusedError) as refused:
            await client.connection.call(REPLICA_DOOR, "handle", body)
        assert refused.value.reason == REFUSED_FULL
        assert place.slots.load == 1
        may_end.set()
        await place.idle()
        assert seen == [True]

    run(test)


@pytest.mark.parametrize("method", ["generate", "produce"])
def test_generators_are_closed(run: Run, method: str) -> None:
    async def test(place: Place) -> None:
        client = await place.start(Model)
        body = dump_call(CallHead(method), (), {}, [])
        stream = client.connection.stream(REPLICA_DOOR, "handle", body)
        assert [len(await anext(stream)) > 0 for _ in range(100)] == [True] * 100
        await stream.aclose()
        await place.idle()
        assert seen == ["closed"]

    run(test)


def test_a_generator_that_never_awaits_lets_others_run(run: Run) -> None:
    async def test(place: Place) -> None:
        client, other = await place.start(Model), await place.connect()
        body = dump_call(CallHead("generate"), (), {}, [])
        async with client.connection.stream(REPLICA_DOOR, "handle", body) as stream:
            reading = asyncio.ensure_future(_read(stream))
            may_end.set()
            assert (await other.http())[2] == b"ok"
            reading.cancel()
            await asyncio.wait({reading})

    run(test)


async def _read(stream: Any) -> None:
    async for _ in stream:
        pass


def test_a_request_may_ask_to_be_finished_without_its_client(run: Run) -> None:
    async def test(place: Place) -> None:
        client = await place.start(Model)
        body = http_body(ignores_disconnect=True)
        asking = asyncio.ensure_future(client.connection.ask(REPLICA_DOOR, "http", body))
        await until(begun.is_set)
        asking.cancel()
        await asyncio.wait({asking})
        assert place.slots.load == 1
        may_end.set()
        await place.idle()
        assert seen == ["done"]
        assert await client.connection.ask(REPLICA_DOOR, "http", body)

    run(test)


def test_a_lost_connection_cancels_its_requests(run: Run) -> None:
    async def test(place: Place) -> None:
        client = await place.start(Model)
        call = asyncio.ensure_future(client.call("wait"))
        await until(begun.is_set)
        client.connection.close()
        await asyncio.wait({call})
        await place.idle()
        assert seen == ["cancelled"]

    run(test)
