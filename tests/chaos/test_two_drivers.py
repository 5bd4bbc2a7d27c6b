"""Two drivers on one cluster: each gets its share, and the end of one is not the other's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from retinue.core.cluster import NodeOptions, start_head_node, stop
from tests.chaos.support import DriverProcess, Node, Pids, processes_of, wait_until


@pytest.fixture
def shared(base: str) -> Iterator[Node]:
    """A cluster that outlives its drivers."""
    start_head_node(NodeOptions(num_cpus=2, object_store_memory=64 << 20))
    yield Node(base)
    stop()


CROWD = """
    @retinue.remote
    def work():
        time.sleep(0.01)

    retinue.init()
    refs = [work.remote() for _ in range(1_000_000)]
    retinue.wait(refs, num_returns=2)
    print("busy", flush=True)
    time.sleep(1000)
"""


def test_a_second_driver_gets_its_share_beside_many_queued_tasks(
    shared: Node, base: str, tmp_path: Path
) -> None:
    script = """
        @retinue.remote
        def one(x):
            return x

        retinue.init()
        print("sum", sum(retinue.get([one.remote(1) for _ in range(100)])), flush=True)
    """
    with DriverProcess(tmp_path, base, CROWD, "first") as first:
        first.line("busy", timeout_s=60)
        with DriverProcess(tmp_path, base, script, "second") as second:
            assert second.line("sum", timeout_s=20) == "100"
            assert second.wait() == 0
        assert first.process.poll() is None
        first.kill()
        first.wait()


def test_a_killed_driver_leaves_the_cluster_to_the_others(shared: Node, base: str, tmp_path: Path) -> None:
    script = """
        @retinue.remote
        class Actor:
            def ping(self):
                return os.getpid()

        retinue.init(namespace="n")
        anonymous = Actor.remote()
        named = Actor.options(name="named").remote()
        detached = Actor.options(name="detached", lifetime="detached").remote()
        print("pids", *retinue.get([a.ping.remote() for a in (anonymous, named, detached)]), flush=True)
        time.sleep(1000)
    """
    again = """
        retinue.init(namespace="n")
        print("pid", retinue.get(retinue.get_actor("detached").ping.remote()), flush=True)
        try:
            retinue.get_actor("named")
        except ValueError:
            print("gone", flush=True)
        retinue.kill(retinue.get_actor("detached"))
    """
    before = set(processes_of(base))
    with DriverProcess(tmp_path, base, script, "first") as first:
        anonymous, named, detached = (int(pid) for pid in first.line("pids").split())
        first.kill()
        Pids([anonymous, named]).wait()
    with DriverProcess(tmp_path, base, again, "second") as second:
        assert int(second.line("pid")) == detached
        second.line("gone")
        assert second.wait() == 0
    Pids([detached]).wait()
    wait_until(lambda: not shared.workers(), "workers of finished jobs end")
    assert set(processes_of(base)) <= before


def test_the_agent_of_a_started_node_is_killed_and_nothing_is_left(base: str) -> None:
    started = start_head_node(NodeOptions(num_cpus=2))
    everything = Pids(processes_of(base))
    os.kill(started.cluster.agent_pid, 9)
    everything.wait()
    os.waitpid(started.cluster.agent_pid, 0)
    assert os.listdir(base) == []


def test_the_head_of_a_started_node_is_back(shared: Node, base: str, tmp_path: Path) -> None:
    script = """
        retinue.init(namespace="n")

        @retinue.remote
        class Counter:
            count = 0

            def add(self):
                self.count += 1
                return self.count

        counter = Counter.options(name="counter", lifetime="detached").remote()
        print("count", retinue.get(counter.add.remote()), flush=True)
        sys.stdout.flush()
        while True:
            print("next", retinue.get(retinue.get_actor("counter").add.remote()), flush=True)
            signal.sigwait({signal.SIGUSR1})
    """
    with DriverProcess(
        tmp_path, base, "signal.pthread_sigmask(0, {signal.SIGUSR1})\n" + _plain(script)
    ) as driver:
        assert driver.line("count") == "1"
        assert driver.line("next") == "2"
        (head,) = [pid for pid, text in processes_of(base).items() if "core.head.main" in text]
        os.kill(head, 9)
        os.kill(driver.pid, 10)
        assert driver.line("next") == "3"
        driver.kill()


def _plain(text: str) -> str:
    import textwrap

    return textwrap.dedent(text)
