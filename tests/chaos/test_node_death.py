"""Kill -9 of a node's agent, and removed nodes: the node is gone with everything, the others go on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import retinue
from retinue.cluster_utils import Cluster, ClusterNode
from retinue.exceptions import (
    ActorDiedError,
    NodeDiedError,
    ObjectLostError,
    RetinueActorError,
    RetinueError,
)
from tests.chaos.support import (
    DriverProcess,
    Node,
    Pids,
    ask_node,
    children_of,
    kill_and_wait,
    processes_of,
    wait_until,
)


@pytest.fixture
def cluster(base: str) -> Iterator[Cluster]:
    """Three nodes: the driver's, and two with a resource of their own ("a", "b") and one in common ("x")."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 64 << 20})
    for name in ("a", "b"):
        cluster.add_node(num_cpus=2, resources={name: 100, "x": 100}, object_store_memory=64 << 20)
    cluster.wait_for_nodes()
    cluster.connect()
    yield cluster
    cluster.shutdown()


def node_with(cluster: Cluster, name: str) -> ClusterNode:
    return next(node for node in cluster.worker_nodes if name in node.process.config.resources)


def end_node(cluster: Cluster, node: ClusterNode, how: str) -> None:
    if how == "killed":
        kill_and_wait(node.pid)
    else:
        cluster.remove_node(node, allow_graceful=how == "removed")


@retinue.remote(num_cpus=0)
class Board:
    def __init__(self) -> None:
        import asyncio

        self._here: list[str] = []
        self._changed = asyncio.Condition()

    async def here(self) -> int:
        async with self._changed:
            self._here.append("")
            self._changed.notify_all()
            return len(self._here)

    async def wait_for(self, count: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._here) >= count)


@retinue.remote(num_cpus=0)
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count

    def node_id(self) -> str:
        return retinue.get_runtime_context().get_node_id()


def test_a_driver_whose_agent_is_killed_gets_clear_errors(base: str, tmp_path: Path) -> None:
    script = """
        import numpy as np
        from retinue.exceptions import RetinueError

        @retinue.remote
        def stay():
            print("task runs", flush=True)
            time.sleep(1000)

        @retinue.remote
        class Actor:
            def ping(self):
                return "pong"

            def stay(self):
                time.sleep(1000)

        retinue.init(address="local", num_cpus=2)
        actor = Actor.remote()
        print(retinue.get(actor.ping.remote()))
        waits = [stay.remote(), actor.stay.remote(), stay.remote()]
        for ref in waits:
            try:
                retinue.get(ref)
            except RetinueError as error:
                print("error", type(error).__name__, error, flush=True)
        for call in (stay.remote, actor.ping.remote):
            try:
                retinue.get(call(), timeout=20)
            except RetinueError as error:
                print("later", type(error).__name__, error, flush=True)
        retinue.shutdown()
        print("the end", flush=True)
    """
    with DriverProcess(tmp_path, base, script) as driver:
        while "task runs" not in driver.line(""):
            pass
        node = Node(base)
        everything = Pids(pid for pid in processes_of(base) if pid not in (driver.pid, node.file.head_pid))
        os.kill(node.agent_pid, signal.SIGKILL)
        everything.wait()
        for _ in range(3):
            assert "node" in driver.line("error")
        for _ in range(2):
            text = driver.line("later")
            assert "node" in text
            assert "GetTimeoutError" not in text
        driver.line("the end")
        assert driver.wait() == 0
    assert os.listdir(base) == []


def test_nothing_of_a_killed_agents_node_is_left(cluster: Cluster, tmp_path: Path) -> None:
    @retinue.remote(resources={"a": 1}, max_retries=0)
    def leak() -> list[int]:
        return [
            os.getpid(),
            subprocess.Popen(["sleep", "1000"]).pid,
            subprocess.Popen(["sleep", "1000"], start_new_session=True).pid,
        ]

    node = node_with(cluster, "a")
    pids = retinue.get(leak.remote(), timeout=30)
    everything = Pids([node.pid, *children_of(node.pid), *pids])
    node_dir = node.process.config.node_dir
    assert os.path.isdir(node_dir)
    os.kill(node.pid, signal.SIGKILL)
    everything.wait()
    wait_until(lambda: not os.path.exists(node_dir), "the node's folder is removed")
    cluster.remove_node(node)


