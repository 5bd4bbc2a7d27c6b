"""The jobs: which driver runs what, and when a job whose driver is away has ended.

Lives here: numbers, states, the grace for a driver that lost its connection. Does not: connections,
or ending the job's processes and actors (the agents, and `actors.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from retinue.core.ids import JOB_ID_SIZE
from retinue.core.wire.messages import JobInfo

RUNNING, SUCCEEDED, FAILED = "RUNNING", "SUCCEEDED", "FAILED"
MAX_FINISHED_JOBS = 1_000


@dataclass(frozen=True, slots=True)
class JobEnded:
    """The job is over: its actors and workers end. Told once."""

    job: JobInfo


@dataclass(frozen=True, slots=True)
class JobForgotten:
    """An old finished job is no longer kept."""

    job_id: bytes


JobDecision = JobEnded | JobForgotten


def job_id_of(number: int) -> bytes:
    return number.to_bytes(JOB_ID_SIZE, "little")


class JobTable:
    """`driver_grace_s`: how long a driver may be without a connection before its job has failed."""

    def __init__(self, *, driver_grace_s: float, next_number: int = 1) -> None:
        self._grace_s = driver_grace_s
        self._jobs: dict[bytes, JobInfo] = {}
        self._finished: dict[bytes, None] = {}  # oldest first
        self._away_until: dict[bytes, float] = {}
        self.next_number = next_number

    def load(self, job: JobInfo, *, now: float, grace_s: float) -> None:
        """A job that an earlier head knew; its driver has `grace_s` to come back."""
        self._jobs[job.job_id] = job
        if job.status == RUNNING:
            self._away_until[job.job_id] = now + grace_s
        else:
            self._finished[job.job_id] = None

    def new_number(self) -> int:
        number = self.next_number
        self.next_number += 1
        return number

    def registered(self, job: JobInfo) -> JobInfo:
        """A driver is here, for the first time or again. An empty id gets the next number's, once.

        A job that has ended stays ended: its actors are gone.
        """
        if not job.job_id:
            # The answer to the driver's first request may have died with a head.
            job_id = self._running_of(job.driver.worker_id) or job_id_of(self.new_number())
            job = msgspec.structs.replace(job, job_id=job_id)
        known = self._jobs.get(job.job_id)
        if known is not None and known.status != RUNNING:
            return known
        self._jobs[job.job_id] = job
        self._away_until.pop(job.job_id, None)
        return job

    def driver_lost(self, job_id: bytes, *, now: float) -> None:
        """The driver's connection is gone; it may come back."""
        if self.is_running(job_id):
            self._away_until[job_id] = now + self._grace_s

    def owner_gone(self, worker_id: bytes, *, wall_time: float) -> list[JobDecision]:
        """A process is dead; if it was a driver that had not finished its job, the job has failed."""
        found = [j.job_id for j in self._jobs.values() if j.driver.worker_id == worker_id]
        return self._end_all(found, "the driver died", wall_time)

    def node_lost(self, node_id: bytes, *, wall_time: float) -> list[JobDecision]:
        found = [j.job_id for j in self._jobs.values() if j.driver.node_id == node_id]
        return self._end_all(found, "the driver's node died", wall_time)

    def finish(self, job_id: bytes, *, status: str, message: str, wall_time: float) -> list[JobDecision]:
        if not self.is_running(job_id):
            return []
        job = msgspec.structs.replace(self._jobs[job_id], status=status, message=message, end_time=wall_time)
        self._jobs[job_id] = job
        self._away_until.pop(job_id, None)
        self._finished[job_id] = None
        return [JobEnded(job), *self._forget_old()]

    def tick(self, *, now: float, wall_time: float) -> list[JobDecision]:
        late = [job_id for job_id, until in self._away_until.items() if until <= now]
        return self._end_all(late, "the driver's connection was lost", wall_time)

    def next_deadline(self) -> float | None:
        return min(self._away_until.values(), default=None)

    def is_running(self, job_id: bytes) -> bool:
        job = self._jobs.get(job_id)
        return job is not None and job.status == RUNNING

    def has_ended(self, job_id: bytes) -> bool:
        return job_id in self._finished

    def get(self, job_id: bytes) -> JobInfo | None:
        return self._jobs.get(job_id)

    def __iter__(self) -> Iterator[JobInfo]:
        return iter(self._jobs.values())

    def _running_of(self, worker_id: bytes) -> bytes | None:
        found = (j.job_id for j in self._jobs.values() if j.driver.worker_id == worker_id)
        return next((job_id for job_id in found if self.is_running(job_id)), None)

    def _end_all(self, job_ids: list[bytes], message: str, wall_time: float) -> list[JobDecision]:
        decisions: list[JobDecision] = []
        for job_id in job_ids:
            decisions += self.finish(job_id, status=FAILED, message=message, wall_time=wall_time)
        return decisions

    def _forget_old(self) -> list[JobDecision]:
        forgotten: list[JobDecision] = []
        while len(self._finished) > MAX_FINISHED_JOBS:
            job_id = next(iter(self._finished))
            del self._finished[job_id], self._jobs[job_id]
            forgotten.append(JobForgotten(job_id))
        return forgotten

    def check_invariants(self) -> None:
        for job_id, job in self._jobs.items():
            assert (job.status != RUNNING) == (job_id in self._finished)
        assert all(self.is_running(job_id) for job_id in self._away_until)
