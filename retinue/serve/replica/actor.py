"""The actor that a replica is; its methods are called by the controller alone.

Lives here: the order of a replica's life. Does not: requests (`door`), running user code (`user_code`).
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

import retinue
from retinue.core import doors
from retinue.serve import context as contexts
from retinue.serve.context import ReplicaContext
from retinue.serve.messages import REPLICA_DOOR, DeploymentSpec, ReplicaStarted, ReplicaStats, decode
from retinue.serve.replica.door import ReplicaDoor
from retinue.serve.replica.slots import Slots
from retinue.serve.replica.threads import ThreadPool
from retinue.serve.replica.user_code import UserCode

DEBUG_ERRORS_SETTING = "RETINUE_SERVE_DEBUG_ERRORS"


class RoutingSettings(msgspec.Struct):
    request_routing_stats_period_s: float = 10.0


class Settings(msgspec.Struct):
    """What a replica needs of config.DeploymentConfig."""

    max_ongoing_requests: int = 5
    user_config: Any = None
    graceful_shutdown_wait_loop_s: float = 2.0
    graceful_shutdown_timeout_s: float = 20.0
    health_check_period_s: float = 10.0
    health_check_timeout_s: float = 30.0
    request_router_config: RoutingSettings = msgspec.field(default_factory=RoutingSettings)


class ReplicaActor:
    """One replica. Build, then `initialize()`; `drain()` before the end."""

    def __init__(self, replica_id: str, app_name: str, spec: bytes, rank: int, world_size: int) -> None:
        self._spec = decode(DeploymentSpec, spec)
        self._settings = msgspec.json.decode(self._spec.config or b"{}", type=Settings)
        self._replica_id = replica_id
        limit = self._settings.max_ongoing_requests
        self._slots = Slots(limit)
        self._pool = ThreadPool(limit, "user-code")
        self._user = UserCode(self._spec, self._pool)
        self._context = ReplicaContext(replica_id, app_name, self._spec.name, None, rank, world_size)
        self._door: doors.Door | None = None
        contexts.set_replica_context(self._context)

    async def initialize(self) -> ReplicaStarted:
        """Run the user's constructor and open the door. Raises what the constructor raises."""
        await self._user.construct()
        self._context.servable_object = self._user.instance
        shows_errors = os.environ.get(DEBUG_ERRORS_SETTING, "").lower() in {"1", "true"}
        door = ReplicaDoor(self._user, self._slots, self._context.app_name, shows_errors=shows_errors)
        self._door = doors.open(REPLICA_DOOR, door)
        return ReplicaStarted(
            address=doors.own_address(),
            node_id=retinue.get_runtime_context().get_node_id(),
            pid=os.getpid(),
            is_asgi=False,
            docs_path=self._spec.docs_path,
        )

    async def stats(self) -> ReplicaStats:
        return ReplicaStats(self._replica_id, self._slots.load)
