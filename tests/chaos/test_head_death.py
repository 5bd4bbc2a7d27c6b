"""Kill -9 of the head, and of nodes, as users see it."""

import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import retinue
from retinue.cluster_utils import Cluster
from retinue.core import session as sessions


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    path = str(tmp_path / "r")
    monkeypatch.setenv(sessions.TEMP_DIR_VARIABLE, path)
    cluster = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 2})
    yield cluster
    cluster.shutdown()
    assert os.listdir(path) == []


@retinue.remote(num_cpus=0)
class Gate:
    """Calls wait in it until it is opened."""

    def __init__(self) -> None:
        import asyncio

        self._open = asyncio.Event()
        self._waiting = asyncio.Semaphore(0)
        self.passed = 0

    async def wait(self) -> int:
        self._waiting.release()
        await self._open.wait()
        self.passed += 1
        return self.passed

    async def someone_waits(self) -> None:
        await self._waiting.acquire()

    async def open(self) -> None:
        self._open.set()

    async def node_id(self) -> str:
        return retinue.get_runtime_context().get_node_id()


def kill_head(cluster: Cluster) -> None:
    head = cluster._started().head
    assert head is not None
    pidfd = os.pidfd_open(head.pid)
    cluster.kill_head()
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)


def test_running_calls_go_on_and_named_actors_are_still_there(cluster: Cluster) -> None:
    gate: Any = Gate.options(name="gate").remote()
    running = gate.wait.remote()
    retinue.get(gate.someone_waits.remote(), timeout=30)
    kill_head(cluster)
    retinue.get(gate.open.remote(), timeout=30)
    assert retinue.get(running, timeout=30) == 1
    assert retinue.get(retinue.get_actor("gate").wait.remote(), timeout=30) == 2


def test_what_needs_the_head_waits_for_the_next_one(cluster: Cluster) -> None:
    gates: list[Any] = []
    for number in range(3):
        kill_head(cluster)
        gates.append(Gate.options(name=f"gate-{number}").remote())
        retinue.get(gates[-1].open.remote(), timeout=30)
    for number in range(3):
        gate = retinue.get_actor(f"gate-{number}")
        assert retinue.get(gate.wait.remote(), timeout=30) == 1


def test_an_actor_whose_worker_dies_while_the_head_is_away_restarts(cluster: Cluster) -> None:
    @retinue.remote(num_cpus=0, max_restarts=1, max_task_retries=-1)
    class Process:
        def pid(self) -> int:
            return os.getpid()

    actor: Any = Process.remote()
    pid = retinue.get(actor.pid.remote(), timeout=30)
    cluster.kill_head()
    os.kill(pid, 9)
    assert retinue.get(actor.pid.remote(), timeout=30) != pid


@pytest.mark.parametrize("allow_graceful", [True, False])
def test_a_removed_nodes_actors_restart_elsewhere(cluster: Cluster, allow_graceful: bool) -> None:
    first, second = (cluster.add_node(num_cpus=1, resources={"x": 1}) for _ in range(2))
    gate: Any = Gate.options(resources={"x": 1}, max_restarts=1, max_task_retries=-1).remote()
    home = retinue.get(gate.node_id.remote(), timeout=30)
    left, stays = (first, second) if first.node_id == home else (second, first)
    assert left.node_id == home
    cluster.remove_node(left, allow_graceful=allow_graceful)
    assert retinue.get(gate.node_id.remote(), timeout=30) == stays.node_id


def test_a_detached_actor_outlives_its_driver_and_the_head(cluster: Cluster) -> None:
    gate: Any = Gate.options(name="gate", namespace="ns", lifetime="detached").remote()
    retinue.get(gate.open.remote(), timeout=30)
    retinue.shutdown()
    kill_head(cluster)
    cluster.connect(namespace="ns")
    assert retinue.get(retinue.get_actor("gate").wait.remote(), timeout=30) == 1
