"""Rows that run tasks: one at a time, many at once, from several clients, and a million."""

import threading
import time
from types import ModuleType
from typing import Any, Self

import psutil

from corebench.catalogue import Figure, Figures, Setting, rate, row
from corebench.kit import kit, ready

CLIENTS = 4
PIPELINED = 1000
MILLION = 1_000_000
MILLION_ON_RAY = 20_000  # a million would take Ray minutes and gigabytes; the figures are per task
TICK_S = 0.001


@row(rate("tasks_sync", "tasks sync", 10, 0.29))
def tasks_sync(ray: ModuleType, setting: Setting) -> float:
    task = kit(ray).small_value
    return setting.stopwatch.rate(lambda: ray.get(task.remote()))


@row(rate("tasks_async", "tasks async", 20, 1.9))
def tasks_async(ray: ModuleType, setting: Setting) -> float:
    task = kit(ray).small_value
    n = PIPELINED
    return setting.stopwatch.rate(lambda: ray.get([task.remote() for _ in range(n)]), per_call=n)


@row(rate("tasks_clients_async", "tasks async, 4 clients", 20))
def tasks_clients_async(ray: ModuleType, setting: Setting) -> float:
    clients = ready(ray, [kit(ray).actor.remote() for _ in range(CLIENTS)])
    n = setting.batch(10_000)
    return setting.stopwatch.rate(
        lambda: ray.get([client.small_value_batch.remote(n) for client in clients]), per_call=n * CLIENTS
    )


@row(Figure("tasks_get_batch", "tasks and get batch of 1,000", unit="batches/s", target_ratio=20))
def tasks_get_batch(ray: ModuleType, setting: Setting) -> float:
    task = kit(ray).small_value

    def batch() -> None:
        submitted = [task.remote() for _ in range(PIPELINED)]
        ray.get(submitted)

    return setting.stopwatch.rate(batch)


@row(
    rate("million_tasks", "1,000,000 no-op tasks at once"),
    Figure("million_bytes", "  driver growth per pending task", "B", limit=1024, is_less_better=True),
    Figure("million_submit_pause", "  longest pause while submitting", "ms", limit=50, is_less_better=True),
    Figure("million_pause", "  longest pause of another thread", "ms", limit=50, is_less_better=True),
)
def million_tasks(ray: ModuleType, setting: Setting) -> Figures:
    """Submit all, then collect all; every reference is held to the end, so every task counts as pending."""
    task = kit(ray).small_value
    ray.get([task.remote() for _ in range(100)])
    count = setting.batch(MILLION if setting.side == "retinue" else MILLION_ON_RAY)
    before = psutil.Process().memory_full_info().uss
    with Ticker() as ticker:
        started = time.perf_counter()
        refs, submit_pause = _submit(task, count)
        grown = psutil.Process().memory_full_info().uss - before
        for begin in range(0, count, PIPELINED):
            assert ray.get(refs[begin : begin + PIPELINED])[0] == b"ok"
        elapsed = time.perf_counter() - started
    return {
        "million_tasks": count / elapsed,
        "million_bytes": grown / count,
        "million_submit_pause": submit_pause * 1e3,
        "million_pause": ticker.longest_pause * 1e3,
    }


def _submit(task: Any, count: int) -> tuple[list[Any], float]:
    """Submit `count` tasks; return their references and the longest time one submission took."""
    refs = []
    longest = 0.0
    last = time.perf_counter()
    for _ in range(count):
        refs.append(task.remote())
        now = time.perf_counter()
        longest = max(longest, now - last)
        last = now
    return refs, longest


class Ticker:
    """A thread that wakes every millisecond, and remembers how late the latest wake-up was."""

    def __init__(self) -> None:
        self.longest_pause = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ticker")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        last = time.perf_counter()
        while not self._stop.wait(TICK_S):
            now = time.perf_counter()
            self.longest_pause = max(self.longest_pause, now - last - TICK_S)
            last = now
