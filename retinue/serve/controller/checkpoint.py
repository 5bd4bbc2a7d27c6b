"""What survives the controller: its targets, and what it knows of each replica, in the key-value table.

An application's record is one value, so it changes as a whole; it is written before the change is
acknowledged. Lives here: the records and their keys. Does not: what follows from them (`actor`).
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from msgspec import Struct

from retinue.core.doors import AsyncKeyValue
from retinue.serve.messages import ApplicationSpec, DeploymentSpec, ReplicaStarted

PREFIX = b"checkpoint/"
INSTANCE_KEY = PREFIX + b"instance"
APPLICATION_PREFIX = PREFIX + b"application/"
SCALE_PREFIX = PREFIX + b"scale/"
REPLICA_PREFIX = PREFIX + b"replica/"

R = TypeVar("R", bound=Struct)


class InstanceRecord(Struct, frozen=True):
    """Serve as a whole. Options are JSON. `config`: JSON of the ServeDeploySchema that was applied last."""

    location: str = ""
    http_options: bytes = b""
    grpc_options: bytes = b""
    logging_config: bytes = b""
    target_capacity: float | None = None
    config: bytes = b""
    proxies_are_wanted: bool = False


class ApplicationRecord(Struct, frozen=True):
    """`good`: by deployment, the version that served before, where the wanted one has not proven itself.
    `failures`: by deployment, why the wanted version was given up. `spec` None: it was never built."""

    name: str
    spec: ApplicationSpec | None = None
    good: dict[str, DeploymentSpec] = {}
    failures: dict[str, str] = {}
    deployed_at: float = 0.0  # Unix time
    is_deleting: bool = False
    source: str = "imperative"
    config: bytes = b""
    build_error: str = ""
    removed: list[DeploymentSpec] = []  # deployments that are no longer part of it, until they are gone


class ReplicaRecord(Struct, frozen=True):
    """`started` None: it had not yet answered."""

    replica_id: str
    version: str
    config_id: str
    rank: int
    start_time_s: float
    started: ReplicaStarted | None = None


class Checkpoint:
    """Reads and writes the records. Each write is durable when it returns."""

    def __init__(self, kv: AsyncKeyValue) -> None:
        self._kv = kv

    async def save_instance(self, record: InstanceRecord) -> None:
        await self._put(INSTANCE_KEY, record)

    async def instance(self) -> InstanceRecord:
        value = await self._kv.get(INSTANCE_KEY)
        return msgspec.msgpack.decode(value, type=InstanceRecord) if value else InstanceRecord()

    async def save_application(self, record: ApplicationRecord) -> None:
        await self._put(APPLICATION_PREFIX + record.name.encode(), record)

    async def forget_application(self, name: str) -> None:
        await self._kv.delete(APPLICATION_PREFIX + name.encode())
        await self._kv.delete(SCALE_PREFIX + name.encode() + b"/", by_prefix=True)

    async def applications(self) -> list[ApplicationRecord]:
        return await self._all(APPLICATION_PREFIX, ApplicationRecord)

    async def save_scale(self, app_name: str, deployment_name: str, count: int) -> None:
        await self._kv.put(_scale_key(app_name, deployment_name), str(count).encode())

    async def scale(self, app_name: str, deployment_name: str) -> int | None:
        value = await self._kv.get(_scale_key(app_name, deployment_name))
        return int(value) if value else None

    async def save_replica(self, record: ReplicaRecord) -> None:
        await self._put(REPLICA_PREFIX + record.replica_id.encode(), record)

    async def forget_replica(self, replica_id: str) -> None:
        await self._kv.delete(REPLICA_PREFIX + replica_id.encode())

    async def replicas(self) -> list[ReplicaRecord]:
        return await self._all(REPLICA_PREFIX, ReplicaRecord)

    async def _put(self, key: bytes, record: Struct) -> None:
        await self._kv.put(key, msgspec.msgpack.encode(record))

    async def _all(self, prefix: bytes, kind: type[R]) -> list[R]:
        values = [await self._kv.get(key) for key in sorted(await self._kv.keys(prefix))]
        return [msgspec.msgpack.decode(value, type=kind) for value in values if value]


def _scale_key(app_name: str, deployment_name: str) -> bytes:
    return SCALE_PREFIX + f"{app_name}/{deployment_name}".encode()