@pytest.mark.parametrize("how", ["killed", "removed", "removed hard"])
def test_its_tasks_run_again_elsewhere(cluster: Cluster, how: str) -> None:
    board: Any = Board.remote()

    @retinue.remote(resources={"x": 1})
    def answer(last: str) -> str:
        import threading

        here = retinue.get_runtime_context().get_node_id()
        retinue.get(board.here.remote())
        if here == last:
            threading.Event().wait()
        return here

    node = node_with(cluster, "a")
    refs = [answer.remote(node.node_id) for _ in range(4)]
    retinue.get(board.wait_for.remote(3), timeout=30)
    end_node(cluster, node, how)
    other = node_with(cluster, "b").node_id if how == "killed" else next(iter(cluster.worker_nodes)).node_id
    assert retinue.get(refs, timeout=30) == [other] * 4


def test_a_task_without_retries_says_that_its_node_died(cluster: Cluster) -> None:
    board: Any = Board.remote()

    @retinue.remote(resources={"a": 1}, max_retries=0)
    def stay() -> None:
        import threading

        retinue.get(board.here.remote())
        threading.Event().wait()

    ref = stay.remote()
    retinue.get(board.wait_for.remote(1), timeout=30)
    kill_and_wait(node_with(cluster, "a").pid)
    with pytest.raises(NodeDiedError, match="stay"):
        retinue.get(ref, timeout=30)


@pytest.mark.parametrize("how", ["killed", "removed", "removed hard"])
def test_its_actors_restart_elsewhere(cluster: Cluster, how: str) -> None:
    options = {"resources": {"x": 1}, "max_restarts": 1, "max_task_retries": -1}
    counters: list[Any] = [Counter.options(**options).remote() for _ in range(4)]
    node = node_with(cluster, "a")
    retinue.get([c.add.remote() for c in counters], timeout=30)
    end_node(cluster, node, how)
    homes = retinue.get([c.node_id.remote() for c in counters], timeout=30)
    assert node.node_id not in homes


def test_its_actors_without_restarts_are_dead(cluster: Cluster) -> None:
    counter: Any = Counter.options(resources={"a": 1}).remote()
    assert retinue.get(counter.add.remote(), timeout=30) == 1
    kill_and_wait(node_with(cluster, "a").pid)
    with pytest.raises((ActorDiedError, RetinueActorError), match="node"):
        retinue.get(counter.add.remote(), timeout=30)
    with pytest.raises(ActorDiedError, match="node"):
        retinue.get(counter.add.remote(), timeout=30)


def test_actors_and_tasks_elsewhere_do_not_notice(cluster: Cluster) -> None:
    counter: Any = Counter.options(resources={"b": 1}).remote()

    @retinue.remote(resources={"b": 1})
    def one() -> int:
        return 1

    assert retinue.get([counter.add.remote(), one.remote()], timeout=30) == [1, 1]
    kill_and_wait(node_with(cluster, "a").pid)
    assert retinue.get([counter.add.remote(), one.remote()], timeout=30) == [2, 1]


@pytest.mark.parametrize("how", ["killed", "removed", "removed hard"])
def test_lost_objects_are_made_again(cluster: Cluster, how: str) -> None:
    np = pytest.importorskip("numpy")

    @retinue.remote(resources={"x": 1})
    def make(x: int) -> Any:
        return np.full(1 << 17, x)

    @retinue.remote(resources={"x": 1})
    def double(array: Any) -> Any:
        return array * 2

    made = [make.remote(x) for x in range(6)]
    doubled = [double.remote(ref) for ref in made]
    retinue.wait(doubled, num_returns=6, timeout=30, fetch_local=False)
    end_node(cluster, node_with(cluster, "a"), how)
    for x, array in enumerate(retinue.get(doubled, timeout=60)):
        assert array[0] == array[-1] == 2 * x


