"""`retinue stop` of a node on which work runs: what may finish does, and nothing is left."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import retinue
from retinue.cluster_utils import Cluster
from retinue.core import cluster as clusters
from retinue.core.cluster import NodeOptions, start_head_node, stop
from retinue.core.transport.blocking import BlockingClient
from retinue.core.wire.messages import Shutdown
from retinue.exceptions import RetinueError
from tests.chaos.support import Pids, wait_until


@retinue.remote(max_retries=0)
def finish(folder: str, *, waits_for: str) -> str:
    Path(folder, "began").touch()
    while not Path(folder, waits_for).exists():
        time.sleep(0.01)
    Path(folder, "finished").touch()
    return "finished"


@retinue.remote(num_cpus=0)
class Slow:
    def __init__(self, folder: str) -> None:
        import atexit

        self.folder = Path(folder)
        atexit.register((self.folder / "left in order").touch)

    def pid(self) -> int:
        return os.getpid()

    def finish(self, waits_for: str) -> str:
        (self.folder / "actor began").touch()
        while not (self.folder / waits_for).exists():
            time.sleep(0.01)
        (self.folder / "actor finished").touch()
        return "finished"


@pytest.fixture
def started(base: str) -> Iterator[str]:
    start_head_node(NodeOptions(num_cpus=2, object_store_memory=64 << 20))
    retinue.init(address="auto")
    yield base
    retinue.shutdown()
    stop(force=True)


def in_background(grace_s: float) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(stop(grace_period_s=grace_s)))
    thread.start()
    return thread, results


def test_running_tasks_and_methods_finish_before_the_node_ends(started: str, tmp_path: Path) -> None:
    task = finish.remote(str(tmp_path), waits_for="go")
    slow: Any = Slow.remote(str(tmp_path))
    retinue.get(slow.pid.remote())
    call = slow.finish.remote("finished")
    wait_until((tmp_path / "began").exists)
    wait_until((tmp_path / "actor began").exists)
    thread, results = in_background(60.0)
    (tmp_path / "go").touch()
    assert retinue.get(task, timeout=30) == "finished"
    assert retinue.get(call, timeout=30) == "finished"
    thread.join(30)
    assert results == [clusters.Stopped(ended=1, killed=0)]
    assert (tmp_path / "left in order").exists()


def test_what_is_late_is_killed(started: str, tmp_path: Path) -> None:
    slow: Any = Slow.remote(str(tmp_path))
    worker = Pids([retinue.get(slow.pid.remote())])
    call = slow.finish.remote("never")
    wait_until((tmp_path / "actor began").exists)
    assert stop(grace_period_s=0.3) == clusters.Stopped(ended=1, killed=0)
    worker.wait(5)
    assert not (tmp_path / "actor finished").exists()
    with pytest.raises(RetinueError):
        retinue.get(call, timeout=30)


def test_an_idle_node_ends_without_waiting_for_the_grace(started: str, tmp_path: Path) -> None:
    slow: Any = Slow.remote(str(tmp_path))
    retinue.get(slow.pid.remote())
    thread, results = in_background(600.0)
    thread.join(30)
    assert results == [clusters.Stopped(ended=1, killed=0)]
    assert (tmp_path / "left in order").exists()


def test_an_actor_that_may_restart_moves_to_another_node(tmp_path: Path, base: str) -> None:
    cluster = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 0})
    try:
        first = cluster.add_node(num_cpus=1)
        slow: Any = Slow.options(num_cpus=1, max_restarts=-1, max_task_retries=-1).remote(str(tmp_path))
        before = retinue.get(slow.pid.remote(), timeout=30)
        cluster.add_node(num_cpus=1)
        processes = cluster._started()
        with BlockingClient(first.process.address, processes.token, kind="agent") as client:
            client.request(Shutdown(0, 600.0))
        wait_until(lambda: retinue.get(slow.pid.remote(), timeout=30) != before)
        Pids([first.pid]).wait()
        cluster.remove_node(first)
    finally:
        cluster.shutdown()
