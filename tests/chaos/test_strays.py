"""Children of workers in sessions of their own: they end with their worker, whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import retinue
from retinue.core import session as sessions
from retinue.core.cluster import NodeOptions, start_head_node, stop
from tests.chaos.support import DriverProcess, Node, Pids, has_ended, processes_of, wait_until

SLEEP = ["sleep", "100000"]
# A child that leaves, with a child of its own; the pid of the first and the second is printed.
FAMILY = """
import os, subprocess, time
print(os.getpid(), subprocess.Popen(["sleep", "100000"]).pid, flush=True)
time.sleep(100000)
"""
DAEMON = """
import subprocess
print(subprocess.Popen(["sleep", "100000"], start_new_session=True, stdout=subprocess.DEVNULL).pid)
"""


@retinue.remote(num_cpus=0)
class Parent:
    def start(self, how: str) -> list[int]:
        if how == "session":
            return [subprocess.Popen(SLEEP, start_new_session=True).pid]
        if how == "clean environment":
            return [subprocess.Popen(SLEEP, start_new_session=True, env={"PATH": os.environ["PATH"]}).pid]
        if how == "fork":
            pid = os.fork()
            if not pid:
                os.setsid()
                signal.pause()
            return [pid]
        if how == "daemon":
            output = subprocess.run([sys.executable, "-c", DAEMON], stdout=subprocess.PIPE, check=True).stdout
            return [int(output)]
        family = subprocess.Popen(
            [sys.executable, "-c", FAMILY],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert family.stdout is not None
        return [int(word) for word in family.stdout.readline().split()]

    def pid(self) -> int:
        return os.getpid()


WAYS = ["session", "clean environment", "fork", "daemon", "family"]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("ending", ["killed", "released"])
def test_a_child_in_a_session_of_its_own_ends_with_its_worker(node: Node, how: str, ending: str) -> None:
    parent: Any = Parent.remote()
    children = Pids(retinue.get(parent.start.remote(how), timeout=30))
    if ending == "killed":
        os.kill(retinue.get(parent.pid.remote()), signal.SIGKILL)
    del parent
    children.wait()


def test_the_children_of_other_workers_stay(node: Node) -> None:
    first, second = Parent.remote(), Parent.remote()
    doomed = Pids([pid for how in WAYS for pid in retinue.get(first.start.remote(how), timeout=30)])
    kept = [pid for how in WAYS for pid in retinue.get(second.start.remote(how), timeout=30)]
    retinue.kill(first)
    doomed.wait()
    # Had the agent meant them as well, it would have killed them at the same moment.
    assert not any(has_ended(pid) for pid in kept)
    rest = Pids(kept)
    retinue.kill(second)
    rest.wait()


def test_none_stays_where_agent_and_zygote_are_killed_together(base: str, tmp_path: Path) -> None:
    retinue.init(address="local", num_cpus=1, object_store_memory=128 << 20)
    node = Node(base)
    parent: Any = Parent.remote()
    children = Pids([pid for how in WAYS for pid in retinue.get(parent.start.remote(how), timeout=30)])
    for pid in node.zygotes():  # first: it would sweep up
        os.kill(pid, signal.SIGSTOP)
    zygotes = Pids(node.zygotes())
    os.kill(node.agent_pid, signal.SIGKILL)
    zygotes.kill()
    children.wait()  # the head ends them
    retinue.shutdown()


def test_the_next_start_ends_what_a_killed_cluster_has_left(base: str, tmp_path: Path) -> None:
    started = start_head_node(NodeOptions(num_cpus=1, object_store_memory=64 << 20))
    script = """
        import subprocess

        retinue.init(address="auto")

        @retinue.remote
        def start():
            return subprocess.Popen(["sleep", "100000"], start_new_session=True).pid

        @retinue.remote(num_cpus=0)
        class Keeper:
            def start(self):
                return subprocess.Popen(["sleep", "100000"], start_new_session=True).pid

        keeper = Keeper.remote()
        print("child", retinue.get(keeper.start.remote()), flush=True)
        signal.pause()
    """
    with DriverProcess(tmp_path, base, script) as driver:
        child = int(driver.line("child"))
        everything = {pid: text for pid, text in processes_of(base).items() if pid not in (driver.pid, child)}
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in everything:
                os.kill(pid, number)
        Pids(everything).wait()
        os.waitpid(started.cluster.agent_pid, 0)
        driver.kill()
        driver.wait()
    assert not has_ended(child)
    gone = Pids([child])
    assert sessions.clean_stale() == 1
    gone.wait()
    assert stop().ended == 0


def test_a_child_whose_worker_lives_is_left_alone_when_others_end(node: Node) -> None:
    parent: Any = Parent.remote()
    (daemon,) = retinue.get(parent.start.remote("daemon"), timeout=30)

    @retinue.remote(max_calls=1)
    def once() -> int:
        return os.getpid()

    workers = {retinue.get(once.remote(), timeout=30) for _ in range(5)}
    wait_until(lambda: all(has_ended(pid) for pid in workers))
    assert not has_ended(daemon)
