from __future__ import annotations

import pytest

from retinue.core.client.leases import (
    IDLE_LEASE_S,
    MAX_DEPTH,
    MAX_WANTED,
    SPREAD_PATIENCE_S,
    LeasedWorker,
    ShapePool,
    depth_of,
)
from retinue.core.client.tasks import FunctionDef, TaskRecord


def function(mean_us: float = -1.0) -> FunctionDef:
    made = FunctionDef(b"key", b"blob", "f", [])
    made.mean_us = mean_us
    return made


SHORT, LONG, UNKNOWN = 5.0, 50_000.0, -1.0


def task(name: str, mean_us: float = UNKNOWN, of: FunctionDef | None = None) -> TaskRecord:
    return TaskRecord(name.encode(), of or function(mean_us))


def names(tasks: list[TaskRecord]) -> str:
    return "".join(t.task_id.decode() for t in tasks)


@pytest.fixture
def pool():
    pool = ShapePool(1)
    yield pool
    pool.check_invariants()


def lease(pool: ShapePool, lease_id: int = 1, now: float = 0.0) -> LeasedWorker:
    worker = LeasedWorker(lease_id, f"connection {lease_id}", now)
    pool.granted(worker)
    return worker


def finish(pool: ShapePool, worker: LeasedWorker, name: str, exec_us: int = 5) -> list[TaskRecord]:
    assert pool.finished(worker, name.encode(), exec_us, now=1.0) is not None
    return pool.refill(worker)


@pytest.mark.parametrize(
    ("mean_us", "depth"),
    [
        (-1, 1),
        (0, MAX_DEPTH),
        (10, MAX_DEPTH),
        (15.6, MAX_DEPTH),
        (16, 62),
        (250, 4),
        (501, 1),
        (1000, 1),
        (1e9, 1),
    ],
)
def test_depth_is_one_until_tasks_prove_short_and_queues_at_most_a_millisecond(mean_us, depth):
    assert depth_of(task("a", mean_us)) == depth
    assert depth * max(mean_us, 0) <= 1000 or depth == 1


def test_task_without_a_worker_waits_and_demands_one(pool):
    assert pool.submit(task("a")) is None
    assert pool.demand_grew()
    assert pool.demand() == 1
    assert pool.demand() is None
    assert not pool.demand_grew()


def test_unknown_function_gets_one_task_per_worker(pool):
    worker = lease(pool)
    f = function()
    assert pool.submit(task("a", of=f)) is worker
    assert pool.submit(task("b", of=f)) is None
    assert names(finish(pool, worker, "a")) == "b"


def test_short_tasks_are_pipelined_as_deep_as_allowed(pool):
    worker = lease(pool)
    f = function(SHORT)
    for i in range(MAX_DEPTH):
        assert pool.submit(task(f"{i:03}", of=f)) is worker
    assert pool.submit(task("one more", of=f)) is None


