"""What routing costs: a call through a router and through a handle, beside the door's own call.

    python loadtests/routing.py [calls]

Caller and replica are actors on one machine; the caller makes one call after the other, then many at once.
Prints microseconds per call. "take" is the scheduler's choice alone.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from typing import Any

import retinue
from retinue.core import doors
from retinue.core.doors import DoorContext, KeyValue
from retinue.serve.handle import DeploymentHandle
from retinue.serve.messages import (
    NAMESPACE,
    REPLICA_DOOR,
    CallHead,
    DeploymentRouting,
    ReplicaInfo,
    encode,
    routing_key,
    unpack,
)
from retinue.serve.payload import dumps, load_call
from retinue.serve.routing.process import use_this_loop
from retinue.serve.routing.router import RequestMeta
from retinue.serve.routing.scheduler import ReplicaScheduler


class Echo:
    load = 0

    async def call(self, method: str, body: bytes, context: DoorContext) -> bytes:
        if method != "handle":
            return body
        head, payload = unpack(CallHead, body)
        args, _ = load_call(head, payload)
        return dumps(args[0])

    async def stream(self, method: str, body: bytes, context: DoorContext) -> Any:
        await asyncio.Event().wait()
        yield b""


@retinue.remote(num_cpus=0)
class Replica:
    async def start(self) -> Any:
        self.door = doors.open(REPLICA_DOOR, Echo())
        return doors.own_address()


@retinue.remote(num_cpus=0)
class Caller:
    async def measure(self, calls: int) -> dict[str, float]:
        router = use_this_loop().get("app", "echo")
        handle: DeploymentHandle[Any] = DeploymentHandle("echo", "app")
        await handle.remote(1)
        connection = router.links[0].connection
        assert connection is not None
        meta = RequestMeta("id", "", 0.0)
        body = b"x" * 60
        ways = {
            "door": lambda: connection.call(REPLICA_DOOR, "raw", body, request_id="id"),
            "router": lambda: router.call("raw", body, meta),
            "handle": lambda: handle.remote(1),
        }
        found: dict[str, list[float]] = {}
        for _ in range(5):
            for name, way in ways.items():
                began = time.perf_counter()
                for _ in range(calls):
                    await way()
                found.setdefault(name, []).append((time.perf_counter() - began) / calls * 1e6)

                async def some(way: Any = way) -> None:
                    for _ in range(calls // 64):
                        await way()

                began = time.perf_counter()
                await asyncio.gather(*(some() for _ in range(64)))
                each = (time.perf_counter() - began) / (calls // 64 * 64) * 1e6
                found.setdefault(f"{name}, 64 at once", []).append(each)
        return {name: sorted(times)[2] for name, times in found.items()}


def choice_us(replicas: int) -> float:
    scheduler = ReplicaScheduler(random.random)
    for number in range(replicas):
        scheduler.usable(scheduler.add(str(number), 100))
    began = time.perf_counter()
    for _ in range(200_000):
        replica = scheduler.take()
        assert replica is not None
        scheduler.done(replica, 0)
    return (time.perf_counter() - began) / 200_000 * 1e6


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    for count in (1, 2, 16):
        print(f"take and done, {count} replicas: {choice_us(count):.2f} us")
    retinue.init(num_cpus=2)
    replica = Replica.remote()
    caller = Caller.remote()
    info = ReplicaInfo(
        "app#echo#1", retinue.get(replica.start.remote()), retinue.get_runtime_context().get_node_id(), 100
    )
    KeyValue(NAMESPACE).put(routing_key("app", "echo"), encode(DeploymentRouting("app", "echo", [info])))
    for name, each in retinue.get(caller.measure.remote(calls)).items():
        print(f"{name}: {each:.1f} us")
    retinue.shutdown()


if __name__ == "__main__":
    main()
