"""Kill -9 of the zygote: only the start of workers becomes slower, for a moment."""

from __future__ import annotations

import os
import signal
from typing import Any

import retinue
from tests.chaos.support import Node, kill_and_wait, wait_until


@retinue.remote(num_cpus=0)
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count

    def pid(self) -> int:
        return os.getpid()


@retinue.remote
def pid() -> int:
    return os.getpid()


def test_actors_and_tasks_go_on_and_new_workers_come(node: Node) -> None:
    counter: Any = Counter.remote()
    assert retinue.get(counter.add.remote(), timeout=30) == 1
    before = retinue.get(counter.pid.remote(), timeout=30)
    (zygote,) = node.zygotes()
    kill_and_wait(zygote)
    assert retinue.get(counter.add.remote(), timeout=30) == 2
    assert retinue.get(counter.pid.remote(), timeout=30) == before
    for worker in node.workers():
        if worker != before:
            os.kill(worker, signal.SIGKILL)
    assert retinue.get(pid.remote(), timeout=30) != before
    assert retinue.get(Counter.remote().add.remote(), timeout=30) == 1
    assert retinue.get(counter.add.remote(), timeout=30) == 3


def test_it_may_die_again_and_again(node: Node) -> None:
    for number in range(4):
        for zygote in node.zygotes():
            kill_and_wait(zygote)
        counter: Any = Counter.remote()
        assert retinue.get(counter.add.remote(), timeout=30) == 1, number


def test_it_dies_while_it_forks(node: Node) -> None:
    counters: list[Any] = []
    for _ in range(3):
        counters += [Counter.remote() for _ in range(4)]
        for zygote in node.zygotes():
            os.kill(zygote, signal.SIGKILL)
    assert retinue.get([counter.add.remote() for counter in counters], timeout=60) == [1] * 12
    wait_until(lambda: len({*retinue.get([c.pid.remote() for c in counters])}) == 12)
