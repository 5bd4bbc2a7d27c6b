"""A replica's slots: who is taken, who is told of free ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from retinue.serve.routing.admission import HOLD_S, NOTHING_WAITS, Admission


@pytest.fixture
def admission() -> Iterator[Admission]:
    admission = Admission(1)
    yield admission
    admission.check_invariants()


def test_requests_are_taken_up_to_the_limit(admission: Admission) -> None:
    assert admission.offer("a", 0.0)
    assert not admission.offer("a", 0.0)
    assert admission.ongoing == 1


def test_routers_that_were_refused_are_told_in_turn(admission: Admission) -> None:
    assert admission.offer("a", 0.0)
    assert not admission.offer("b", 0.0)
    assert not admission.offer("c", 0.0)
    for router in "bcbc":
        assert list(admission.finished(0.0)) == [router]
        assert admission.offer(router, 0.0)


def test_the_router_whose_oldest_request_waits_longest_is_told(admission: Admission) -> None:
    assert admission.offer("a", 0.0)
    for router, since in (("b", 3.0), ("c", 1.0), ("d", 2.0)):
        assert not admission.offer(router, 4.0)
        assert list(admission.waits(router, since, 4.0)) == []
    for router in "cdb":
        assert list(admission.finished(5.0)) == [router]
        assert admission.offer(router, 5.0)
        admission.waits(router, NOTHING_WAITS, 5.0)
    # A slot that nobody wants is offered to those who are remembered all the same.
    assert list(admission.finished(6.0)) == ["c"]
    assert list(admission.left("c", 6.0)) == ["d"]


def test_a_router_that_was_forgotten_is_remembered_when_it_tells_that_it_waits(admission: Admission) -> None:
    assert list(admission.waits("a", 1.0, 2.0)) == ["a"]
    assert list(admission.tick(3.0)) == ["a"]
    assert list(admission.tick(4.0)) == []
    assert admission.waiting == 0
    assert list(admission.waits("a", 1.0, 5.0)) == ["a"]
    assert admission.offer("a", 5.0)


def test_a_freed_slot_is_held_for_the_one_who_was_told(admission: Admission) -> None:
    assert admission.offer("a", 0.0)
    assert not admission.offer("b", 0.0)
    admission.finished(0.0)
    assert not admission.offer("a", 0.0)
    assert admission.offer("b", 0.05)


def test_a_hold_that_is_not_used_goes_to_the_next(admission: Admission) -> None:
    assert admission.offer("a", 0.0)
    assert not admission.offer("b", 0.0)
    assert not admission.offer("c", 0.0)
    assert list(admission.finished(1.0)) == ["b"]
    assert admission.next_tick == 1.0 + HOLD_S
    assert list(admission.tick(1.0 + HOLD_S)) == ["c"]
    assert admission.offer("c", 1.2)
    # One may have been lost; after a second one that goes by, b is not told any more.
    assert list(admission.finished(2.0)) == ["b"]
    assert list(admission.tick(2.0 + HOLD_S)) == ["c"]
    assert admission.waiting == 1


def test_a_router_that_leaves_frees_what_is_held_for_it(admission: Admission) -> None:
    assert admission.offer("a", 0.0)
    assert not admission.offer("b", 0.0)
    assert not admission.offer("c", 0.0)
    assert list(admission.finished(0.0)) == ["b"]
    assert list(admission.left("b", 0.0)) == ["c"]
    assert list(admission.left("c", 0.0)) == []
    assert admission.offer("d", 0.0)


def test_routers_that_cannot_be_told_are_not_remembered(admission: Admission) -> None:
    assert admission.offer("a", 0.0)
    assert not admission.offer("b", 0.0, is_listening=False)
    assert list(admission.finished(0.0)) == []


def test_the_limit_can_change(admission: Admission) -> None:
    assert admission.offer("a", 0.0)
    assert not admission.offer("b", 0.0)
    assert list(admission.resize(3, 0.0)) == ["b", "b"]
    assert list(admission.resize(1, 0.0)) == []
    assert admission.held == 0
    assert not admission.offer("b", 0.0)
