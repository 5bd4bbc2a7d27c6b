"""What the routers of a process tell the controller, and see of the routes."""

from __future__ import annotations

from typing import Any

import retinue
from retinue.core import doors
from retinue.core.doors import DoorContext, KeyValue
from retinue.serve.handle import DeploymentHandle
from retinue.serve.messages import (
    CONTROLLER_DOOR,
    CONTROLLER_KEY,
    NAMESPACE,
    ROUTES_KEY,
    ControllerInfo,
    Route,
    RouterStats,
    RouteTable,
    decode,
    encode,
)
from retinue.serve.routing.process import routers
from tests.serve.routing.conftest import APP, Deployment, wait_until

TIMEOUT_S = 20.0


class ControllerDoor:
    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []

    async def call(self, method: str, body: bytes, context: DoorContext) -> bytes:
        stats = decode(RouterStats, body)
        self.told.append((stats.deployment_name, stats.queued, stats.ongoing))
        return b""


@retinue.remote(num_cpus=0)
class FakeController:
    async def start(self) -> Any:
        self.handler = ControllerDoor()
        self.door = doors.open(CONTROLLER_DOOR, self.handler)
        return doors.own_address()

    async def told(self) -> list[tuple[str, int, int]]:
        return self.handler.told


def test_the_controller_hears_of_queues_and_of_their_end(deployment: Deployment) -> None:
    deployment.publish()
    controller = FakeController.remote()
    address = retinue.get(controller.start.remote())
    kv = KeyValue(NAMESPACE)
    handle: DeploymentHandle[Any] = DeploymentHandle(deployment.name, APP)

    def told() -> list[tuple[int, int]]:
        everything = retinue.get(controller.told.remote())
        return [(queued, ongoing) for name, queued, ongoing in everything if name == deployment.name]

    responses = [handle.wait.remote() for _ in range(3)]
    # It may come later than the requests.
    kv.put(CONTROLLER_KEY, encode(ControllerInfo(address)))
    wait_until(lambda: (3, 0) in told())
    deployment.start(1, limit=2)
    wait_until(lambda: (1, 2) in told())
    deployment.open()
    assert [r.result(timeout_s=TIMEOUT_S) for r in responses] == ["opened"] * 3
    wait_until(lambda: told()[-1] == (0, 0))
    kv.delete(CONTROLLER_KEY)
    retinue.kill(controller)


def test_routes_are_seen_as_they_change(cluster: None) -> None:
    kv = KeyValue(NAMESPACE)
    seen: list[RouteTable] = []
    found = routers()
    found.loop.call_soon_threadsafe(found.on_routes, seen.append)
    for prefix in ("/a", "/b"):
        kv.put(ROUTES_KEY, encode(RouteTable([Route(prefix, "app", "deployment")])))
        wait_until(lambda: bool(seen) and seen[-1].routes[0].prefix == prefix)  # noqa: B023 - waited for
    kv.delete(ROUTES_KEY)
