"""However a driver ends, in order or not: nothing of its cluster is left."""

from __future__ import annotations

import os
import signal
import textwrap
from pathlib import Path

import pytest

import retinue
from retinue.core import launch
from retinue.exceptions import RetinueSystemError
from tests.chaos.support import DriverProcess, Node, Pids, mapped_memfds, processes_of

BUSY = """
    import subprocess
    import numpy as np
    import retinue.util

    @retinue.remote
    def stay():
        subprocess.Popen(["sleep", "1000"])
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        print("task runs", flush=True)
        time.sleep(1000)

    @retinue.remote
    class Actor:
        def ping(self):
            return np.ones(1 << 20)

    def main():
        retinue.init(address="local", num_cpus=4, object_store_memory=128 << 20)
        actor = Actor.options(name="a").remote()
        detached = Actor.options(name="d", lifetime="detached").remote()
        big = retinue.put(np.zeros(4 << 20))
        held = retinue.get([actor.ping.remote(), detached.ping.remote()])
        ref = stay.remote()
        {end}

    main()
"""


def driver_that(end: str) -> str:
    """A driver with work of every kind, that then runs these lines."""
    return textwrap.dedent(BUSY).replace("{end}", textwrap.indent(textwrap.dedent(end), "    ").strip())


def wait_for_work(driver: DriverProcess, base: str) -> Pids:
    """Until the driver's task runs; all the cluster's processes, and what they have started."""
    while "task runs" not in driver.line(""):
        pass
    processes = processes_of(base)
    assert len(processes) >= 8, processes
    return Pids(processes)


def test_a_killed_driver_leaves_nothing(base: str, tmp_path: Path) -> None:
    with DriverProcess(tmp_path, base, driver_that("retinue.get(ref)")) as driver:
        everything = wait_for_work(driver, base)
        assert any(mapped_memfds(pid) for pid in processes_of(base))
        driver.kill()
        everything.wait()
    assert processes_of(base) == {}
    assert os.listdir(base) == []


def test_a_killed_driver_and_head_leave_nothing(base: str, tmp_path: Path) -> None:
    with DriverProcess(tmp_path, base, driver_that("retinue.get(ref)")) as driver:
        everything = wait_for_work(driver, base)
        file = Node(base).file
        os.kill(file.head_pid, signal.SIGKILL)
        driver.kill()
        everything.wait()


def test_a_driver_killed_with_its_agent_leaves_nothing_that_runs(base: str, tmp_path: Path) -> None:
    with DriverProcess(tmp_path, base, driver_that("retinue.get(ref)")) as driver:
        everything = wait_for_work(driver, base)
        os.kill(Node(base).agent_pid, signal.SIGKILL)
        driver.kill()
        everything.wait()


def test_what_is_left_after_everything_was_killed_is_removed_by_the_next(base: str, tmp_path: Path) -> None:
    with DriverProcess(
        tmp_path, base, "retinue.init(address='local'); print('up'); time.sleep(1000)"
    ) as driver:
        driver.line("up")
        everything = Pids(processes_of(base))
        everything.kill(signal.SIGSTOP)  # so that none of them can tidy up after the others
        everything.kill()
        everything.wait()
        driver.wait()
    assert len(os.listdir(base)) == 1
    retinue.init(address="local", num_cpus=1)
    assert len(os.listdir(base)) == 1
    retinue.shutdown()


def test_a_driver_that_exits_hard_with_a_blocked_get_leaves_nothing(base: str, tmp_path: Path) -> None:
    end = """
        def leave(number, frame):
            os._exit(3)
        signal.signal(signal.SIGUSR1, leave)
        retinue.get(ref)
    """
    with DriverProcess(tmp_path, base, driver_that(end)) as driver:
        everything = wait_for_work(driver, base)
        os.kill(driver.pid, signal.SIGUSR1)
        assert driver.wait() == 3
        everything.wait()
    assert os.listdir(base) == []


