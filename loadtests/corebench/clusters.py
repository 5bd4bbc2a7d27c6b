"""Rows about processes: starting actors and clusters, ending them, and the memory of an idle one."""

import os
import time
from collections.abc import Callable
from types import ModuleType

import psutil

from corebench.catalogue import Figure, Figures, Setting, row
from corebench.kit import kit, ready, start

IDLE_WORKERS = 2


@row(Figure("actor_start", "new actor to its first answer, median", "ms", limit=15, is_less_better=True))
def actor_start(ray: ModuleType, setting: Setting) -> float:
    actor_class = kit(ray).actor
    return setting.stopwatch.median_time(lambda: ready(ray, [actor_class.remote()]), at_most=100) * 1e3


@row(Figure("actor_start_100", "100 new actors to their first answers", "s", limit=1, is_less_better=True))
def actor_start_100(ray: ModuleType, setting: Setting) -> float:
    actor_class = kit(ray).actor
    count = setting.batch(100)
    return setting.stopwatch.median_time(
        lambda: ready(ray, [actor_class.remote() for _ in range(count)]), at_least=1, at_most=3
    )


@row(
    Figure("init", "init() to the first task's result", "s", limit=0.5, is_less_better=True),
    Figure("shutdown", "shutdown()", "s", limit=0.3, is_less_better=True),
    starts_cluster=True,
)
def init(ray: ModuleType, setting: Setting) -> Figures:
    """A new cluster, in a process that has imported the module already."""
    started = time.perf_counter()
    start(ray)
    assert ray.get(kit(ray).small_value.remote()) == b"ok"
    answered = time.perf_counter()
    ray.shutdown()
    return {"init": answered - started, "shutdown": time.perf_counter() - answered}


@row(
    Figure("idle_memory", "idle cluster with two workers, PSS", "MB", limit=100, is_less_better=True),
    Figure("idle_processes", "  processes in it", "", is_less_better=True),
    starts_cluster=True,
)
def idle_memory(ray: ModuleType, setting: Setting) -> Figures:
    """The proportional set size of everything that `init` and two tasks started, without the driver."""
    start(ray, num_cpus=IDLE_WORKERS)
    try:
        _meet(ray)
        sizes = [size for process in _cluster_processes() if (size := _pss_bytes(process))]
    finally:
        ray.shutdown()
    return {"idle_memory": sum(sizes) / 1e6, "idle_processes": len(sizes)}


def _meet(ray: ModuleType) -> None:
    """Run tasks until each of two workers has run one: each task waits for the other to have begun."""

    @ray.remote(num_cpus=0)
    class Meeting:
        def __init__(self):
            self.arrived = 0

        def arrive(self):
            self.arrived += 1

        def count(self):
            return self.arrived

    @ray.remote
    def attend(meeting):
        ray.get(meeting.arrive.remote())
        while ray.get(meeting.count.remote()) < IDLE_WORKERS:
            pass

    meeting = Meeting.remote()
    ray.get([attend.remote(meeting) for _ in range(IDLE_WORKERS)])
    del meeting
    _until(_settled)


def _settled() -> bool:
    """Whether the cluster's processes have stayed the same for half a second: the actor's process is gone."""
    before = _cluster_processes()
    time.sleep(0.5)
    return before == _cluster_processes()


def _until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    ends = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < ends:
        pass


def _cluster_processes() -> set[psutil.Process]:
    """Return what this process has started: its descendants, and those that left the tree."""
    ours = psutil.Process()
    folder = os.environ.get("RETINUE_TEMP_DIR")
    not_started = {ours, *ours.parents()}
    found = set(ours.children(recursive=True))
    for process in psutil.process_iter():
        try:
            if folder and process not in not_started and process.environ().get("RETINUE_TEMP_DIR") == folder:
                found.add(process)
        except psutil.Error:
            continue  # ended meanwhile, or another user's
    return found


def _pss_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0
