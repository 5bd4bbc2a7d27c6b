"""Replicas as actors of a real cluster: their life from constructor to drain, and the door between."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import retinue
from retinue import cloudpickle
from retinue.core import doors
from retinue.core.doors import DoorRefusedError
from retinue.serve.messages import (
    EVENT_DRAINING,
    EVENT_MODELS,
    EVENT_ROUTING_STATS,
    EVENT_SLOT,
    REFUSED_FULL,
    REPLICA_DOOR,
    CallHead,
    DeploymentSpec,
    ReplicaEvent,
    ReplicaStarted,
    decode,
    encode,
)
from retinue.serve.multiplexing import multiplexed
from retinue.serve.payload import dump_call
from retinue.serve.replica.actor import ReplicaActor
from tests.serve.replica.conftest import Client, http_body

TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    retinue.init(num_cpus=4)
    yield
    retinue.shutdown()


Test = Callable[[Any, ReplicaStarted, Client], Awaitable[None]]


def with_replica(definition: Any, test: Test, *args: Any, **config: Any) -> None:
    """Run a test with a replica of the class."""
    spec = DeploymentSpec(
        "Model", json.dumps(config).encode(), cloudpickle.dumps(definition), cloudpickle.dumps((args, {}))
    )
    actor = retinue.remote(ReplicaActor).options(num_cpus=0).remote("app#Model#x1", "app", encode(spec), 0, 2)

    async def connected() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            started = await actor.initialize.remote()
            async with await doors.connect(started.address) as connection:
                await test(actor, started, Client(connection))

    try:
        asyncio.run(connected())
    finally:
        retinue.kill(actor)


class Model:
    async def __init__(self, path: str = "") -> None:
        self.path = path
        self.config: Any = None
        self.held = asyncio.Event()
        self.is_ill = False

    async def __call__(self, request: Any) -> dict[str, str]:
        return {"path": request.url.path}

    async def hold(self) -> str:
        await self.held.wait()
        return "held"

    def compute(self) -> None:
        self.begun = True
        while not retinue.get_runtime_context().is_canceled():
            time.sleep(0.001)

    async def has_begun(self) -> bool:
        return hasattr(self, "begun")

    async def context(self) -> list[Any]:
        from retinue.serve.context import get_replica_context, get_request_context

        replica, request = get_replica_context(), get_request_context()
        assert replica.servable_object is self
        return [replica.app_name, replica.deployment, replica.replica_tag, replica.rank, request.request_id]

    async def reconfigure(self, config: Any) -> None:
        self.config = config

    async def get_config(self) -> Any:
        return self.config

    async def become_ill(self) -> None:
        self.is_ill = True

    def check_health(self) -> None:
        if self.is_ill:
            raise RuntimeError("ill")

    def record_autoscaling_stats(self) -> dict[str, float]:
        return {"tokens": 3.0}

    async def record_routing_stats(self) -> dict[str, Any]:
        return {"cache": [1, 2]}

    @multiplexed(max_num_models_per_replica=1)
    async def load(self, model_id: str) -> str:
        return f"model {model_id}"

    async def use(self) -> Any:
        return await self.load()

    async def __del__(self) -> None:
        if self.path:
            Path(self.path).write_text("ended")  # noqa: ASYNC240 - its end


@pytest.mark.usefixtures("cluster")
class TestReplica:
    def test_it_answers_http_and_calls(self) -> None:
        async def test(actor: Any, started: ReplicaStarted, client: Client) -> None:
            assert started.pid > 0
            assert not started.is_asgi
            status, _, body = await client.http("GET", "/x", headers=[(b"host", b"h")])
            assert (status, body) == (200, b'{"path":"/x"}')
            assert await client.call("context") == ["app", "Model", "x1", 0, "r1"]

        with_replica(Model, test)

    def test_the_constructors_error_is_the_users(self) -> None:
        class Broken:
            def __init__(self) -> None:
                raise KeyError("no weights")

        async def test(actor: Any, started: ReplicaStarted, client: Client) -> None:
            raise AssertionError

        with pytest.raises(KeyError, match="no weights"):
            with_replica(Broken, test)

    def test_user_config_arrives_at_the_start_and_later(self) -> None:
        async def test(actor: Any, started: ReplicaStarted, client: Client) -> None:
            assert await client.call("get_config") == {"a": 1}
            config = json.dumps({"user_config": {"a": 2}, "max_ongoing_requests": 9}).encode()
            await actor.reconfigure.remote(config, 1, 3)
            assert await client.call("get_config") == {"a": 2}
            assert (await client.call("context"))[3] == 1

        with_replica(Model, test, user_config={"a": 1})

    def test_health_is_the_users(self) -> None:
        async def test(actor: Any, started: ReplicaStarted, client: Client) -> None:
            await actor.check_health.remote()
            await client.call("become_ill")
            with pytest.raises(RuntimeError, match="ill"):
                await actor.check_health.remote()
            assert (await actor.stats.remote()).custom == {"tokens": 3.0}

        with_replica(Model, test)

    def test_a_full_replica_refuses_and_tells_when_a_slot_is_free(self) -> None:
        async def test(actor: Any, started: ReplicaStarted, client: Client) -> None:
            events = client.connection.stream(REPLICA_DOOR, "events")
            assert decode(ReplicaEvent, await anext(events)).kind == EVENT_ROUTING_STATS
            held = asyncio.ensure_future(client.call("hold"))
            body = dump_call(CallHead("get_config"), (), {}, [])
            while (await actor.stats.remote()).ongoing == 0:
                pass
            with pytest.raises(DoorRefusedError) as refused:
                await client.connection.call(REPLICA_DOOR, "handle", body)
            assert refused.value.reason == REFUSED_FULL
            assert (await actor.stats.remote()).ongoing == 1
            held.cancel()
            event = decode(ReplicaEvent, await anext(events))
            assert event.kind == EVENT_SLOT
            await client.call("get_config")

        with_replica(Model, test, max_ongoing_requests=1)

    def test_threads_can_ask_whether_they_are_cancelled(self) -> None:
        async def test(actor: Any, started: ReplicaStarted, client: Client) -> None:
            computing = asyncio.ensure_future(client.call("compute"))
            while not await client.call("has_begun"):
                pass
            computing.cancel()
            while (await actor.stats.remote()).ongoing:
                pass

        with_replica(Model, test)

    def test_routers_hear_of_models_and_stats(self) -> None:
        async def test(actor: Any, started: ReplicaStarted, client: Client) -> None:
            events = client.connection.stream(REPLICA_DOOR, "events")
            first = decode(ReplicaEvent, await anext(events))
            assert (first.kind, first.stats) == (EVENT_ROUTING_STATS, {"cache": [1, 2]})
            assert await client.call("use", head=CallHead("use", model_id="m1")) == "model m1"
            told = [decode(ReplicaEvent, await anext(events)) for _ in range(2)]
            assert [e.kind for e in told] == [EVENT_MODELS, EVENT_MODELS]
            assert [(e.model_ids, e.loading_model_ids) for e in told] == [([], ["m1"]), (["m1"], [])]

        with_replica(Model, test)

    def test_draining_refuses_finishes_and_ends_the_users_code(self, tmp_path: Any) -> None:
        path = tmp_path / "ended"

        async def test(actor: Any, started: ReplicaStarted, client: Client) -> None:
            events = client.connection.stream(REPLICA_DOOR, "events")
            await anext(events)
            held = asyncio.ensure_future(client.call("stay"))
            while (await actor.stats.remote()).ongoing == 0:  # noqa: ASYNC110 - others are to run, nothing tells us
                await asyncio.sleep(0)
            drained = asyncio.ensure_future(_wait(actor.drain.remote()))
            assert decode(ReplicaEvent, await anext(events)).kind == EVENT_DRAINING
            with pytest.raises(DoorRefusedError):
                await client.connection.ask(REPLICA_DOOR, "http", http_body())
            assert not path.exists()
            (tmp_path / "go").touch()
            assert await held == "stayed"
            await drained
            assert path.read_text() == "ended"

        with_replica(Patient, test, str(path), str(tmp_path / "go"))


async def _wait(ref: Any) -> None:
    await ref


class Patient(Model):
    async def __init__(self, path: str, go: str) -> None:
        await Model.__init__(self, path)
        self.go = go

    async def stay(self) -> str:
        while not Path(self.go).exists():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.001)
        return "stayed"
