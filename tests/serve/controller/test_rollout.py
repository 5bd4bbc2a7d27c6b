"""Which version runs, and when the next start is tried."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from retinue.serve.controller.rollout import MAX_BACKOFF_S, Rollout, StartFailures, failure_limit


def test_a_first_version_that_fails_is_kept_but_not_started_again() -> None:
    rollout = Rollout("1", limit=2)
    assert rollout.may_start(0.0)
    assert not rollout.replica_failed("1", "boom", 0.0)
    assert not rollout.may_start(0.2)
    assert rollout.may_start(0.25)
    assert rollout.replica_failed("1", "boom", 1.0)
    assert rollout.is_failed
    assert rollout.failure == "boom"
    assert rollout.target_version == "1"
    assert not rollout.may_start(1e9)


def test_an_update_that_fails_goes_back_to_the_version_before() -> None:
    rollout = Rollout("1", limit=1)
    rollout.replica_ready("1")
    rollout.completed()
    assert rollout.deploy("2", limit=1)
    assert rollout.is_updating
    assert (rollout.target_version, rollout.good) == ("2", "1")
    assert rollout.replica_failed("2", "boom", 0.0)
    assert rollout.target_version == "1"
    assert rollout.may_start(0.0)


def test_a_version_that_has_worked_is_never_given_up() -> None:
    rollout = Rollout("1", limit=1)
    rollout.completed()
    assert not any(rollout.replica_failed("1", "died", float(now)) for now in range(10))
    assert not rollout.is_failed


def test_deploying_the_same_again_changes_nothing_unless_it_had_failed() -> None:
    rollout = Rollout("1", limit=1)
    assert not rollout.deploy("1", limit=1)
    rollout.replica_failed("1", "boom", 0.0)
    assert rollout.deploy("1", limit=1)
    assert not rollout.is_failed
    assert rollout.may_start(0.0)


def test_failures_of_other_versions_do_not_count() -> None:
    rollout = Rollout("2", limit=1, good="1")
    assert not rollout.replica_failed("1", "an old one died", 0.0)
    assert rollout.may_start(0.0)


def test_a_replica_that_starts_ends_the_wait_but_not_the_count_of_an_update() -> None:
    rollout = Rollout("2", limit=2, good="1")
    rollout.replica_failed("2", "boom", 0.0)
    rollout.replica_ready("2")
    assert rollout.may_start(0.0)
    assert rollout.replica_failed("2", "boom", 0.0)


def test_the_limit_counts_all_replicas_together() -> None:
    assert failure_limit(20, 1) == 3
    assert failure_limit(20, 4) == 12
    assert failure_limit(20, 100) == 20
    assert failure_limit(2, 100) == 2
    assert failure_limit(20, 0) == 3


@given(st.integers(1, 60))
def test_waits_grow_to_a_bound(count: int) -> None:
    failures = StartFailures(limit=1000)
    waits = []
    for _ in range(count):
        failures.not_before = 0.0
        failures.failed("boom", 100.0)
        waits.append(failures.not_before - 100.0)
    assert waits == sorted(waits)
    assert waits[0] == 0.25
    assert waits[-1] <= MAX_BACKOFF_S
    assert failures.reasons == ["boom"]


def test_the_latest_reasons_are_kept() -> None:
    failures = StartFailures(limit=1000)
    for number in range(10):
        failures.failed(f"reason {number}", 0.0)
    assert failures.reasons == [f"reason {number}" for number in range(5, 10)]
    assert failures.last_reason == "reason 9"
    failures.succeeded()
    assert (failures.count, failures.last_reason) == (0, "")
