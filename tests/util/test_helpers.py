from __future__ import annotations

from typing import Any

import pytest

import retinue
from retinue.util import as_completed, map_unordered


class FakeCalls:
    """A remote function whose results are ready in an order that the test gives."""

    def __init__(self, ready_order: list[int] | None = None) -> None:
        self.submitted: list[int] = []
        self.ready_order = ready_order
        self.waits: list[tuple[int, int, dict[str, Any]]] = []

    def remote(self, item: int) -> int:
        self.submitted.append(item)
        return item

    def wait(self, refs: list[int], *, num_returns: int, **kwargs: Any) -> tuple[list[int], list[int]]:
        self.waits.append((len(refs), num_returns, kwargs))
        ready = sorted(refs, key=(self.ready_order or refs).index)[:num_returns]
        return [r for r in refs if r in ready], [r for r in refs if r not in ready]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> FakeCalls:
    calls = FakeCalls()
    monkeypatch.setattr(retinue, "wait", calls.wait, raising=False)
    monkeypatch.setattr(retinue, "get", lambda refs: [ref * 10 for ref in refs], raising=False)
    return calls


def test_results_come_chunk_by_chunk_in_order_of_readiness(calls: FakeCalls) -> None:
    calls.ready_order = [3, 1, 2, 0]
    assert list(as_completed([0, 1, 2, 3], chunk_size=2)) == [10, 30, 0, 20]
    assert list(as_completed([0, 1, 2, 3], chunk_size=1)) == [30, 10, 20, 0]


def test_the_last_chunk_may_be_smaller(calls: FakeCalls) -> None:
    assert list(as_completed(range(5), chunk_size=3)) == [0, 10, 20, 30, 40]  # type: ignore[arg-type]
    assert [wait[:2] for wait in calls.waits] == [(5, 3), (2, 2)]


def test_references_instead_of_values(calls: FakeCalls) -> None:
    assert list(as_completed([0, 1], yield_obj_refs=True)) == [0, 1]
    assert list(map_unordered(calls, [0, 1], yield_obj_refs=True)) == [0, 1]


def test_keywords_go_to_wait(calls: FakeCalls) -> None:
    list(as_completed([1], timeout=3, fetch_local=False))
    assert calls.waits == [(1, 1, {"timeout": 3, "fetch_local": False})]


def test_nothing_to_wait_for(calls: FakeCalls) -> None:
    assert list(as_completed([])) == []
    assert list(map_unordered(calls, [])) == []


def test_sizes_are_checked(calls: FakeCalls) -> None:
    for wrong in ({"chunk_size": 0}, {"num_returns": 1}):
        with pytest.raises(ValueError, match=r"chunk_size|num_returns"):
            next(as_completed([1], **wrong))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"chunk_size|num_returns"):
            next(map_unordered(calls, [1], **wrong))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="backpressure_size"):
        next(map_unordered(calls, [1], backpressure_size=0))


def test_items_are_taken_only_as_results_come_back(calls: FakeCalls) -> None:
    results = map_unordered(calls, iter(range(100)), backpressure_size=3, chunk_size=1)
    assert next(results) == 0
    assert calls.submitted == [0, 1, 2]
    assert next(results) == 10
    assert calls.submitted == [0, 1, 2, 3]
    assert list(results) == [10 * i for i in range(2, 100)]
    assert max(wait[0] for wait in calls.waits) == 3


def test_without_backpressure_everything_is_submitted_first(calls: FakeCalls) -> None:
    assert next(map_unordered(calls, range(500), backpressure_size=None)) == 0
    assert len(calls.submitted) == 500


@pytest.mark.e2e
@pytest.mark.usefixtures("cluster")
def test_over_real_tasks() -> None:
    square = retinue.remote(lambda x: x * x)
    assert sorted(as_completed([square.remote(i) for i in range(30)])) == [i * i for i in range(30)]
    assert sorted(map_unordered(square, range(30), backpressure_size=4, chunk_size=2)) == [
        i * i for i in range(30)
    ]
