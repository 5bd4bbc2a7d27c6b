"""Decide which worker of a pool runs which chunk of work, and when workers come and go. Pure.

A chunk is bound late: it waits here until a worker is free, so that it never stands behind a long one while
another worker idles, and as many chunks run at a time as there are workers.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Start:
    """Start a new worker under this number."""

    worker: int


@dataclass(frozen=True, slots=True)
class Send:
    """Let the worker, which is free, run the chunk."""

    chunk: int
    worker: int


@dataclass(frozen=True, slots=True)
class Retire:
    """Let the worker, which is free, end."""

    worker: int


@dataclass(frozen=True, slots=True)
class Kill:
    """End the worker whatever it is doing."""

    worker: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Tell whoever waits for the chunk that it has no result."""

    chunk: int


Decision = Start | Send | Retire | Kill | Drop


class Dispatcher:
    """The workers and chunks of one pool, from the first `start` until `is_finished`."""

    def __init__(self, *, processes: int, chunks_per_worker: int | None = None) -> None:
        self._processes = processes
        self._chunks_per_worker = chunks_per_worker
        self._free: deque[int] = deque()  # longest free first: all workers get their share
        self._running: dict[int, int] = {}  # chunk -> worker
        self._waiting: deque[int] = deque()
        self._chunks_run: dict[int, int] = {}  # worker -> how many it was sent
        self._next_worker = 0
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Say whether no further chunk is accepted."""
        return self._is_closed

    @property
    def is_finished(self) -> bool:
        """Say whether all work is done and all workers are dismissed."""
        return self._is_closed and not self._chunks_run

    def start(self) -> list[Decision]:
        """Begin with all workers."""
        return [self._start() for _ in range(self._processes)]

    def chunk_submitted(self, chunk: int) -> list[Decision]:
        """Accept a chunk; the pool must not be closed."""
        assert not self._is_closed
        self._waiting.append(chunk)
        return self._send_waiting()

    def chunk_finished(self, chunk: int, *, worker_lives: bool) -> list[Decision]:
        """Free the worker, or replace it if it died or has run its share. Of a chunk dropped: nothing."""
        worker = self._running.pop(chunk, None)
        if worker is None:
            return []
        decisions: list[Decision] = []
        if not worker_lives:
            decisions += [self._forget(Kill(worker)), *self._replace()]
        elif self._chunks_run[worker] == self._chunks_per_worker:
            decisions += [self._forget(Retire(worker)), *self._replace()]
        else:
            self._free.append(worker)
        return decisions + self._send_waiting() + self._retire_if_done()

    def close(self) -> list[Decision]:
        """Accept nothing more; workers retire when the work is done."""
        self._is_closed = True
        return self._retire_if_done()

    def terminate(self) -> list[Decision]:
        """Drop all work that is not finished, and end all workers."""
        self._is_closed = True
        dropped = [Drop(chunk) for chunk in (*self._running, *self._waiting)]
        killed = [self._forget(Kill(worker)) for worker in list(self._chunks_run)]
        self._running.clear()
        self._waiting.clear()
        self._free.clear()
        return [*killed, *dropped]

    def _send_waiting(self) -> list[Decision]:
        decisions: list[Decision] = []
        while self._waiting and self._free:
            chunk, worker = self._waiting.popleft(), self._free.popleft()
            self._running[chunk] = worker
            self._chunks_run[worker] += 1
            decisions.append(Send(chunk, worker))
        return decisions

    def _replace(self) -> list[Decision]:
        # A closed pool whose other workers suffice for what waits needs no new one.
        is_needed = not self._is_closed or len(self._waiting) > len(self._chunks_run) - len(self._running)
        return [self._start()] if is_needed else []

    def _retire_if_done(self) -> list[Decision]:
        if not self._is_closed or self._running or self._waiting:
            return []
        self._free.clear()
        return [self._forget(Retire(worker)) for worker in list(self._chunks_run)]

    def _start(self) -> Decision:
        worker = self._next_worker
        self._next_worker += 1
        self._chunks_run[worker] = 0
        self._free.append(worker)
        return Start(worker)

    def _forget(self, decision: Retire | Kill) -> Decision:
        del self._chunks_run[decision.worker]
        return decision

    def check_invariants(self) -> None:
        assert not (self._waiting and self._free), "work waits beside a free worker"
        busy = list(self._running.values())
        assert sorted([*busy, *self._free]) == sorted(self._chunks_run), "a worker is lost or counted twice"
        assert self._is_closed or len(self._chunks_run) in (0, self._processes), "a worker was not replaced"
        limit = self._chunks_per_worker
        assert limit is None or all(n <= limit for n in self._chunks_run.values())
