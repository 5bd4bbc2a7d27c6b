"""A worker that passes its memory limit is ended before the kernel kills a stranger."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import retinue
from retinue.cluster_utils import Cluster
from retinue.exceptions import ActorDiedError, OutOfMemoryError, RetinueSystemError
from tests.chaos.support import Node, wait_until

LIMIT = 100 << 20


def eat() -> None:
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1 << 20)))


def test_a_task_above_its_limit_is_ended_with_an_error_that_names_it(node: Node) -> None:
    @retinue.remote(memory=LIMIT, max_retries=0)
    def glutton() -> None:
        eat()

    with pytest.raises(OutOfMemoryError, match=r"glutton.*had asked for 100 MiB"):
        retinue.get(glutton.remote(), timeout=60)


def test_it_is_retried_if_it_may_be(node: Node, tmp_path: Path) -> None:
    marker = tmp_path / "tried"

    @retinue.remote(memory=LIMIT, max_retries=1)
    def glutton() -> str:
        if not marker.exists():
            marker.touch()
            eat()
        return "modest now"

    assert retinue.get(glutton.remote(), timeout=60) == "modest now"


def test_an_actor_above_its_limit_dies_and_says_why(node: Node) -> None:
    @retinue.remote(memory=LIMIT)
    class Glutton:
        def eat(self) -> None:
            eat()

    glutton: Any = Glutton.remote()
    with pytest.raises((ActorDiedError, OutOfMemoryError), match="out of memory"):
        retinue.get(glutton.eat.remote(), timeout=60)


def test_others_are_left_alone_and_shared_pages_do_not_count(node: Node) -> None:
    np = pytest.importorskip("numpy")
    big = retinue.put(np.ones(8 << 20))  # 64 MiB

    @retinue.remote(memory=LIMIT, max_restarts=0)
    class Modest:
        def total(self, *arrays: Any) -> float:
            self.kept = arrays
            return float(sum(a.sum() for a in arrays))

    modest: Any = Modest.remote()
    other = retinue.put(np.ones(7 << 20))
    assert retinue.get(modest.total.remote(big, other), timeout=30) == (15 << 20)

    @retinue.remote(memory=LIMIT, max_retries=0)
    def glutton() -> None:
        eat()

    with pytest.raises(OutOfMemoryError):
        retinue.get(glutton.remote(), timeout=60)
    assert retinue.get(modest.total.remote(), timeout=30) == 0


# --- the machine runs short -------------------------------------------------------------------------------

NODE_LIMIT = 900 << 20


@pytest.fixture
def small_node(base: str) -> Iterator[None]:
    """A node whose workers may use 900 MiB together: what others do on this machine does not matter."""
    args = {"num_cpus": 4, "system_config": {"memory_limit": str(NODE_LIMIT)}}
    cluster = Cluster(initialize_head=True, connect=True, head_node_args=args)
    yield
    cluster.shutdown()


def take(mebibytes: int) -> bytes:
    return b"x" * (mebibytes << 20)


@retinue.remote(num_cpus=0, max_restarts=0)
class Steady:
    def __init__(self) -> None:
        self.kept = take(200)

    def pid(self) -> int:
        return os.getpid()


@retinue.remote(max_retries=3)
def older(folder: Path) -> int:
    with (folder / "older").open("a") as log:
        log.write("began\n")
    kept = take(200)
    while not (folder / "go").exists():
        time.sleep(0.01)
    return len(kept)


@retinue.remote
def newer(folder: Path) -> str:
    if not (folder / "newer").exists():
        (folder / "newer").touch()
        kept = take(600)
        while kept:
            time.sleep(0.01)
    return "modest now"


@pytest.mark.parametrize("retries", [0, 1])
def test_the_newest_that_may_run_again_ends_and_the_others_live_on(
    small_node: None, tmp_path: Path, retries: int
) -> None:
    steady: Any = Steady.remote()
    before = retinue.get(steady.pid.remote(), timeout=30)
    first = older.remote(tmp_path)
    wait_until((tmp_path / "older").exists)
    second = newer.options(max_retries=retries).remote(tmp_path)
    if retries:
        assert retinue.get(second, timeout=60) == "modest now"
    else:
        with pytest.raises(OutOfMemoryError, match=r"newer.*the node uses .* of 900 MiB.*newest retriable"):
            retinue.get(second, timeout=60)
    assert (tmp_path / "newer").exists()
    (tmp_path / "go").touch()
    assert retinue.get(first, timeout=30) == 200 << 20
    assert (tmp_path / "older").read_text() == "began\n", "it was not run again"
    assert retinue.get(steady.pid.remote(), timeout=30) == before


def test_an_actor_that_may_restart_gives_way_and_comes_again(small_node: None, tmp_path: Path) -> None:
    steady: Any = Steady.remote()
    before = retinue.get(steady.pid.remote(), timeout=30)

    @retinue.remote(num_cpus=0, max_restarts=1, max_task_retries=1)
    class Glutton:
        def eat(self) -> int:
            if (tmp_path / "full").exists():
                return os.getpid()
            (tmp_path / "full").touch()
            eat()
            raise AssertionError

    glutton: Any = Glutton.remote()
    assert retinue.get(glutton.eat.remote(), timeout=60) != before
    assert retinue.get(steady.pid.remote(), timeout=30) == before


def test_the_threshold_is_set_by_a_variable_and_the_machine_is_measured(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETINUE_MEMORY_USAGE_THRESHOLD", "0.001")  # every machine uses more
    retinue.init(address="local", num_cpus=1, object_store_memory=128 << 20)

    @retinue.remote(max_retries=0)
    def idle() -> None:
        signal.pause()

    with pytest.raises(OutOfMemoryError, match="the machine uses"):
        retinue.get(idle.remote(), timeout=60)
    retinue.shutdown()


def test_a_threshold_that_is_no_share_is_refused(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETINUE_MEMORY_USAGE_THRESHOLD", "95")
    with pytest.raises(RetinueSystemError, match="a share between 0 and 1, not '95'"):
        retinue.init(address="local", num_cpus=1)
