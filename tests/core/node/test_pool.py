from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from retinue.core.node.pool import (
    EXTRA_IDLE_S,
    IDLE,
    IDLE_S,
    LEASED,
    MAX_KILLED_STARTS,
    START_TIMEOUT_S,
    STARTING,
    End,
    Fail,
    Start,
    Use,
    WorkerPool,
)
from retinue.core.wire.messages import WorkerEnv

ENV = WorkerEnv(b"job1")
OTHER_JOB = WorkerEnv(b"job2")


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    ids = itertools.count(1)
    pool = WorkerPool(keep_idle=2, max_starting=3, new_worker_id=lambda: b"w%d" % next(ids))
    yield pool
    pool.check_invariants()


def test_a_lease_gets_the_worker_that_is_started_for_it(pool: WorkerPool) -> None:
    assert pool.need(1, ENV, now=0.0) == [Start(b"w1", ENV)]
    assert pool.registered(b"w1", now=0.0) == [Use(1, b"w1")]


def test_the_oldest_lease_gets_the_first_worker_that_is_ready(pool: WorkerPool) -> None:
    pool.need(1, ENV, now=0.0)
    pool.need(2, ENV, now=0.0)
    assert pool.registered(b"w2", now=0.0) == [Use(1, b"w2")]


def test_an_idle_worker_is_used_again_but_not_by_another_job(pool: WorkerPool) -> None:
    pool.need(1, ENV, now=0.0)
    pool.registered(b"w1", now=0.0)
    assert pool.freed(b"w1", is_reusable=True, now=0.0) == []
    assert pool.need(2, OTHER_JOB, now=0.0) == [Start(b"w2", OTHER_JOB)]
    assert pool.need(3, ENV, now=0.0) == [Use(3, b"w1")]


def test_a_closed_pool_starts_nothing_more(pool: WorkerPool) -> None:
    pool.need(1, ENV, now=0.0)
    pool.need(2, ENV, now=0.0)
    pool.close()
    assert pool.died(b"w1", "killed", now=0.0, was_killed=True) == []
    assert pool.need(3, OTHER_JOB, now=0.0) == []


def test_environments_that_differ_in_order_only_share_workers(pool: WorkerPool) -> None:
    pool.need(1, WorkerEnv(b"j", {"a": "1", "b": "2"}), now=0.0)
    pool.registered(b"w1", now=0.0)
    pool.freed(b"w1", is_reusable=True, now=0.0)
    assert pool.need(2, WorkerEnv(b"j", {"b": "2", "a": "1"}), now=0.0) == [Use(2, b"w1")]


def test_only_so_many_start_at_once(pool: WorkerPool) -> None:
    for lease_id in range(5):
        pool.need(lease_id, ENV, now=0.0)
    assert pool.count(STARTING) == 3
    assert pool.registered(b"w1", now=0.0) == [Use(0, b"w1"), Start(b"w4", ENV)]


def test_a_freed_worker_serves_a_lease_that_waits_for_a_start(pool: WorkerPool) -> None:
    pool.need(1, ENV, now=0.0)
    pool.registered(b"w1", now=0.0)
    pool.need(2, ENV, now=0.0)
    assert pool.freed(b"w1", is_reusable=True, now=0.0) == [Use(2, b"w1")]
    assert pool.registered(b"w2", now=0.0) == []
    assert pool.count(IDLE) == 1


def test_a_worker_that_dies_while_it_starts_fails_a_lease_only_if_no_other_start_serves_it(
    pool: WorkerPool,
) -> None:
    pool.need(1, ENV, now=0.0)
    pool.need(2, ENV, now=0.0)
    pool.drop(2)
    assert pool.died(b"w1", "exit 1", now=0.0) == []
    assert pool.died(b"w2", "exit 1", now=0.0) == [Fail(1, "exit 1")]


def test_a_worker_that_is_killed_while_it_starts_is_replaced_until_that_is_hopeless(pool: WorkerPool) -> None:
    decisions = pool.need(1, ENV, now=0.0)
    for _ in range(MAX_KILLED_STARTS):
        (start,) = decisions
        assert isinstance(start, Start)
        decisions = pool.died(start.worker_id, "killed", now=0.0, was_killed=True)
    assert decisions == [Fail(1, "killed")]


def test_workers_started_ahead_wait_for_their_first_lease(pool: WorkerPool) -> None:
    assert pool.prestart(ENV, 2, now=0.0) == [Start(b"w1", ENV), Start(b"w2", ENV)]
    assert pool.prestart(ENV, 2, now=0.0) == []
    pool.registered(b"w1", now=0.0)
    assert pool.need(1, ENV, now=0.0) == [Use(1, b"w1")]
    assert pool.need(2, ENV, now=0.0) == []
    assert pool.registered(b"w2", now=0.0) == [Use(2, b"w2")]


def test_a_worker_that_an_actor_takes_is_replaced_ahead(pool: WorkerPool) -> None:
    assert pool.need(1, ENV, now=0.0, is_for_good=True) == [Start(b"w1", ENV), Start(b"w2", ENV)]
    pool.registered(b"w1", now=0.0)
    pool.registered(b"w2", now=0.0)
    assert pool.need(2, ENV, now=0.0, is_for_good=True) == [Use(2, b"w2"), Start(b"w3", ENV)]
    assert pool.need(3, ENV, now=0.0, is_for_good=True) == [Start(b"w4", ENV)]


def test_idle_workers_end_soon_beyond_the_cpus_and_later_otherwise(pool: WorkerPool) -> None:
    pool.prestart(ENV, 3, now=0.0)
    for worker_id in (b"w1", b"w2", b"w3"):
        pool.registered(worker_id, now=0.0)
    assert pool.tick(now=EXTRA_IDLE_S) == [End(b"w1", "it was idle")]
    pool.died(b"w1", "", now=EXTRA_IDLE_S)
    assert pool.tick(now=EXTRA_IDLE_S * 2) == []
    assert len(pool.tick(now=IDLE_S)) == 2


def test_a_worker_that_is_not_to_be_used_again_ends(pool: WorkerPool) -> None:
    pool.need(1, ENV, now=0.0)
    pool.registered(b"w1", now=0.0)
    assert pool.freed(b"w1", is_reusable=False, now=0.0) == [End(b"w1", "it is not to be used again")]
    assert pool.died(b"w1", "", now=0.0) == []


def test_a_start_that_hangs_is_ended_and_fails_its_lease(pool: WorkerPool) -> None:
    pool.need(1, ENV, now=0.0)
    end, fail = pool.tick(now=START_TIMEOUT_S)
    assert isinstance(end, End)
    assert end.is_forced
    assert isinstance(fail, Fail)
    assert pool.registered(b"w1", now=START_TIMEOUT_S) is None


def test_a_finished_job_ends_all_its_workers_but_those_to_keep(pool: WorkerPool) -> None:
    for lease_id in range(3):
        pool.need(lease_id, ENV, now=0.0)
    pool.registered(b"w1", now=0.0)
    pool.registered(b"w2", now=0.0)
    ended = pool.job_finished(b"job1", keep={b"w1"})
    assert {d.worker_id for d in ended if isinstance(d, End)} == {b"w2", b"w3"}
    assert pool.state_of(b"w1") == LEASED
    assert pool.job_finished(b"job2") == []
