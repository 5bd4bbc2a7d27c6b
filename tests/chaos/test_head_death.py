"""Kill -9 of the head, and of nodes, as users see it."""

import os
import random
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import retinue
from retinue.cluster_utils import Cluster
from retinue.core import session as sessions
from retinue.core.launch import HeadSupervisor
from retinue.core.transport.blocking import BlockingClient
from retinue.core.wire.messages import ListJobs
from retinue.exceptions import ActorDiedError, ActorUnavailableError
from tests.chaos.support import Pids, wait_until


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


@retinue.remote(num_cpus=0)
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count


def head_pid(cluster: Cluster) -> int:
    head = cluster._started().head
    assert head is not None
    return head.pid


def test_it_is_back_within_a_second(cluster: Cluster) -> None:
    counter: Any = Counter.options(name="counter").remote()
    retinue.get(counter.add.remote(), timeout=30)
    first = head_pid(cluster)
    kill_head(cluster)
    started = time.monotonic()
    assert retinue.get(retinue.get_actor("counter").add.remote(), timeout=30) == 2
    assert time.monotonic() - started < 1.0
    assert head_pid(cluster) != first


def test_tasks_and_calls_do_not_notice(cluster: Cluster) -> None:
    """Neither those that run nor those that are made while no head is there."""

    @retinue.remote
    def square(x: int) -> int:
        return x * x

    counter: Any = Counter.remote()
    assert retinue.get([counter.add.remote(), square.remote(2)], timeout=30) == [1, 4]
    supervisor = cluster._started()._supervisor
    assert supervisor is not None
    head = cluster._started().head
    assert head is not None
    supervisor.stop()
    try:
        kill_head(cluster)
        assert retinue.get([square.remote(x) for x in range(100)], timeout=30) == [x * x for x in range(100)]
        assert retinue.get([counter.add.remote() for _ in range(100)], timeout=30)[-1] == 101
    finally:
        head.restart_delay(time.monotonic())  # takes note of its end
        head.start(time.monotonic())
        cluster._started()._supervisor = again = HeadSupervisor(head)
        again.start()
    assert retinue.get(Counter.remote().add.remote(), timeout=30) == 1


@pytest.mark.parametrize("seed", range(3))
def test_actors_made_around_its_death_are_all_there_once(cluster: Cluster, seed: int) -> None:
    rng = random.Random(seed)
    counters: list[Any] = []
    for number in range(20):
        name = {"name": f"counter-{number}"} if rng.random() < 0.5 else {}
        if rng.random() < 0.3:
            name |= {"lifetime": "detached"} if name else {}
        counters.append(Counter.options(**name).remote())
        if number in (5, 12):
            cluster.kill_head()
    for expected in (1, 2):
        assert retinue.get([c.add.remote() for c in counters], timeout=60) == [expected] * 20
    cluster.kill_head()
    assert retinue.get([c.add.remote() for c in counters], timeout=60) == [3] * 20


def test_the_drivers_job_is_still_running(cluster: Cluster) -> None:
    job_id = retinue.get_runtime_context().get_job_id()
    counter: Any = Counter.options(name="counter").remote()
    retinue.get(counter.add.remote(), timeout=30)
    for _ in range(3):
        kill_head(cluster)
        assert retinue.get(retinue.get_actor("counter").add.remote(), timeout=30) > 1
    with BlockingClient(cluster._started().head_address, cluster._started().token) as client:
        jobs = client.request(ListJobs(0))[0].jobs
    assert [(job.job_id.hex(), job.status) for job in jobs if not job.end_time] == [(job_id, "RUNNING")]


def test_an_actor_killed_while_no_head_is_there_is_dead_to_the_next(cluster: Cluster) -> None:
    counter: Any = Counter.options(name="counter").remote()
    retinue.get(counter.add.remote(), timeout=30)
    for _ in range(2):
        cluster.kill_head()
    retinue.kill(counter)
    with pytest.raises(ActorDiedError):
        retinue.get(counter.add.remote(), timeout=30)
    with pytest.raises(ValueError, match="counter"):
        retinue.get_actor("counter")


@retinue.remote(num_cpus=0, max_restarts=-1)
class Leaver:
    def pid(self) -> int:
        return os.getpid()

    def leave(self) -> None:
        retinue.actor.exit_actor()


def test_an_end_that_a_dying_head_did_not_read_is_told_to_the_next(cluster: Cluster) -> None:
    leaver: Any = Leaver.options(name="leaver").remote()
    worker = Pids([retinue.get(leaver.pid.remote(), timeout=30)])
    head = cluster._started().head
    assert head is not None
    os.kill(head.pid, signal.SIGSTOP)
    leaving = leaver.leave.remote()
    worker.wait()
    kill_head(cluster)
    with pytest.raises((ActorDiedError, ActorUnavailableError)):
        retinue.get(leaving, timeout=30)

    def is_over() -> bool:
        try:
            retinue.get(leaver.pid.remote(), timeout=30)
        except ActorUnavailableError:
            return False
        return True

    # It left by its own wish: no head may start it again.
    with pytest.raises(ActorDiedError, match=r"exit_actor\(\) was called"):
        wait_until(is_over)
    with pytest.raises(ValueError, match="no actor named"):
        retinue.get_actor("leaver")
