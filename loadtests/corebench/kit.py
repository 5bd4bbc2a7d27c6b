"""The tasks and actors that the rows call: those of Ray's microbenchmark, defined with the module under test.

They are defined inside a function so that they travel by value: neither side's workers import this package.
"""

import functools
from dataclasses import dataclass
from types import ModuleType
from typing import Any

OBJECTS_IN_ONE = 10_000


@dataclass(frozen=True)
class Kit:
    small_value: Any
    actor: Any
    async_actor: Any
    client: Any
    spread_calls: Any
    put_small_many: Any
    put_large_many: Any
    object_with_refs: Any


@functools.cache
def kit(ray: ModuleType) -> Kit:
    """Return the definitions for `ray`, the same ones each time: exporting them is no part of a row."""

    @ray.remote
    def small_value():
        return b"ok"

    @ray.remote(num_cpus=0)
    class Actor:
        def small_value(self):
            return b"ok"

        def small_value_arg(self, x):
            return b"ok"

        def small_value_batch(self, n):
            ray.get([small_value.remote() for _ in range(n)])

    @ray.remote(num_cpus=0)
    class AsyncActor:
        async def small_value(self):
            return b"ok"

        async def small_value_with_arg(self, x):
            return b"ok"

    @ray.remote(num_cpus=0)
    class Client:
        def __init__(self, servers):
            self.servers = servers

        def small_value_batch(self, n):
            ray.get([server.small_value.remote() for server in self.servers for _ in range(n)])

        def small_value_batch_arg(self, n):
            x = ray.put(0)
            ray.get([server.small_value_arg.remote(x) for server in self.servers for _ in range(n)])

    @ray.remote
    def spread_calls(actors, n):
        ray.get([actors[i % len(actors)].small_value.remote() for i in range(n)])

    @ray.remote
    def put_small_many(n):
        for _ in range(n):
            ray.put(0)

    @ray.remote
    def put_large_many(n, size_bytes):
        import numpy as np

        for _ in range(n):
            ray.put(np.zeros(size_bytes, dtype=np.uint8))

    @ray.remote
    def object_with_refs(n):
        return [ray.put(1) for _ in range(n)]

    return Kit(
        small_value, Actor, AsyncActor, Client, spread_calls, put_small_many, put_large_many, object_with_refs
    )


def start(ray: ModuleType, **options: Any) -> None:
    """Start a cluster of our own, also where another runs already; everything else is left as it comes."""
    ray.init(address="local", **options)


def ready(ray: ModuleType, actors: list[Any]) -> list[Any]:
    """Return the actors once each has answered a call: starting them is no part of a row."""
    ray.get([actor.small_value.remote() for actor in actors])
    return actors
