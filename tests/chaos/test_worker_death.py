"""Kill -9 of workers: tasks are retried, actors restart, callers learn who died and how."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

import retinue
from retinue.exceptions import ActorDiedError, WorkerCrashedError
from tests.chaos.support import Node, has_ended, kill_and_wait, wait_until


@retinue.remote(num_cpus=0)
class Board:
    """Where tasks of a test say that they run, and wait until they may go on."""

    def __init__(self) -> None:
        import asyncio

        self._pids: list[int] = []
        self._changed = asyncio.Condition()
        self._is_open = False

    async def here(self, pid: int) -> int:
        """Returns how many were here before."""
        async with self._changed:
            self._pids.append(pid)
            self._changed.notify_all()
            return len(self._pids) - 1

    async def pids(self, count: int) -> list[int]:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._pids) >= count)
        return self._pids

    async def wait_open(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._is_open)

    async def open(self) -> None:
        async with self._changed:
            self._is_open = True
            self._changed.notify_all()


def test_a_task_whose_worker_is_killed_runs_again(node: Node) -> None:
    board: Any = Board.remote()

    @retinue.remote
    def answer() -> tuple[int, int]:
        before = retinue.get(board.here.remote(os.getpid()))
        if before == 0:
            retinue.get(board.wait_open.remote())
        return before, os.getpid()

    ref = answer.remote()
    (pid,) = retinue.get(board.pids.remote(1), timeout=30)
    kill_and_wait(pid)
    before, again = retinue.get(ref, timeout=30)
    assert before == 1
    assert again != pid


def test_a_computing_task_is_killed_and_runs_again(node: Node, tmp_path: Path) -> None:
    marker = tmp_path / "pid"

    @retinue.remote
    def spin() -> str:
        if not marker.exists():
            marker.with_suffix(".new").write_text(str(os.getpid()))
            marker.with_suffix(".new").rename(marker)
            while True:
                pass
        return "done"

    ref = spin.remote()
    wait_until(marker.exists)
    kill_and_wait(int(marker.read_text()))
    assert retinue.get(ref, timeout=30) == "done"


def test_without_retries_the_error_says_which_process_died_and_how(node: Node) -> None:
    board: Any = Board.remote()

    @retinue.remote(max_retries=0)
    def last_words() -> None:
        print("the last line on stdout")
        retinue.get(board.here.remote(os.getpid()))
        retinue.get(board.wait_open.remote())

    ref = last_words.remote()
    (pid,) = retinue.get(board.pids.remote(1), timeout=30)
    kill_and_wait(pid)
    with pytest.raises(WorkerCrashedError) as caught:
        retinue.get(ref, timeout=30)
    text = str(caught.value)
    assert "last_words" in text
    assert f"worker process {pid} killed by signal 9" in text
    assert "the last line on stdout" in text


def test_an_exit_is_told_with_its_code_and_what_stood_on_stderr(node: Node) -> None:
    @retinue.remote(max_retries=1)
    def leave() -> None:
        os.write(2, b"cannot go on\n")
        os._exit(7)

    with pytest.raises(WorkerCrashedError, match="exited with code 7") as caught:
        retinue.get(leave.remote(), timeout=30)
    assert "cannot go on" in str(caught.value)


def test_a_segmentation_fault_is_told_by_its_signal(node: Node) -> None:
    @retinue.remote(max_retries=0)
    def crash() -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    with pytest.raises(WorkerCrashedError, match="killed by signal 11") as caught:
        retinue.get(crash.remote(), timeout=30)
    assert "Segmentation fault" in str(caught.value)
    assert re.search(r'File ".*test_worker_death\.py", line \d+ in crash', str(caught.value))


def test_a_task_is_retried_as_often_as_it_says(node: Node) -> None:
    board: Any = Board.remote()

    @retinue.remote(max_retries=2)
    def die() -> None:
        retinue.get(board.here.remote(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerCrashedError):
        retinue.get(die.remote(), timeout=30)
    assert len(set(retinue.get(board.pids.remote(3), timeout=30))) == 3


@pytest.mark.parametrize("seed", [1, 2])
def test_a_thousand_tasks_are_all_right_while_workers_are_killed(node: Node, seed: int) -> None:
    @retinue.remote(max_retries=-1)
    def square(x: int) -> int:
        return sum(x for _ in range(x)) if x < 300 else x * x

    rng = random.Random(seed)
    killed = 0
    left = [square.remote(x) for x in range(1000)]
    refs = list(left)
    while left:
        if killed < 25 and (workers := node.workers()):
            try:
                os.kill(rng.choice(workers), signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                pass
        _, left = retinue.wait(left, num_returns=min(len(left), rng.randrange(1, 60)), timeout=30)
    assert retinue.get(refs, timeout=30) == [x * x for x in range(1000)]
    assert killed >= 10


def test_trees_of_tasks_are_right_while_workers_are_killed(node: Node) -> None:
    @retinue.remote(max_retries=-1)
    def leaf(x: int) -> int:
        return x

    @retinue.remote(max_retries=-1)
    def tree(x: int) -> int:
        return sum(retinue.get([leaf.remote(x) for _ in range(4)]))

    rng = random.Random(3)
    refs = [tree.remote(x) for x in range(60)]
    left = list(refs)
    killed = 0
    while left:
        if killed < 10 and (workers := node.workers()):
            try:
                os.kill(rng.choice(workers), signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                pass
        _, left = retinue.wait(left, num_returns=min(len(left), 5), timeout=60)
    assert retinue.get(refs, timeout=30) == [4 * x for x in range(60)]


@retinue.remote(max_restarts=2)
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count

    def pid(self) -> int:
        return os.getpid()

    def was_restarted(self) -> bool:
        return retinue.get_runtime_context().was_current_actor_reconstructed


def test_an_actor_restarts_as_often_as_it_may_and_later_calls_wait(node: Node) -> None:
    counter: Any = Counter.options(max_task_retries=-1).remote()
    pids = set()
    for _ in range(3):
        assert retinue.get(counter.add.remote(), timeout=30) == 1
        pid = retinue.get(counter.pid.remote(), timeout=30)
        pids.add(pid)
        os.kill(pid, signal.SIGKILL)
    assert len(pids) == 3
    with pytest.raises(ActorDiedError, match="killed by signal 9"):
        retinue.get(counter.add.remote(), timeout=30)
    with pytest.raises(ActorDiedError, match="Counter"):
        retinue.get(counter.add.remote(), timeout=30)


def test_a_restarted_actor_knows_it(node: Node) -> None:
    counter: Any = Counter.options(max_task_retries=-1).remote()
    assert not retinue.get(counter.was_restarted.remote(), timeout=30)
    kill_and_wait(retinue.get(counter.pid.remote(), timeout=30))
    assert retinue.get(counter.was_restarted.remote(), timeout=30)


def test_an_actors_call_in_flight_fails_without_retries_and_later_ones_wait(node: Node) -> None:
    board: Any = Board.remote()

    @retinue.remote(max_restarts=1)
    class Waiter:
        def wait(self) -> None:
            retinue.get(board.here.remote(os.getpid()))
            retinue.get(board.wait_open.remote())

        def echo(self, x: int) -> int:
            return x

    waiter: Any = Waiter.remote()
    running = waiter.wait.remote()
    (pid,) = retinue.get(board.pids.remote(1), timeout=30)
    kill_and_wait(pid)
    with pytest.raises(retinue.exceptions.RetinueActorError, match="signal 9"):
        retinue.get(running, timeout=30)
    assert retinue.get(waiter.echo.remote(5), timeout=30) == 5


def test_what_a_killed_actor_had_answered_stays(node: Node) -> None:
    counter: Any = Counter.options(max_restarts=0).remote()
    refs = [counter.add.remote() for _ in range(100)]
    pid = retinue.get(counter.pid.remote(), timeout=30)
    kill_and_wait(pid)
    assert retinue.get(refs, timeout=30) == list(range(1, 101))


def test_actors_are_killed_at_random_moments_under_load(node: Node) -> None:
    actors: list[Any] = [
        Counter.options(max_restarts=-1, max_task_retries=-1, num_cpus=0).remote() for _ in range(3)
    ]
    rng = random.Random(5)
    stop = threading.Event()
    killed = []

    def killer() -> None:
        # An actor that dies again and again waits longer and longer for its restart: not too many.
        while len(killed) < 9 and not stop.wait(rng.random() * 0.05):
            hosts = [w["pid"] for w in node.ask("workers") if w.get("actor_id") and w["is_alive"]]
            if hosts:
                pid = rng.choice(hosts)
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                killed.append(pid)

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        for _ in range(10):
            refs = [actor.pid.remote() for actor in actors for _ in range(50)]
            assert all(pid > 0 for pid in retinue.get(refs, timeout=60))
        wait_until(lambda: len(killed) >= 5)
    finally:
        stop.set()
        thread.join()
    assert len(retinue.get([actor.pid.remote() for actor in actors], timeout=60)) == 3


@pytest.mark.parametrize("how", ["killed", "idle", "shutdown"])
def test_children_that_a_worker_leaks_end_with_it(node: Node, how: str) -> None:
    @retinue.remote
    class Leaky:
        def leak(self) -> tuple[int, int]:
            return os.getpid(), subprocess.Popen(["sleep", "1000"]).pid

    leaky: Any = Leaky.remote()
    pid, child = retinue.get(leaky.leak.remote(), timeout=30)
    assert not has_ended(child)
    if how == "killed":
        os.kill(pid, signal.SIGKILL)
    elif how == "idle":
        del leaky  # the last handle
    else:
        retinue.shutdown()
    wait_until(lambda: has_ended(child), "the child ends with its worker")
    assert has_ended(pid)


def test_a_child_in_a_session_of_its_own_ends_with_the_node(node: Node) -> None:
    @retinue.remote
    def leak() -> int:
        return subprocess.Popen(["sleep", "1000"], start_new_session=True).pid

    child = retinue.get(leak.remote(), timeout=30)
    retinue.shutdown()
    wait_until(lambda: has_ended(child), "the node's agent ends orphans that fell to it")
