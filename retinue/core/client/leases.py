"""Which leased worker gets which task, and how many workers to ask for. Pure.

Tasks of one shape share leases. A function starts with one task at a worker at a time; once its tasks
prove short they are pipelined, to at most about 1 ms of queued work (64 tasks: 1 worker did 21,000
tasks/s at depth 1, 183,000 at 16, 258,000 at 64, and 2 workers 296,000 at 64 but 186,000 at 256). A
worker is refilled when half empty, so that one send carries many tasks.

Lives here: waiting tasks, leased workers, the demand for more. Does not: connections, frames, clocks.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from retinue.core.client.tasks import TaskRecord

MAX_QUEUED_US = 1000.0
MAX_DEPTH = 64
IDLE_LEASE_S = 0.5
MAX_WANTED = 1000
# A node that has run nothing yet takes half a second to give its first worker.
SPREAD_PATIENCE_S = 1.0
_MEAN_WEIGHT = 0.2


class LeasedWorker:
    """A worker that is ours for now. `tasks` are in flight there, in the order they were sent."""

    __slots__ = ("conn", "idle_since", "is_leaving", "is_paused", "is_taken", "lease_id", "tasks")

    def __init__(self, lease_id: int, conn: Any, now: float) -> None:
        self.lease_id = lease_id
        self.conn = conn
        self.tasks: dict[bytes, TaskRecord] = {}
        self.is_leaving = False  # recalled, or not to be used again: gets no more tasks
        self.is_paused = False  # handed its queue back: gets no more until its running task is over
        self.is_taken = False  # runs a task that may be long: nothing is put behind it
        self.idle_since = now


class ShapePool:
    """The tasks and workers of one shape.

    `is_spread`: every task is placed anew, in its turn, so a worker gets one and is given back.
    """

    def __init__(self, shape_id: int, *, is_spread: bool = False) -> None:
        self.shape_id = shape_id
        self._is_spread = is_spread
        self.pending: deque[TaskRecord] = deque()
        self.workers: dict[int, LeasedWorker] = {}
        self._open: dict[int, LeasedWorker] = {}  # with room for the next task
        self._asked = 0  # how many workers the agent still owes us, as far as it knows
        self._elsewhere: dict[bytes, int] = {}  # to spread: how many other nodes owe us, by node id
        self._elsewhere_since = 0.0

    # --- tasks

    def submit(self, task: TaskRecord) -> LeasedWorker | None:
        """A task is ready to run: the worker to send it to now, or None if it waits."""
        if not self.pending:
            depth = self._depth_of(task)
            for worker in self._open.values():
                if len(worker.tasks) < depth:
                    self._assign(worker, task, depth)
                    return worker
        self.pending.append(task)
        return None

    def resubmit(self, tasks: list[TaskRecord]) -> None:
        """Tasks that were not started go first again, in their order."""
        self.pending.extendleft(reversed(tasks))

    def _assign(self, worker: LeasedWorker, task: TaskRecord, depth: int) -> None:
        worker.tasks[task.task_id] = task
        task.conn = worker.conn
        if len(worker.tasks) >= depth:
            worker.is_taken = depth == 1
            self._open.pop(worker.lease_id, None)

    def refill(self, worker: LeasedWorker) -> list[TaskRecord]:
        """The tasks to send to a worker now, all in one go; empty while it is more than half full."""
        if worker.is_leaving or worker.is_paused or worker.is_taken:
            return []
        pending = self.pending
        held = len(worker.tasks)
        if not pending:
            self._open[worker.lease_id] = worker
            return []
        depth = self._depth_of(pending[0])
        if held > depth // 2:
            return []
        tasks = []
        # A longer or unknown task goes where nothing waits.
        while held < depth and pending and self._depth_of(pending[0]) >= depth:
            task = pending.popleft()
            worker.tasks[task.task_id] = task
            task.conn = worker.conn
            tasks.append(task)
            held += 1
        worker.is_taken = depth == 1
        if held < depth and not pending:
            self._open[worker.lease_id] = worker
        else:
            self._open.pop(worker.lease_id, None)
        return tasks

    def feed(self) -> list[tuple[LeasedWorker, list[TaskRecord]]]:
        """Tasks for workers that have none: to be asked for whenever tasks came back, and now and then.

        A worker asks for more by answering; one that has nothing to answer would wait for ever.
        """
        if not self.pending:
            return []
        idle = (w for w in self.workers.values() if not w.tasks)
        return [(worker, tasks) for worker in idle if (tasks := self.refill(worker))]

    def finished(self, worker: LeasedWorker, task_id: bytes, exec_us: int, now: float) -> TaskRecord | None:
        """A worker answered: its task, or None if it is not there any more. Refill follows."""
        task = worker.tasks.pop(task_id, None)
        if task is None:
            return None
        function = task.function
        mean = function.mean_us
        function.mean_us = exec_us if mean < 0 else mean + _MEAN_WEIGHT * (exec_us - mean)
        worker.is_paused = False
        worker.is_taken = False
        if not worker.tasks:
            worker.idle_since = now
        return task

    def handed_back(self, worker: LeasedWorker, task_ids: list[bytes]) -> list[TaskRecord]:
        """The worker will not start these; it gets nothing until what it runs is over.

        What it ran may be answered already: then it is free. `resubmit` and `feed` follow.
        """
        tasks = [worker.tasks.pop(i) for i in task_ids if i in worker.tasks]
        for task in tasks:
            task.conn = None
        self._open.pop(worker.lease_id, None)
        if worker.tasks:
            worker.is_paused = True
        else:
            self._freed(worker)
        return tasks

    def withdrawn(self, worker: LeasedWorker, task_id: bytes) -> None:
        """A task that was assigned is not sent after all. `feed` follows."""
        worker.tasks.pop(task_id, None)
        if not worker.tasks:
            self._freed(worker)

    def _freed(self, worker: LeasedWorker) -> None:
        worker.is_paused = worker.is_taken = False
        if not worker.is_leaving and worker.lease_id in self.workers:
            self._open[worker.lease_id] = worker

    # --- leases

    def granted(self, worker: LeasedWorker) -> None:
        self.workers[worker.lease_id] = worker
        self._open[worker.lease_id] = worker

    def one_task_only(self, worker: LeasedWorker) -> None:
        """It has got its task, or there was none: the last one, where each is placed anew."""
        if self._is_spread:
            self.recalled(worker.lease_id)

    def grant_seen(self, count: int = 1, node_id: bytes = b"") -> None:
        """The agent counts this many less as wanted: our own, or the one of another node."""
        owed = self._elsewhere.get(node_id, 0)
        if owed > count:
            self._elsewhere[node_id] = owed - count
        elif owed:
            del self._elsewhere[node_id]
        else:
            self._asked = max(0, self._asked - count)

    def redirected(self, count: int, node_id: bytes, source: bytes, now: float) -> int:
        """The agent of node `source` (b"": ours) has sent us to another. Returns how many to ask for there.

        It counts them as served. We ask our own for them all the same, as that node may be full by now: who
        has room first gets the task. Only what is to be spread leaves the turn to the other for a while.
        """
        self.grant_seen(count, source)
        if not self._is_spread:
            return count
        if not self._elsewhere:
            self._elsewhere_since = now
        self._elsewhere[node_id] = owed = self._elsewhere.get(node_id, 0) + count
        return owed

    def lose_patience(self, now: float) -> None:
        """What another node has not given by now, whoever has room may give."""
        if self._elsewhere and now - self._elsewhere_since >= SPREAD_PATIENCE_S:
            self._elsewhere.clear()

    def recalled(self, lease_id: int) -> LeasedWorker | None:
        """Others wait for the worker: no more tasks for it."""
        worker = self.workers.get(lease_id)
        if worker is not None:
            worker.is_leaving = True
            self._open.pop(lease_id, None)
        return worker

    def removed(self, lease_id: int) -> LeasedWorker | None:
        """The lease is over (returned or lost); the worker still has its unanswered tasks."""
        self._open.pop(lease_id, None)
        worker = self.workers.pop(lease_id, None)
        if worker is not None:
            worker.is_leaving = True  # an answer of its may still be on its way through another thread
        return worker

    def returnable(self, now: float) -> list[LeasedWorker]:
        """Workers to give back: recalled ones that are done, and those idle for a while.

        They get no more tasks from here on, whichever thread submits one before `removed`.
        """
        found = [
            w
            for w in self.workers.values()
            if not w.tasks and (w.is_leaving or now - w.idle_since >= IDLE_LEASE_S)
        ]
        for worker in found:
            worker.is_leaving = True
            self._open.pop(worker.lease_id, None)
        return found

    def demand(self) -> int | None:
        """How many workers to ask for, if the agent should hear a new number."""
        pending = len(self.pending)
        if self._elsewhere:
            pending = max(0, pending - sum(self._elsewhere.values()))
        wanted = 0
        if pending:
            wanted = min(MAX_WANTED, -(-pending // self._depth_of(self.pending[0])))
        if wanted == self._asked or (self._is_spread and wanted and self._asked):
            # What is to be spread is asked for exactly: an answer may be on its way that this counts again.
            return None
        self._asked = wanted
        return wanted

    def demand_grew(self) -> bool:
        """Whether asking again cannot wait for the next tick: the need doubled since last time."""
        pending = len(self.pending)
        return pending > 0 and (
            self._asked == 0 or pending >= 2 * self._asked * self._depth_of(self.pending[0])
        )

    def _depth_of(self, task: TaskRecord) -> int:
        return 1 if self._is_spread else depth_of(task)

    def has_asked(self) -> bool:
        """Whether any agent owes us workers, as far as it knows."""
        return self._asked > 0 or bool(self._elsewhere)

    def take_elsewhere(self) -> bool:
        """Whether other nodes owe us workers of which we know; forgets them, as they will be told."""
        had, self._elsewhere = bool(self._elsewhere), {}
        return had

    def is_busy(self) -> bool:
        """Whether any task waits or is in flight."""
        return bool(self.pending) or any(w.tasks for w in list(self.workers.values()))

    def forget_demand(self) -> None:
        """The agent does not know our demand any more (refused, or a new connection)."""
        self._asked = 0
        self._elsewhere.clear()

    def check_invariants(self) -> None:
        for lease_id, worker in self._open.items():
            assert self.workers.get(lease_id) is worker
            assert not worker.is_leaving
            assert not worker.is_paused
        for worker in self.workers.values():
            assert len(worker.tasks) <= MAX_DEPTH
            assert not worker.is_taken or len(worker.tasks) == 1
            assert not worker.is_paused or worker.tasks
            if not (worker.tasks or worker.is_leaving or self.pending):
                assert worker.lease_id in self._open, "an idle worker that no task can find"


def depth_of(task: TaskRecord) -> int:
    """How many tasks of this function may be at a worker at once."""
    mean = task.function.mean_us
    if mean < 0 or mean >= MAX_QUEUED_US:
        return 1
    return MAX_DEPTH if mean * MAX_DEPTH <= MAX_QUEUED_US else max(1, int(MAX_QUEUED_US / mean))
