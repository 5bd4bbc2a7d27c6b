"""A worker that passes its memory limit is ended before the kernel kills a stranger."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import retinue
from retinue.exceptions import ActorDiedError, OutOfMemoryError
from tests.chaos.support import Node

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