def test_a_lost_object_of_an_actor_says_who_made_it(cluster: Cluster) -> None:
    np = pytest.importorskip("numpy")

    @retinue.remote(resources={"a": 1})
    class Maker:
        def make(self) -> Any:
            return np.ones(1 << 17)

    maker: Any = Maker.remote()
    ref = maker.make.remote()
    retinue.wait([ref], timeout=30, fetch_local=False)
    kill_and_wait(node_with(cluster, "a").pid)
    with pytest.raises(ObjectLostError, match="make"):
        retinue.get(ref, timeout=30)


def test_a_loop_of_tasks_survives_nodes_that_come_and_go(cluster: Cluster) -> None:
    np = pytest.importorskip("numpy")

    @retinue.remote(resources={"x": 1}, max_retries=-1)
    def step(x: int) -> Any:
        return np.full(1 << 15, x)

    @retinue.remote(resources={"x": 1}, max_retries=-1)
    def total(*arrays: Any) -> int:
        return int(sum(a[0] for a in arrays))

    rng = random.Random(11)
    for round_ in range(3):
        refs = [step.remote(x) for x in range(40)]
        totals = [total.remote(*refs[i : i + 4]) for i in range(0, 40, 4)]
        retinue.wait(totals, num_returns=3, timeout=30)
        victim = rng.choice(cluster.list_all_nodes()[1:])
        name = "a" if "a" in victim.process.config.resources else "b"
        cluster.remove_node(victim, allow_graceful=rng.random() < 0.5)
        cluster.add_node(num_cpus=2, resources={name: 100, "x": 100}, object_store_memory=64 << 20)
        assert sum(retinue.get(totals, timeout=60)) == sum(range(40)), round_


def test_an_object_whose_owner_died_with_its_node_says_so(cluster: Cluster) -> None:
    @retinue.remote(resources={"a": 1})
    class Owner:
        def put(self) -> list[Any]:
            return [retinue.put(bytes(1 << 20))]

    owner: Any = Owner.remote()
    (ref,) = retinue.get(owner.put.remote(), timeout=30)
    kill_and_wait(node_with(cluster, "a").pid)
    with pytest.raises(RetinueError, match=r"owner|owned|lost"):
        retinue.get(ref, timeout=30)


def test_mixed_work_is_right_while_workers_and_nodes_die(cluster: Cluster) -> None:
    np = pytest.importorskip("numpy")

    @retinue.remote(max_retries=-1)
    def leaf(x: int) -> int:
        return x

    @retinue.remote(max_retries=-1)
    def tree(x: int) -> int:
        return sum(retinue.get([leaf.remote(x) for _ in range(4)]))

    @retinue.remote(max_retries=-1)
    def big(x: int) -> Any:
        return np.full(50_000, x)

    @retinue.remote(max_retries=-1)
    def first(array: Any) -> int:
        return int(array[0])

    rng = random.Random(4)
    refs: list[Any] = []
    for x in range(100):
        refs += [leaf.remote(x), tree.remote(x), first.remote(big.remote(x))]
    left = list(refs)
    steps = 0
    while left:
        steps += 1
        if steps == 10:
            cluster.remove_node(node_with(cluster, "a"), allow_graceful=False)
            cluster.add_node(num_cpus=2, resources={"a": 1})
        if steps <= 30 and (workers := workers_of(cluster)):
            kill_and_wait(rng.choice(workers))
        _, left = retinue.wait(left, num_returns=min(len(left), rng.randrange(1, 20)), timeout=60)
    expected = [value for x in range(100) for value in (x, 4 * x, x)]
    assert retinue.get(refs, timeout=60) == expected


def workers_of(cluster: Cluster) -> list[int]:
    token = cluster._started().token
    found = [w for n in cluster.list_all_nodes() for w in ask_node(n.process.address, token, "workers")]
    return [w["pid"] for w in found if w["is_alive"] and w["pid"] and w["worker_type"] == "WORKER"]
