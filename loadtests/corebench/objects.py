"""Rows that put, get and wait for objects, small and large."""

import statistics
import time
from types import ModuleType

import numpy as np

from corebench.catalogue import Figure, Figures, Setting, rate, row
from corebench.kit import OBJECTS_IN_ONE, kit, start

WAITED_FOR = 1000
MIB = 1 << 20
GIB = 1 << 30
WARM_UP_PUTS = 3


@row(rate("put_small", "put of a small value", 40, 3.7))
def put_small(ray: ModuleType, setting: Setting) -> float:
    return setting.stopwatch.rate(lambda: ray.put(0))


@row(rate("get_small", "get of a small value", 10))
def get_small(ray: ModuleType, setting: Setting) -> float:
    ref = ray.put(0)
    return setting.stopwatch.rate(lambda: ray.get(ref))


@row(rate("put_small_clients", "put of a small value, 10 tasks"))
def put_small_clients(ray: ModuleType, setting: Setting) -> float:
    task = kit(ray).put_small_many
    return setting.stopwatch.rate(lambda: ray.get([task.remote(100) for _ in range(10)]), per_call=1000)


@row(rate("get_10k_refs", "get of an object with 10,000 references", 8))
def get_10k_refs(ray: ModuleType, setting: Setting) -> float:
    ref = kit(ray).object_with_refs.remote(OBJECTS_IN_ONE)
    return setting.stopwatch.rate(lambda: ray.get(ref))


@row(rate("wait_1k_refs", "wait on 1,000 references, one by one", 8))
def wait_1k_refs(ray: ModuleType, setting: Setting) -> float:
    task = kit(ray).small_value

    def wait_for_each() -> None:
        pending = [task.remote() for _ in range(WAITED_FOR)]
        fetch_local = True  # asked once for each: the request outlives the wait
        for _ in range(WAITED_FOR):
            _, pending = ray.wait(pending, fetch_local=fetch_local)
            fetch_local = False

    return setting.stopwatch.rate(wait_for_each)


@row(Figure("put_800mb", "put of 800 MiB", "GB/s"))
def put_800mb(ray: ModuleType, setting: Setting) -> float:
    array = np.zeros(100 * MIB, dtype=np.int64)
    return setting.stopwatch.rate(lambda: ray.put(array), per_call=array.nbytes / 1e9)


@row(Figure("put_80mb_clients", "put of 80 MiB, 10 tasks", "GB/s"))
def put_80mb_clients(ray: ModuleType, setting: Setting) -> float:
    task = kit(ray).put_large_many
    tasks, puts, size_bytes = setting.batch(10), 10, 80 * MIB
    return setting.stopwatch.rate(
        lambda: ray.get([task.remote(puts, size_bytes) for _ in range(tasks)]),
        per_call=tasks * puts * size_bytes / 1e9,
    )


@row(
    Figure("put_1gib_warm", "put of 1 GiB, store warm", "GB/s"),
    Figure("put_1gib_cold", "  the first put of a new cluster", "GB/s"),
    Figure("copy_1gib", "  plain copy of the same size (np.copyto)", "GB/s"),
    Figure("put_1gib_share", "  warm put as a share of the copy", "", limit=0.8),
    starts_cluster=True,
)
def put_1gib(ray: ModuleType, setting: Setting) -> Figures:
    """A put, dropped at once, and a plain copy take turns, so that both meet the same machine."""
    source = np.ones(GIB // setting.divisor, dtype=np.uint8)
    target = np.empty_like(source)
    np.copyto(target, source)
    start(ray)
    try:
        cold = _timed(lambda: ray.put(source))
        for _ in range(WARM_UP_PUTS):
            ray.put(source)
        puts, copies = [], []
        for _ in range(7):
            puts.append(_timed(lambda: ray.put(source)))
            copies.append(_timed(lambda: np.copyto(target, source)))
    finally:
        ray.shutdown()
    put, copy = statistics.median(puts), statistics.median(copies)
    gigabytes = source.nbytes / 1e9
    return {
        "put_1gib_warm": gigabytes / put,
        "put_1gib_cold": gigabytes / cold,
        "copy_1gib": gigabytes / copy,
        "put_1gib_share": copy / put,
    }


@row(Figure("get_1gib", "get of a 1 GiB array", "ms", limit=1, is_less_better=True))
def get_1gib(ray: ModuleType, setting: Setting) -> float:
    ref = ray.put(np.ones(GIB // setting.divisor, dtype=np.uint8))
    first, second = ray.get(ref), ray.get(ref)
    assert first[-1] == 1
    assert not first.flags.writeable
    assert np.shares_memory(first, second), "get made a copy"
    del first, second
    return setting.stopwatch.median_time(lambda: ray.get(ref)) * 1e3


def _timed(call) -> float:
    """Run `call`; return its seconds. What it returned is dropped after the clock is read."""
    started = time.perf_counter()
    result = call()
    elapsed = time.perf_counter() - started
    del result
    return elapsed
