"""A cluster, and replicas that are real actors with a door that speaks the replicas' protocol."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pytest

import retinue
from retinue.core import doors
from retinue.core.doors import DoorContext, DoorRefusedError, KeyValue
from retinue.serve.messages import (
    AGE,
    EVENT_DRAINING,
    EVENT_MODELS,
    EVENT_SLOT,
    NAMESPACE,
    REFUSED_DRAINING,
    REFUSED_FULL,
    REPLICA_DOOR,
    CallHead,
    DeploymentRouting,
    ReplicaEvent,
    ReplicaInfo,
    encode,
    routing_key,
    unpack,
)
from retinue.serve.payload import dumps, load_call
from retinue.serve.routing.admission import Admission

APP = "app"


class FakeDoor:
    """Answers as a replica does, with methods of its own."""

    def __init__(self, limit: int) -> None:
        self.admission = Admission(limit)
        self.streams: dict[Any, asyncio.Queue[bytes]] = {}
        self.is_draining = False
        self.most = 0
        self.served = 0
        self.cancelled = 0
        self.opened = asyncio.Event()
        self.model_ids: list[str] = []

    @property
    def load(self) -> int:
        return self.admission.ongoing

    async def call(self, method: str, body: bytes, context: DoorContext) -> bytes:
        router = context.caller.worker_id
        now = time.monotonic()
        if method == "leave":
            self.notice(self.admission.left(router, now))
            return b""
        if method == "waits":
            self.notice(self.admission.waits(router, now - AGE.unpack(body)[0], now))
            return b""
        is_admitted = not method.endswith(":all")
        if is_admitted:
            self.take(router, now)
        try:
            return await self.answer(body, context)
        finally:
            if is_admitted:
                self.notice(self.admission.finished(time.monotonic()))

    def take(self, router: bytes, now: float) -> None:
        if self.is_draining:
            raise DoorRefusedError(REFUSED_DRAINING)
        if not self.admission.offer(router, now, is_listening=router in self.streams):
            raise DoorRefusedError(REFUSED_FULL)
        self.most = max(self.most, self.admission.ongoing)

    def notice(self, routers: Any) -> None:
        for router in routers:
            if router in self.streams:
                self.streams[router].put_nowait(encode(ReplicaEvent(EVENT_SLOT)))

    async def answer(self, body: bytes, context: DoorContext) -> bytes:
        head, payload = unpack(CallHead, body)
        args, kwargs = load_call(head, payload)
        result = getattr(self, "do_" + head.method.strip("_"))(*args, **kwargs)
        try:
            if asyncio.iscoroutine(result):
                result = await result
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.served += 1
        return dumps([context.request_id, context.trace] if result == "context" else result)

    async def stream(self, method: str, body: bytes, context: DoorContext) -> AsyncIterator[bytes]:
        router = context.caller.worker_id
        if method == "events":
            queue = self.streams[router] = asyncio.Queue()
            queue.put_nowait(encode(ReplicaEvent(EVENT_MODELS, self.model_ids)))
            try:
                while True:
                    yield await queue.get()
            finally:
                if self.streams.get(router) is queue:
                    del self.streams[router]
                    self.notice(self.admission.left(router, time.monotonic()))
        self.take(router, time.monotonic())
        try:
            head, payload = unpack(CallHead, body)
            args, kwargs = load_call(head, payload)
            async for item in getattr(self, "do_" + head.method)(*args, **kwargs):
                yield dumps(item)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.notice(self.admission.finished(time.monotonic()))

    async def exchange(
        self, method: str, items: AsyncIterator[bytes], context: DoorContext
    ) -> AsyncIterator[bytes]:
        self.take(context.caller.worker_id, time.monotonic())
        try:
            async for item in items:
                yield item.upper()
        finally:
            self.notice(self.admission.finished(time.monotonic()))

    # --- what is called

    def do_call(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and not kwargs else (args, kwargs)

    def do_add(self, one: int, other: int = 1) -> int:
        return one + other

    def do_fail(self, text: str) -> None:
        raise KeyError(text)

    def do_context(self) -> str:
        return "context"

    async def do_sleep(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    async def do_wait(self) -> str:
        """Until the replica's `open` is called."""
        await self.opened.wait()
        return "opened"

    async def do_count(self, upto: int) -> AsyncIterator[int]:
        for number in range(upto):
            yield number

    async def do_count_then_wait(self, upto: int) -> AsyncIterator[int]:
        for number in range(upto):
            yield number
        await self.opened.wait()

    async def do_count_then_fail(self, upto: int) -> AsyncIterator[int]:
        for number in range(upto):
            yield number
        raise KeyError("after the last")


@retinue.remote(num_cpus=0)
class FakeReplica:
    async def start(self, limit: int, models: list[str]) -> Any:
        self.handler = FakeDoor(limit)
        self.handler.model_ids = models
        self.door = doors.open(REPLICA_DOOR, self.handler)
        return doors.own_address(), retinue.get_runtime_context().get_node_id()

    async def facts(self) -> dict[str, int]:
        handler = self.handler
        return {
            "ongoing": handler.admission.ongoing,
            "most": handler.most,
            "served": handler.served,
            "cancelled": handler.cancelled,
            "waiting": handler.admission.waiting,
        }

    async def open(self) -> None:
        self.handler.opened.set()

    async def drain(self) -> None:
        self.handler.is_draining = True
        for queue in self.handler.streams.values():
            queue.put_nowait(encode(ReplicaEvent(EVENT_DRAINING)))


class Deployment:
    """A deployment of fake replicas, with what its controller would publish."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kv = KeyValue(NAMESPACE)
        self.routing = DeploymentRouting(APP, name)
        self.actors: dict[str, Any] = {}

    def start(self, count: int = 1, *, limit: int = 100, models: tuple[str, ...] = ()) -> list[str]:
        """Start replicas, and publish them."""
        ids = []
        for _ in range(count):
            replica_id = f"{APP}#{self.name}#{len(self.actors)}"
            actor = self.actors[replica_id] = FakeReplica.remote()
            address, node_id = retinue.get(actor.start.remote(limit, list(models)))
            info = ReplicaInfo(replica_id, address, node_id, limit)
            self.routing = msgspec.structs.replace(self.routing, replicas=[*self.routing.replicas, info])
            ids.append(replica_id)
        self.publish()
        return ids

    def publish(self, **changes: Any) -> None:
        self.routing = msgspec.structs.replace(self.routing, **changes)
        self.kv.put(routing_key(APP, self.name), encode(self.routing))

    def withdraw(self, replica_id: str) -> None:
        self.publish(replicas=[r for r in self.routing.replicas if r.replica_id != replica_id])

    def kill(self, replica_id: str) -> None:
        retinue.kill(self.actors.pop(replica_id))

    def facts(self, replica_id: str) -> dict[str, int]:
        return retinue.get(self.actors[replica_id].facts.remote())

    def open(self) -> None:
        retinue.get([actor.open.remote() for actor in self.actors.values()])

    def close(self) -> None:
        self.kv.delete(routing_key(APP, self.name))
        for actor in self.actors.values():
            retinue.kill(actor)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    retinue.init(num_cpus=4)
    yield
    retinue.shutdown()


@pytest.fixture
def deployment(cluster: None, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    deployment = Deployment(request.node.name)
    yield deployment
    deployment.close()


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for something that no event tells of."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.005)
