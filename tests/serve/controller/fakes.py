"""A replica and a proxy: small but real actors with the interfaces of serve's own.

What a replica does is said by its `init_args`, JSON of `Behaviour`; what happens to it is written as lines to
`log`, in the order in which it happens.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path

from msgspec import Struct

import retinue
from retinue.core import doors
from retinue.serve.messages import REPLICA_DOOR, DeploymentSpec, ReplicaStarted, ReplicaStats, decode

FAKE_REPLICA = "tests.serve.controller.fakes:FakeReplica"
FAKE_PROXY = "tests.serve.controller.fakes:FakeProxy"


@dataclass(frozen=True)
class Behaviour:
    """Files stand for switches that a test turns: the constructor fails while `fails_while` exists, waits
    until `waits_for` exists, health checks fail while `ill_while` exists, draining waits until `drains_when`
    exists."""

    log: str
    fails: str = ""
    fails_while: str = ""
    waits_for: str = ""
    ill_while: str = ""
    drains_when: str = ""
    refuses: str = ""  # a user_config


def is_on(path: str) -> bool:
    return bool(path) and Path(path).exists()


async def until_there(path: str) -> None:
    while path and not is_on(path):  # noqa: ASYNC110 - another process makes it
        await asyncio.sleep(0.005)


class Echo:
    load = 0

    async def call(self, method: str, body: bytes, context: doors.DoorContext) -> bytes:
        return body

    async def stream(self, method: str, body: bytes, context: doors.DoorContext) -> AsyncIterator[bytes]:
        yield body


class FakeReplica:
    def __init__(self, replica_id: str, app_name: str, spec: bytes, rank: int, world_size: int) -> None:
        self.replica_id = replica_id
        self.spec = decode(DeploymentSpec, spec)
        is_ours = self.spec.init_args.startswith(b"{")
        self.behaviour = Behaviour(**json.loads(self.spec.init_args)) if is_ours else Behaviour(os.devnull)

    def tell(self, what: str) -> None:
        with Path(self.behaviour.log).open("a") as file:
            file.write(f"{time.monotonic():.6f} {self.replica_id} {what}\n")

    async def initialize(self) -> ReplicaStarted:
        behaviour = self.behaviour
        self.tell("constructs")
        print("the constructor runs", flush=True)
        await until_there(behaviour.waits_for)
        if behaviour.fails:
            raise ValueError(behaviour.fails)
        if is_on(behaviour.fails_while):
            raise ValueError("the switch is on")
        self.door = doors.open(REPLICA_DOOR, Echo())
        self.tell("ready")
        node_id = retinue.get_runtime_context().get_node_id()
        return ReplicaStarted(doors.own_address(), node_id, os.getpid())

    async def reconfigure(self, config: bytes, rank: int, world_size: int) -> None:
        user_config = json.loads(config).get("user_config")
        self.tell(f"reconfigure {json.dumps(user_config)} {rank}/{world_size}")
        if self.behaviour.refuses and user_config == self.behaviour.refuses:
            raise ValueError(f"{user_config} is refused")

    async def check_health(self) -> None:
        if is_on(self.behaviour.ill_while):
            raise RuntimeError("the model is ill")

    async def drain(self) -> None:
        self.tell("drains")
        await until_there(self.behaviour.drains_when)
        self.tell("drained")

    async def stats(self) -> ReplicaStats:
        return ReplicaStats(self.replica_id, 0)


class FakeProxyStarted(Struct, frozen=True):
    pid: int
    http_address: str
    grpc_address: str = ""


class FakeProxy:
    def __init__(
        self,
        node_id: str,
        slot: int,
        http_options_json: str,
        grpc_options_json: str,
        logging_config_json: str = "",
    ) -> None:
        pass

    async def ready(self) -> FakeProxyStarted:
        return FakeProxyStarted(os.getpid(), "")

    async def check_health(self) -> None:
        pass

    async def drain(self) -> None:
        pass


def init_args(behaviour: Behaviour) -> bytes:
    return json.dumps(asdict(behaviour)).encode()
