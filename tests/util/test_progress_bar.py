from __future__ import annotations

from typing import Any

import pytest

import retinue
from retinue.util import progress
from retinue.util.bars import bar, manager
from retinue.util.bars.wire import BarState


class Ref:
    def __init__(self, value: int) -> None:
        self.value = value


class Cluster:
    """References become ready in rounds; what was drawn is kept."""

    def __init__(self) -> None:
        self.rounds: list[list[Ref]] = []
        self.drawn: list[BarState] = []

    def wait(self, refs: list[Ref], *, num_returns: int, timeout: float | None = None) -> Any:
        if timeout is None:
            self.rounds.pop(0) if not set(refs) & set(self.rounds[0]) else None
        ready = [ref for ref in refs if ref in self.rounds[0]][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def draw(self, state: BarState) -> None:
        self.drawn.append(state)


@pytest.fixture
def cluster_(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    monkeypatch.setattr(retinue, "wait", cluster.wait, raising=False)
    monkeypatch.setattr(retinue, "get", lambda ref: ref.value, raising=False)
    monkeypatch.setattr(retinue, "ObjectRef", Ref, raising=False)
    monkeypatch.setattr(retinue, "is_initialized", lambda: False, raising=False)
    monkeypatch.setattr(manager, "instance", lambda: cluster)
    monkeypatch.setattr(bar, "DRIVER_INTERVAL_S", 0.0)
    return cluster


def test_values_come_as_they_are_ready_and_the_bar_counts_them(cluster_: Cluster) -> None:
    refs = [Ref(i) for i in range(5)]
    cluster_.rounds = [[refs[3], refs[1]], [refs[0], refs[2], refs[4]]]
    assert list(progress(refs, desc="work")) == [1, 3, 0, 2, 4]  # type: ignore[comparison-overlap]
    assert [(s.x, s.total, s.desc, s.closed) for s in cluster_.drawn] == [
        (0, 5, "work", False),
        (2, 5, "work", False),
        (5, 5, "work", False),
        (5, 5, "work", True),
    ]


def test_references_instead_of_values(cluster_: Cluster) -> None:
    refs = [Ref(0), Ref(1)]
    cluster_.rounds = [refs]
    assert list(progress(refs, yield_obj_refs=True)) == refs


def test_any_other_iterable_is_counted(cluster_: Cluster) -> None:
    assert list(progress((i for i in range(3)), total=3)) == [0, 1, 2]
    assert cluster_.drawn[-1].x == 3
    assert cluster_.drawn[-1].closed


def test_a_loop_of_ones_own(cluster_: Cluster) -> None:
    with progress(total=10, unit="trial") as shown:
        shown.update(4)
    assert (cluster_.drawn[-1].x, cluster_.drawn[-1].unit, cluster_.drawn[-1].closed) == (4, "trial", True)


def test_leaving_early_closes_the_bar(cluster_: Cluster) -> None:
    refs = [Ref(0), Ref(1)]
    cluster_.rounds = [refs]
    results = iter(progress(refs))
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert cluster_.drawn[-1].closed


@pytest.mark.e2e
@pytest.mark.usefixtures("cluster")
def test_over_real_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Cluster()
    monkeypatch.setattr(manager, "instance", lambda: drawn)
    square = retinue.remote(lambda x: x * x)
    assert sorted(progress([square.remote(i) for i in range(20)], desc="squares")) == [
        i * i for i in range(20)
    ]
    assert (drawn.drawn[-1].x, drawn.drawn[-1].total, drawn.drawn[-1].closed) == (20, 20, True)
