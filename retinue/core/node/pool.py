"""Which worker process serves which lease; when to start one, and when an idle one ends. Pure.

Workers are interchangeable within one environment (`WorkerEnv`, the job included: they are never shared
between jobs). A start belongs to an environment, not to a lease: whichever worker is ready first serves
the lease that has waited longest.

Lives here: workers' states, needs, limits. Does not: processes (`spawner`), resources (`scheduling.leases`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

import msgspec
from msgspec import Struct, field

from retinue.core.wire.messages import WorkerEnv

# Idle workers beyond as many as the node has CPUs end after a moment, the others after a while.
EXTRA_IDLE_S = 2.0
IDLE_S = 300.0
START_TIMEOUT_S = 60.0
# Somebody else's SIGKILL says nothing about the environment; this many in a row say that it is hopeless.
MAX_KILLED_STARTS = 20

STARTING, IDLE, LEASED, ENDING = "starting", "idle", "leased", "ending"


class Start(Struct, frozen=True):
    """Start a process; answer `registered`, or `died`."""

    worker_id: bytes
    env: WorkerEnv


class Use(Struct, frozen=True):
    lease_id: int
    worker_id: bytes


class Fail(Struct, frozen=True):
    """A worker that was started for leases like this one did not come up."""

    lease_id: int
    reason: str


class End(Struct, frozen=True):
    """End the process; answer `died`. `is_forced`: not in order but at once."""

    worker_id: bytes
    reason: str
    is_forced: bool = False


Decision = Start | Use | Fail | End


class Worker(Struct, eq=False):
    worker_id: bytes
    kind: Kind
    state: str
    since: float
    lease_id: int = 0


class Kind(Struct, eq=False):
    """The workers of one environment."""

    env: WorkerEnv
    idle: list[Worker] = field(default_factory=list)  # the last one used is the warmest
    needs: deque[int] = field(default_factory=deque)
    starting: int = 0
    ahead: int = 0  # how many of those that start, or are to start, no lease needs yet
    killed_starts: int = 0  # in a row


class WorkerPool:
    def __init__(self, *, keep_idle: int, max_starting: int, new_worker_id: Callable[[], bytes]) -> None:
        self._keep_idle = keep_idle
        self._max_starting = max_starting
        self._new_worker_id = new_worker_id
        self._kinds: dict[bytes, Kind] = {}
        self._workers: dict[bytes, Worker] = {}
        self._starting = 0
        self._is_closed = False

    def close(self) -> None:
        """Start nothing more, whoever waits for it."""
        self._is_closed = True

    # --- leases

    def need(self, lease_id: int, env: WorkerEnv, *, now: float, is_for_good: bool = False) -> list[Decision]:
        """A lease waits for a worker of this environment: Use, at once or once one is ready, or Fail.

        One that is taken `is_for_good` (by an actor) is replaced ahead: the next actor need not wait for a
        start (4 ms).
        """
        kind = self._kind(env)
        out: list[Decision] = []
        if kind.idle:
            out.append(self._use(kind.idle.pop(), lease_id, now))
        else:
            kind.needs.append(lease_id)
            kind.ahead = max(0, kind.ahead - 1)
        if is_for_good and not kind.idle and kind.starting <= len(kind.needs):
            kind.ahead = max(1, kind.ahead)
        return out + self._start_more(now)

    def drop(self, lease_id: int) -> None:
        """The lease does not wait any more; a worker that starts for it becomes idle."""
        for kind in self._kinds.values():
            if lease_id in kind.needs:
                kind.needs.remove(lease_id)
                return

    def freed(self, worker_id: bytes, *, is_reusable: bool, now: float) -> list[Decision]:
        """The worker's lease is over."""
        worker = self._workers.get(worker_id)
        if worker is None or worker.state in (ENDING, IDLE):
            return []
        if not is_reusable:
            return [self._end(worker, "it is not to be used again")]
        return self._ready(worker, now)

    # --- processes

    def prestart(self, env: WorkerEnv, count: int, *, now: float) -> list[Decision]:
        """Have this many workers ready before anybody asks."""
        kind = self._kind(env)
        kind.ahead = max(kind.ahead, count - len(kind.idle) - kind.starting)
        return self._start_more(now)

    def registered(self, worker_id: bytes, *, now: float) -> list[Decision] | None:
        """The process is there. None for one that was not expected (any more): it is to end."""
        worker = self._workers.get(worker_id)
        if worker is None or worker.state != STARTING:
            return None
        self._started(worker)
        worker.kind.killed_starts = 0
        return [*self._ready(worker, now), *self._start_more(now)]

    def died(self, worker_id: bytes, reason: str, *, now: float, was_killed: bool = False) -> list[Decision]:
        """The process is gone, or could not be started. `was_killed`: by SIGKILL, from outside."""
        worker = self._workers.pop(worker_id, None)
        if worker is None:
            return []
        out: list[Decision] = []
        kind = worker.kind
        if worker.state == IDLE:
            kind.idle.remove(worker)
        elif worker.state == STARTING:
            self._started(worker)
            kind.ahead = min(kind.ahead, kind.starting)
            kind.killed_starts = kind.killed_starts + 1 if was_killed else 0
            is_hopeless = not was_killed or kind.killed_starts >= MAX_KILLED_STARTS
            if is_hopeless and len(kind.needs) > kind.starting:
                out.append(Fail(kind.needs.popleft(), reason))
        self._forget_if_unused(kind)
        return out + self._start_more(now)

    def job_finished(self, job_id: bytes, *, keep: Collection[bytes] = ()) -> list[Decision]:
        """End the job's workers, at once, except those to `keep`."""
        for kind in self._kinds.values():
            if kind.env.job_id == job_id:
                kind.ahead = 0
                kind.needs.clear()
        return [
            self._end(worker, "its job ended", is_forced=True)
            for worker in self._workers.values()
            if worker.kind.env.job_id == job_id and worker.worker_id not in keep
        ]

    def tick(self, *, now: float) -> list[Decision]:
        """End what has been idle, or starting, for too long. Call about every second."""
        out: list[Decision] = []
        idle = sorted((w for w in self._workers.values() if w.state == IDLE), key=lambda w: w.since)
        extra = len(idle) - self._keep_idle
        for index, worker in enumerate(idle):
            if now - worker.since >= (EXTRA_IDLE_S if index < extra else IDLE_S):
                out.append(self._end(worker, "it was idle"))
        for worker in list(self._workers.values()):
            if worker.state == STARTING and now - worker.since >= START_TIMEOUT_S:
                out.append(
                    self._end(worker, f"it did not come up within {START_TIMEOUT_S:g} s", is_forced=True)
                )
                kind = worker.kind
                if len(kind.needs) > kind.starting:
                    out.append(Fail(kind.needs.popleft(), f"no worker came up within {START_TIMEOUT_S:g} s"))
        return out

    # --- inside

    def _kind(self, env: WorkerEnv) -> Kind:
        key = key_of(env)
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = Kind(env)
        return kind

    def _forget_if_unused(self, kind: Kind) -> None:
        if not kind.needs and not kind.ahead and not any(w.kind is kind for w in self._workers.values()):
            self._kinds.pop(key_of(kind.env), None)

    def _start_more(self, now: float) -> list[Decision]:
        out: list[Decision] = []
        for kind in self._kinds.values() if not self._is_closed else ():
            while self._starting < self._max_starting and kind.starting < len(kind.needs) + kind.ahead:
                worker = Worker(self._new_worker_id(), kind, STARTING, now)
                self._workers[worker.worker_id] = worker
                kind.starting += 1
                self._starting += 1
                out.append(Start(worker.worker_id, kind.env))
        return out

    def _started(self, worker: Worker) -> None:
        worker.kind.starting -= 1
        self._starting -= 1

    def _ready(self, worker: Worker, now: float) -> list[Decision]:
        kind = worker.kind
        if kind.needs:
            return [self._use(worker, kind.needs.popleft(), now)]
        kind.ahead = min(kind.ahead, kind.starting)
        worker.state = IDLE
        worker.since = now
        worker.lease_id = 0
        kind.idle.append(worker)
        return []

    def _use(self, worker: Worker, lease_id: int, now: float) -> Use:
        worker.state = LEASED
        worker.since = now
        worker.lease_id = lease_id
        return Use(lease_id, worker.worker_id)

    def _end(self, worker: Worker, reason: str, *, is_forced: bool = False) -> End:
        if worker.state == IDLE:
            worker.kind.idle.remove(worker)
        elif worker.state == STARTING:
            self._started(worker)
        worker.state = ENDING
        return End(worker.worker_id, reason, is_forced)

    # --- looking

    def count(self, state: str) -> int:
        return sum(worker.state == state for worker in self._workers.values())

    def state_of(self, worker_id: bytes) -> str:
        worker = self._workers.get(worker_id)
        return worker.state if worker is not None else ""

    def check_invariants(self) -> None:
        assert self._starting == self.count(STARTING) == sum(k.starting for k in self._kinds.values())
        for kind in self._kinds.values():
            assert not (kind.idle and kind.needs)
            assert all(worker.state == IDLE and worker.kind is kind for worker in kind.idle)
        assert sum(len(kind.idle) for kind in self._kinds.values()) == self.count(IDLE)


_encode = msgspec.msgpack.Encoder(order="sorted").encode


def key_of(env: WorkerEnv) -> bytes:
    """Environments with the same key may share workers."""
    return _encode(env)