def test_ctrl_c_ends_a_blocked_get_in_order(base: str, tmp_path: Path) -> None:
    end = """
        try:
            retinue.get(ref)
        except KeyboardInterrupt:
            print("interrupted", retinue.get(actor.ping.remote()).sum(), flush=True)
            raise
    """
    with DriverProcess(tmp_path, base, driver_that(end)) as driver:
        everything = wait_for_work(driver, base)
        driver.interrupt()
        assert driver.line("interrupted") == str(float(1 << 20))
        assert driver.wait() == -signal.SIGINT
        everything.wait()
        assert "KeyboardInterrupt" in driver.stderr()
        assert "Exception ignored" not in driver.stderr()
    assert os.listdir(base) == []


@pytest.mark.parametrize(
    "wait",
    [
        "retinue.wait([ref])",
        "time.sleep(1000)",
        "retinue.get([actor.ping.remote() for _ in range(100)] + [ref])",
        "next(iter(retinue.util.as_completed([ref])))",
    ],
)
def test_ctrl_c_ends_other_waits_too(base: str, tmp_path: Path, wait: str) -> None:
    with DriverProcess(tmp_path, base, driver_that(wait)) as driver:
        everything = wait_for_work(driver, base)
        driver.interrupt()
        assert driver.wait() == -signal.SIGINT
        everything.wait()
    assert os.listdir(base) == []


def test_ctrl_c_again_and_again_leaves_nothing(base: str, tmp_path: Path) -> None:
    """An impatient user interrupts the end in order as well."""
    with DriverProcess(tmp_path, base, driver_that("retinue.get(ref)")) as driver:
        everything = wait_for_work(driver, base)
        while driver.process.poll() is None:
            driver.interrupt()
        everything.wait()
    assert processes_of(base) == {}
    retinue.init(address="local", num_cpus=1)  # removes a folder that nobody was left to remove
    retinue.shutdown()
    assert os.listdir(base) == []


def test_a_node_that_cannot_start_says_why(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "AGENT_MODULE", "tests.chaos.no_such_agent")
    with pytest.raises(RetinueSystemError, match="no_such_agent"):
        retinue.init(address="local", num_cpus=1)
    assert not retinue.is_initialized()


def test_ctrl_c_during_init_leaves_nothing(base: str, tmp_path: Path) -> None:
    script = """
        from retinue.core import cluster
        start = cluster.LocalCluster.start_agent
        def start_agent(self, options):
            agent = start(self, options)
            os.kill(os.getpid(), signal.SIGINT)
            return agent
        cluster.LocalCluster.start_agent = start_agent
        retinue.init(address="local", num_cpus=1)
    """
    with DriverProcess(tmp_path, base, script) as driver:
        assert driver.wait() == -signal.SIGINT
    assert os.listdir(base) == []


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("sys.exit(5)", 5),
        ("raise ValueError('at top level')", 1),
        ("pass", 0),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.abort()", -signal.SIGABRT),
    ],
)
def test_other_ends_leave_nothing(base: str, tmp_path: Path, end: str, code: int) -> None:
    end = f"""
        retinue.get(actor.ping.remote())
        {end}
    """
    with DriverProcess(tmp_path, base, driver_that(end)) as driver:
        assert driver.wait() == code
        everything = Pids(processes_of(base))
        everything.wait()
    assert os.listdir(base) == []


def test_a_driver_that_was_forked_from_ends_alone(base: str, tmp_path: Path) -> None:
    """A child of multiprocessing that outlives the driver keeps nothing of its cluster alive."""
    script = """
        import multiprocessing
        retinue.init(address="local", num_cpus=1)
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
        child.start()
        print("child", child.pid, flush=True)
        time.sleep(1000)
    """
    with DriverProcess(tmp_path, base, script) as driver:
        child = int(driver.line("child"))
        others = Pids(pid for pid in processes_of(base) if pid != child)
        driver.kill()
        others.wait()
        os.kill(child, signal.SIGKILL)
    assert os.listdir(base) == []
