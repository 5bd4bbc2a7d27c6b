"""Users' own request routers, in a router of a real process."""

from __future__ import annotations

from typing import Any

import retinue
from retinue.serve.config import RequestRouterConfig
from retinue.serve.handle import DeploymentHandle
from retinue.serve.request_router import (
    FIFOMixin,
    PendingRequest,
    ReplicaID,
    ReplicaResult,
    RequestRouter,
    RunningReplica,
)
from retinue.serve.routing.process import routers
from tests.serve.routing.conftest import APP, Deployment, wait_until

TIMEOUT_S = 20.0


class ByFirstArgument(FIFOMixin, RequestRouter):
    """The argument's remainder says which replica, in the order of their ids."""

    def initialize_state(self, count: int) -> None:
        self.count = count
        self.routed: list[str] = []
        self.completed: list[str] = []

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        assert pending_request is not None
        number = pending_request.args[0] % self.count
        return [[r for r in candidate_replicas if r.replica_id.unique_id == str(number)]]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult
    ) -> None:
        self.routed.append(replica_id.unique_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self.completed.append(replica_id.unique_id)


def test_the_users_router_is_asked_and_told(deployment: Deployment) -> None:
    config = RequestRouterConfig(
        request_router_class=ByFirstArgument, request_router_kwargs={"count": 3}
    ).model_dump_json()
    deployment.publish(router=config)
    replicas = deployment.start(3, limit=1)
    handle: DeploymentHandle[Any] = DeploymentHandle(deployment.name, APP)
    responses = [handle.add.remote(n) for n in [0, 1, 1, 1, 2, 0]]
    assert [r.result(timeout_s=TIMEOUT_S) for r in responses] == [1, 2, 2, 2, 3, 1]
    assert [deployment.facts(r)["served"] for r in replicas] == [2, 3, 1]
    policy = routers().get_soon(APP, deployment.name)._policy
    assert policy is not None
    assert policy.request_router.routed == ["0", "1", "1", "1", "2", "0"]  # type: ignore[attr-defined]
    wait_until(lambda: len(policy.request_router.completed) == 6)  # type: ignore[attr-defined]


def test_it_shares_a_full_replica_with_other_processes(deployment: Deployment) -> None:
    config = RequestRouterConfig(
        request_router_class=ByFirstArgument, request_router_kwargs={"count": 1}
    ).model_dump_json()
    deployment.publish(router=config)
    (replica,) = deployment.start(1, limit=1)
    handle: DeploymentHandle[Any] = DeploymentHandle(deployment.name, APP)

    @retinue.remote(num_cpus=0.5)
    def caller(handle: DeploymentHandle[Any]) -> int:
        return len([r.result(timeout_s=TIMEOUT_S) for r in [handle.sleep.remote(0) for _ in range(20)]])

    other = caller.remote(handle)
    mine = [handle.sleep.remote(0) for _ in range(20)]
    assert [r.result(timeout_s=TIMEOUT_S) for r in mine] == [0] * 20
    assert retinue.get(other) == 20
    assert deployment.facts(replica)["most"] == 1
