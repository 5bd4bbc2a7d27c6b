"""`scheduling_strategy="SPREAD"`: tasks and actors go round the nodes."""

from __future__ import annotations

from collections import Counter

import pytest

import retinue


@pytest.fixture(scope="module", autouse=True)
def _cluster(topology: str) -> None:
    if topology == "one node":
        pytest.skip("there is nowhere to go")


@retinue.remote(scheduling_strategy="SPREAD")
def where() -> str:
    return retinue.get_runtime_context().get_node_id()


@retinue.remote(scheduling_strategy="SPREAD", num_cpus=0)
class Actor:
    def where(self) -> str:
        return retinue.get_runtime_context().get_node_id()


def test_instant_tasks_run_on_all_nodes() -> None:
    nodes = Counter(retinue.get([where.remote() for _ in range(12)], timeout=60))
    assert min(nodes.values()) >= 2, nodes
    assert len(nodes) == 3


def test_tasks_without_cpus_go_round() -> None:
    nodes = Counter(retinue.get([where.options(num_cpus=0).remote() for _ in range(12)], timeout=60))
    assert min(nodes.values()) >= 3, nodes  # an answer that came between may shift a turn
    assert len(nodes) == 3


def test_actors_without_cpus_go_round() -> None:
    actors = [Actor.remote() for _ in range(6)]
    nodes = Counter(retinue.get([actor.where.remote() for actor in actors], timeout=60))
    assert sorted(nodes.values()) == [2, 2, 2]
