from collections.abc import Iterator

import pytest

from retinue.core.head import jobs
from retinue.core.head.jobs import FAILED, RUNNING, JobDecision, JobEnded, JobTable, job_id_of
from retinue.core.wire.messages import Address, JobInfo


def job(driver: bytes = b"d" * 16, job_id: bytes = b"") -> JobInfo:
    return JobInfo(job_id, Address(driver, b"n" * 16, "/d"), 1, "main.py", "", 0.0)


@pytest.fixture
def table() -> Iterator[JobTable]:
    table = JobTable(driver_grace_s=3.0)
    yield table
    table.check_invariants()


def ended(decisions: list[JobDecision]) -> list[str]:
    return [d.job.message for d in decisions if isinstance(d, JobEnded)]


def test_jobs_are_numbered_from_one(table: JobTable) -> None:
    assert table.registered(job()).job_id == job_id_of(1)
    assert table.new_number() == 2
    assert table.registered(job(b"e" * 16)).job_id == job_id_of(3)


def test_a_driver_that_asks_twice_has_one_job(table: JobTable) -> None:
    first = table.registered(job())
    assert table.registered(job()) == first


def test_a_driver_that_comes_back_in_time_keeps_its_job(table: JobTable) -> None:
    known = table.registered(job())
    table.driver_lost(known.job_id, now=10.0)
    assert table.next_deadline() == 13.0
    assert table.tick(now=12.9, wall_time=0.0) == []
    assert table.registered(known).status == RUNNING
    assert table.tick(now=99.0, wall_time=0.0) == []


def test_a_driver_that_stays_away_has_failed(table: JobTable) -> None:
    known = table.registered(job())
    table.driver_lost(known.job_id, now=10.0)
    assert ended(table.tick(now=13.0, wall_time=7.0)) == ["the driver's connection was lost"]
    found = table.get(known.job_id)
    assert found is not None
    assert (found.status, found.end_time) == (FAILED, 7.0)
    assert table.registered(known).status == FAILED  # too late: its actors are gone


def test_a_dead_driver_ends_its_job_at_once_and_only_its_own(table: JobTable) -> None:
    first, second = table.registered(job(b"1" * 16)), table.registered(job(b"2" * 16))
    assert ended(table.owner_gone(b"1" * 16, wall_time=0.0)) == ["the driver died"]
    assert table.has_ended(first.job_id)
    assert table.is_running(second.job_id)
    assert ended(table.node_lost(b"n" * 16, wall_time=0.0)) == ["the driver's node died"]


def test_a_job_ends_once(table: JobTable) -> None:
    known = table.registered(job())
    assert len(table.finish(known.job_id, status="SUCCEEDED", message="", wall_time=0.0)) == 1
    assert table.finish(known.job_id, status="FAILED", message="", wall_time=0.0) == []
    assert table.owner_gone(known.driver.worker_id, wall_time=0.0) == []


def test_a_new_head_gives_running_drivers_time(table: JobTable) -> None:
    table.load(job(job_id=job_id_of(1)), now=0.0, grace_s=8.0)
    assert table.tick(now=7.9, wall_time=0.0) == []
    assert len(table.tick(now=8.0, wall_time=0.0)) == 1


def test_old_finished_jobs_are_forgotten(table: JobTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_FINISHED_JOBS", 2)
    decisions: list[JobDecision] = []
    for _ in range(4):
        known = table.registered(job())
        decisions += table.finish(known.job_id, status="SUCCEEDED", message="", wall_time=0.0)
    forgotten = [d.job_id for d in decisions if isinstance(d, jobs.JobForgotten)]
    assert forgotten == [job_id_of(1), job_id_of(2)]
    assert len(list(table)) == 2