def test_worker_is_refilled_in_one_go_when_half_empty(pool):
    worker = lease(pool)
    f = function(SHORT)
    for i in range(MAX_DEPTH + 40):
        pool.submit(task(f"{i:03}", of=f))
    for i in range(MAX_DEPTH // 2 - 1):
        assert finish(pool, worker, f"{i:03}") == []
    assert len(finish(pool, worker, f"{MAX_DEPTH // 2 - 1:03}")) == MAX_DEPTH // 2


def test_nothing_is_put_behind_a_task_that_may_be_long(pool):
    worker = lease(pool)
    assert pool.submit(task("a", LONG)) is worker
    assert pool.submit(task("b", SHORT)) is None
    assert pool.refill(worker) == []
    assert names(finish(pool, worker, "a")) == "b"


def test_long_task_goes_where_nothing_waits(pool):
    busy = lease(pool, 1)
    pool.submit(task("a", SHORT))
    pool.submit(task("b", SHORT))
    assert pool.submit(task("x", LONG)) is None
    assert finish(pool, busy, "a") == []
    assert names(finish(pool, busy, "b")) == "x"


def test_tasks_start_in_the_order_of_their_submission(pool):
    f = function()
    for name in "abc":
        pool.submit(task(name, of=f))
    worker = lease(pool)
    assert names(pool.refill(worker)) == "a"
    assert names(finish(pool, worker, "a", exec_us=100_000)) == "b"
    assert names(finish(pool, worker, "b")) == "c"


def test_mean_follows_what_was_measured(pool):
    worker = lease(pool)
    f = function()
    pool.submit(task("a", of=f))
    pool.finished(worker, b"a", 1000, now=0.0)
    assert f.mean_us == 1000
    pool.refill(worker)
    pool.submit(task("b", of=f))
    pool.finished(worker, b"b", 0, now=0.0)
    assert 0 < f.mean_us < 1000
    pool.refill(worker)


def test_answer_of_a_task_that_is_not_there_changes_nothing(pool):
    worker = lease(pool)
    assert pool.finished(worker, b"never", 5, now=9.0) is None
    assert worker.idle_since == 0.0


def test_handed_back_tasks_go_first_and_their_worker_pauses(pool):
    worker = lease(pool)
    f = function(SHORT)
    for name in "abc":
        pool.submit(task(name, of=f))
    handed = pool.handed_back(worker, [b"b", b"c"])
    assert all(t.conn is None for t in handed)
    pool.resubmit(handed)
    pool.submit(task("d", of=f))
    assert names(pool.pending) == "bcd"
    assert pool.feed() == []
    assert pool.refill(worker) == []
    assert names(finish(pool, worker, "a")) == "bcd"


def test_hand_back_that_crossed_with_the_last_answer_leaves_no_idle_worker(pool):
    worker = lease(pool)
    f = function(SHORT)
    pool.submit(task("a", of=f))
    pool.submit(task("b", of=f))
    assert finish(pool, worker, "a") == []
    pool.resubmit(pool.handed_back(worker, [b"b"]))
    assert [(w, names(tasks)) for w, tasks in pool.feed()] == [(worker, "b")]


def test_hand_back_of_cancelled_tasks_leaves_the_worker_open(pool):
    worker = lease(pool)
    pool.submit(task("a", SHORT))
    pool.handed_back(worker, [b"a"])  # cancelled meanwhile: not resubmitted
    assert pool.submit(task("b")) is worker


def test_hand_back_of_answered_or_unknown_tasks_is_ignored(pool):
    worker = lease(pool)
    pool.submit(task("a", SHORT))
    assert pool.handed_back(worker, [b"never"]) == []
    assert names(list(worker.tasks.values())) == "a"


def test_tasks_that_come_back_reach_workers_that_are_idle(pool):
    first, second = lease(pool, 1), lease(pool, 2)
    f = function(SHORT)
    for name in "abc":
        assert pool.submit(task(name, of=f)) is first
    pool.resubmit(pool.handed_back(first, [b"b", b"c"]))
    assert [(w, names(tasks)) for w, tasks in pool.feed()] == [(second, "bc")]


def test_tasks_of_a_dead_worker_reach_workers_that_are_idle(pool):
    dead, other = lease(pool, 1), lease(pool, 2)
    pool.submit(task("a"))
    pool.removed(dead.lease_id)
    pool.resubmit(list(dead.tasks.values()))
    dead.tasks.clear()
    assert [(w, names(tasks)) for w, tasks in pool.feed()] == [(other, "a")]


def test_late_answer_of_a_removed_worker_brings_it_no_tasks(pool):
    gone = lease(pool)
    pool.submit(task("a"))
    pool.removed(gone.lease_id)
    pool.submit(task("b"))
    assert finish(pool, gone, "a") == []
    assert pool.submit(task("c")) is None
    pool.handed_back(gone, [])


def test_withdrawn_task_frees_its_worker(pool):
    worker = lease(pool)
    pool.submit(task("a"))
    pool.submit(task("b"))
    pool.withdrawn(worker, b"a")
    assert [names(tasks) for _, tasks in pool.feed()] == ["b"]
    pool.withdrawn(worker, b"unknown")
    assert worker.tasks


def test_withdrawn_task_may_have_been_taken_off_already(pool):
    worker = lease(pool)
    pool.submit(task("a"))
    del worker.tasks[b"a"]
    pool.withdrawn(worker, b"a")
    assert pool.submit(task("b")) is worker


def test_recalled_worker_gets_nothing_more_and_goes_back_when_it_is_done(pool):
    worker = lease(pool)
    pool.submit(task("a", SHORT))
    assert pool.recalled(worker.lease_id) is worker
    assert pool.submit(task("b", SHORT)) is None
    assert pool.returnable(now=0.0) == []
    assert finish(pool, worker, "a") == []
    assert pool.returnable(now=0.0) == [worker]
    assert pool.removed(worker.lease_id) is worker
    assert pool.removed(worker.lease_id) is None
    assert pool.recalled(worker.lease_id) is None


def test_idle_worker_is_kept_for_a_while_then_given_back(pool):
    worker = lease(pool, now=10.0)
    assert pool.returnable(now=10.0 + 0.9 * IDLE_LEASE_S) == []
    assert pool.returnable(now=10.0 + IDLE_LEASE_S) == [worker]


def test_worker_that_is_being_given_back_gets_no_task(pool):
    # Another thread may submit between `returnable` and `removed`.
    lease(pool, now=0.0)
    pool.returnable(now=10.0)
    assert pool.submit(task("a")) is None


def test_demand_counts_workers_not_tasks(pool):
    f = function(250)
    for i in range(10):
        pool.submit(task(str(i), of=f))
    assert pool.demand() == 3


def test_demand_has_a_limit(pool):
    f = function()
    for i in range(MAX_WANTED + 5):
        pool.submit(task(str(i), of=f))
    assert pool.demand() == MAX_WANTED


def test_grant_lowers_what_the_agent_still_owes(pool):
    for name in "ab":
        pool.submit(task(name))
    assert pool.demand() == 2
    worker = lease(pool)
    pool.grant_seen()
    pool.refill(worker)
    assert pool.demand() is None
    finish(pool, worker, "a")
    assert pool.demand() == 0


def test_demand_is_told_again_to_an_agent_that_forgot_it(pool):
    pool.submit(task("a"))
    assert pool.demand() == 1
    pool.forget_demand()
    assert pool.demand() == 1


def test_demand_is_urgent_only_when_it_doubled(pool):
    f = function()
    urgent = []
    for i in range(9):
        pool.submit(task(str(i), of=f))
        if pool.demand_grew():
            urgent.append(pool.demand())
    assert urgent == [1, 2, 4, 8]


def test_a_task_to_spread_is_placed_anew_and_its_worker_given_back():
    pool = ShapePool(1, is_spread=True)
    short = function(SHORT)
    for name in "abc":
        assert pool.submit(task(name, of=short)) is None
    assert pool.demand() == 3
    worker = LeasedWorker(1, None, 0.0)
    pool.granted(worker)
    assert names(pool.refill(worker)) == "a"
    pool.one_task_only(worker)
    assert finish(pool, worker, "a") == []
    assert pool.submit(task("d", of=short)) is None
    assert pool.returnable(0.0) == [worker]
    pool.check_invariants()


def test_what_is_to_be_spread_leaves_its_turn_to_the_other_node_for_a_while():
    pool = ShapePool(1, is_spread=True)
    for name in "abcd":
        pool.submit(task(name))
    assert pool.demand() == 4
    assert pool.redirected(1, b"n1", b"", 1.0) == 1
    assert pool.redirected(1, b"n1", b"", 1.1) == 2
    assert pool.demand() is None
    for lease_id, node_id in enumerate([b"", b"", b"n1"]):
        worker = LeasedWorker(lease_id, None, 0.0)
        pool.grant_seen(1, node_id)
        pool.granted(worker)
        assert len(pool.refill(worker)) == 1
        assert pool.demand() is None
    pool.lose_patience(1.0 + SPREAD_PATIENCE_S / 2)
    assert pool.demand() is None
    pool.lose_patience(1.0 + SPREAD_PATIENCE_S)
    assert pool.demand() == 1


def test_other_demand_is_redirected_and_asked_for_at_home_too(pool):
    for name in "abcd":
        pool.submit(task(name))
    assert pool.demand() == 4
    assert pool.redirected(3, b"n1", b"", 1.0) == 3
    assert pool.demand() == 4
