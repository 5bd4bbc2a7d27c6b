"""The choice of a replica, and the queue: event by event."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from retinue.serve.routing.scheduler import MODEL_WAIT_S, OFFER_AGAIN_S, Replica, ReplicaScheduler


@pytest.fixture
def scheduler() -> Iterator[ReplicaScheduler]:
    scheduler = ReplicaScheduler(random.Random(0).random)
    yield scheduler
    scheduler.check_invariants()


def add(
    scheduler: ReplicaScheduler, name: str, limit: int = 1, *, is_near: bool = True, others: int = 0
) -> Replica:
    replica = scheduler.add(name, limit, is_near=is_near)
    scheduler.usable(replica)
    replica.others = others
    return replica


def enqueue(scheduler: ReplicaScheduler, token: str, now: float = 0.0, **options: object) -> object:
    assert scheduler.take() is None
    return scheduler.wait(scheduler.turn, now, token, **options)  # type: ignore[arg-type]


def assigned(scheduler: ReplicaScheduler, now: float = 0.0) -> list[tuple[str, str]]:
    return [(w.token, r.replica_id) for w, r in scheduler.assign(now)]


def test_a_request_goes_to_a_replica_with_room_at_once(scheduler: ReplicaScheduler) -> None:
    replica = add(scheduler, "a", 2)
    assert scheduler.take() is replica
    assert scheduler.take() is replica
    assert scheduler.take() is None
    assert replica.sent == 2


def test_a_request_waits_for_room_and_takes_the_freed_slot(scheduler: ReplicaScheduler) -> None:
    replica = add(scheduler, "a")
    assert scheduler.take() is replica
    enqueue(scheduler, "next")
    assert assigned(scheduler) == []
    scheduler.done(replica)
    assert assigned(scheduler) == [("next", "a")]


def test_those_who_wait_go_in_order_of_arrival(scheduler: ReplicaScheduler) -> None:
    for name in "xyz":
        enqueue(scheduler, name)
    add(scheduler, "a", 3)
    assert [token for token, _ in assigned(scheduler)] == ["x", "y", "z"]


def test_nobody_overtakes_those_who_wait(scheduler: ReplicaScheduler) -> None:
    enqueue(scheduler, "first")
    add(scheduler, "a")
    assert scheduler.take() is None
    assert assigned(scheduler) == [("first", "a")]


def test_replicas_on_this_node_come_first_while_they_have_room(scheduler: ReplicaScheduler) -> None:
    add(scheduler, "far", 5, is_near=False)
    add(scheduler, "near", 2)
    taken = [scheduler.take() for _ in range(4)]
    assert [r.replica_id for r in taken if r] == ["near", "near", "far", "far"]


def test_load_is_spread_evenly(scheduler: ReplicaScheduler) -> None:
    replicas = [add(scheduler, name, 100) for name in "abcd"]
    for _ in range(200):
        assert scheduler.take() is not None
    assert max(r.sent for r in replicas) - min(r.sent for r in replicas) <= 10


def test_what_others_have_there_counts(scheduler: ReplicaScheduler) -> None:
    add(scheduler, "busy", 10, others=8)
    idle = add(scheduler, "idle", 10)
    assert [scheduler.take() for _ in range(5)] == [idle] * 5


def test_old_news_of_others_is_forgotten(scheduler: ReplicaScheduler) -> None:
    shunned = add(scheduler, "a", 100, others=90)
    other = add(scheduler, "b", 100)
    for _ in range(1000):
        replica = scheduler.take()
        assert replica is not None
        if replica is other:
            scheduler.done(other, load=30)
        else:
            scheduler.done(shunned, load=0)
    assert shunned.others == 0


def test_a_refused_request_keeps_its_place_and_goes_elsewhere(scheduler: ReplicaScheduler) -> None:
    full = add(scheduler, "full")
    assert scheduler.take() is full
    turn = scheduler.turn
    enqueue(scheduler, "later")
    scheduler.refused(full, 0.0, load=1)
    scheduler.wait(turn, 0.0, "refused")
    assert assigned(scheduler) == []
    add(scheduler, "other", 2)
    assert assigned(scheduler) == [("refused", "other"), ("later", "other")]


def test_a_replica_that_refused_is_offered_again_on_its_notice(scheduler: ReplicaScheduler) -> None:
    full = add(scheduler, "full", 5)
    assert scheduler.take() is full
    scheduler.refused(full, 0.0)
    scheduler.wait(scheduler.turn, 0.0, "a")
    enqueue(scheduler, "b")
    assert assigned(scheduler) == []
    scheduler.noticed(full, 0.01)
    assert assigned(scheduler, 0.01) == [("a", "full")]


def test_without_a_notice_it_is_offered_again_after_100_ms(scheduler: ReplicaScheduler) -> None:
    full = add(scheduler, "full", 5)
    assert scheduler.take() is full
    scheduler.refused(full, 0.0)
    scheduler.wait(scheduler.turn, 0.0, "a")
    enqueue(scheduler, "b")
    scheduler.tick(OFFER_AGAIN_S - 0.01)
    assert assigned(scheduler) == []
    scheduler.tick(OFFER_AGAIN_S)
    assert assigned(scheduler) == [("a", "full")]
    # It was taken: we are in no ring, and go on as usual.
    scheduler.done(full)
    assert assigned(scheduler) == [("b", "full")]


def test_a_notice_that_nobody_needs_makes_the_router_leave(scheduler: ReplicaScheduler) -> None:
    full = add(scheduler, "full", 5)
    assert scheduler.take() is full
    scheduler.refused(full, 0.0)
    waiting = scheduler.wait(scheduler.turn, 0.0, "a")
    assert waiting is not None
    scheduler.cancel(waiting)
    scheduler.noticed(full, 0.01)
    assert assigned(scheduler) == []
    assert scheduler.leaving == [full]
    assert scheduler.take() is full


def test_late_requests_leave_the_queue(scheduler: ReplicaScheduler) -> None:
    enqueue(scheduler, "late", deadline=1.0)
    enqueue(scheduler, "patient")
    assert scheduler.tick(0.9) == []
    assert [w.token for w in scheduler.tick(1.0)] == ["late"]
    assert scheduler.queued == 1


def test_cancelled_requests_leave_the_queue(scheduler: ReplicaScheduler) -> None:
    waiting = enqueue(scheduler, "gone")
    enqueue(scheduler, "here")
    scheduler.cancel(waiting)  # type: ignore[arg-type]
    add(scheduler, "a", 5)
    assert assigned(scheduler) == [("here", "a")]


def test_many_cancelled_requests_take_no_memory(scheduler: ReplicaScheduler) -> None:
    enqueue(scheduler, "first")
    for _ in range(10_000):
        scheduler.cancel(enqueue(scheduler, "x"))  # type: ignore[arg-type]
        scheduler.tick(0.0)
    assert len(scheduler._queue) < 100


def test_a_full_queue_refuses() -> None:
    scheduler = ReplicaScheduler(random.Random(0).random, max_queued=2)
    assert enqueue(scheduler, "a") is not None
    assert enqueue(scheduler, "b") is not None
    assert enqueue(scheduler, "c") is None


def test_a_queue_that_would_take_too_long_refuses_and_says_when_to_come_back() -> None:
    scheduler = ReplicaScheduler(random.Random(0).random, max_queue_wait_s=0.05)
    replica = add(scheduler, "a")
    assert scheduler.take() is replica
    now = 0.0
    accepted = refused = 0
    for _ in range(2000):  # 1,000/s come, 100/s are served
        now += 0.001
        if enqueue(scheduler, "x", now) is None:
            refused += 1
            assert 0.0 < scheduler.retry_after_s(now) < 1.0
        if round(now * 1000) % 10 == 0:
            scheduler.done(replica)
            accepted += len(scheduler.assign(now))
        late = scheduler.tick(now)
        assert all(now - w.since <= 0.052 for w in late)
    assert accepted >= 195
    assert refused > 1500
    assert scheduler.queued <= 8


def test_replicas_that_hold_the_model_come_first(scheduler: ReplicaScheduler) -> None:
    add(scheduler, "a", 5)
    holder = add(scheduler, "b", 2, others=1)
    scheduler.models(holder, ["m"], [])
    assert scheduler.take_for("m", "") is holder


def test_the_model_goes_to_one_replica_that_loads_it_for_all(scheduler: ReplicaScheduler) -> None:
    for name in "abc":
        add(scheduler, name, 5)
    first = scheduler.take_for("m", "")
    assert first is not None
    assert [scheduler.take_for("m", "") for _ in range(4)] == [first] * 4


def test_new_models_go_to_the_replica_with_the_fewest(scheduler: ReplicaScheduler) -> None:
    scheduler.models(add(scheduler, "a", 5), ["x", "y"], [])
    fewer = add(scheduler, "b", 5, others=3)
    scheduler.models(fewer, ["z"], [])
    assert scheduler.take_for("m", "") is fewer


def test_a_request_waits_for_the_holder_of_its_model_for_a_while_and_others_pass(
    scheduler: ReplicaScheduler,
) -> None:
    holder = add(scheduler, "holder")
    scheduler.models(holder, ["m"], [])
    assert scheduler.take_for("m", "") is holder
    assert scheduler.take_for("m", "") is None
    scheduler.wait(scheduler.turn, 0.0, "held", model_id="m")
    add(scheduler, "free", 2)
    enqueue(scheduler, "plain")
    assert assigned(scheduler) == [("plain", "free")]
    assert assigned(scheduler, MODEL_WAIT_S) == [("held", "free")]


def test_a_session_stays_with_its_replica_while_that_has_room(scheduler: ReplicaScheduler) -> None:
    for name in "abcd":
        add(scheduler, name, 3)
    first = scheduler.take_for("", "session")
    assert first is not None
    assert [scheduler.take_for("", "session") for _ in range(2)] == [first] * 2
    other = scheduler.take_for("", "session")
    assert other is not None
    assert other is not first
    scheduler.done(first)
    assert scheduler.take_for("", "session") is first


def test_sessions_spread_and_few_move_when_a_replica_goes(scheduler: ReplicaScheduler) -> None:
    for name in "abcd":
        add(scheduler, name, 1000)
    homes = {}
    for number in range(400):
        replica = scheduler.take_for("", f"s{number}")
        assert replica is not None
        homes[number] = replica.replica_id
    counts = [list(homes.values()).count(name) for name in "abcd"]
    assert min(counts) > 60
    scheduler.remove("d")
    for number, home in homes.items():
        replica = scheduler.take_for("", f"s{number}")
        assert replica is not None
        assert replica.replica_id == home or home == "d"


def test_nothing_goes_to_a_replica_that_is_lost_drains_or_was_removed(scheduler: ReplicaScheduler) -> None:
    replica = add(scheduler, "a", 5)
    scheduler.unusable(replica)
    assert scheduler.take() is None
    scheduler.usable(replica)
    assert scheduler.take() is replica
    scheduler.remove("a")
    assert scheduler.take() is None
    scheduler.done(replica, load=0)
    scheduler.usable(replica)  # too late
    assert scheduler.take() is None


def test_a_lower_limit_holds_for_what_comes(scheduler: ReplicaScheduler) -> None:
    replica = add(scheduler, "a", 5)
    assert [scheduler.take() for _ in range(3)] == [replica] * 3
    scheduler.resize(replica, 3)
    assert scheduler.take() is None
