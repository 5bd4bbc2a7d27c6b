"""Tasks on their way out and back: pushed to leased workers, answered, cancelled, run again.

Lives here: calls of functions. Does not: actors' calls (`actor_calls`), their arguments (`arguments`), what
an answer means (`replies`), the leases (`leasing`).
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

from retinue.core.client.arguments import DependencyFailed, DependencyPending
from retinue.core.client.leases import LeasedWorker, ShapePool
from retinue.core.client.leasing import Lease
from retinue.core.client.replies import task_name
from retinue.core.client.tasks import FunctionDef, TaskRecord, call_frame, definition_frames
from retinue.core.transport.threads import Connection
from retinue.core.wire.messages import REPLY_ERROR, HandBack, Reply, StreamItem, WorkerExit

if TYPE_CHECKING:
    from retinue.core.client.runtime import Runtime


class TaskSubmitter:
    """All tasks of this process that are not actors' calls."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._arguments = runtime.arguments
        self._replies = runtime.replies
        self._leases = runtime.leases

    def submit(self, task: TaskRecord) -> None:
        """A new task, whose entries are in the table already."""
        if not task.slots or not self._arguments.await_dependencies(task, self._ready):
            self._ready(task)

    def _ready(self, task: TaskRecord) -> None:
        runtime = self._runtime
        failed: DependencyFailed | None = None
        with runtime.lock:
            if task.is_cancelled:
                return
            pool: ShapePool = task.pool
            try:
                dependencies = self._arguments.dependencies(task)
            except DependencyFailed as error:
                failed = error
            except DependencyPending:
                runtime.io.post(lambda: self.submit(task))
                return
            else:
                worker = pool.submit(task)
                if worker is not None:
                    self.send(worker, [task], dependencies, is_busy=len(worker.tasks) > 1)
                    runtime.submitted(worker.conn)
                    return
                if pool.demand_grew():
                    self._leases.send_demand(pool)
        if failed is not None:
            self._replies.finish_with_blob(task, failed.blob)
            return
        runtime.submitted(None)

    def send(
        self,
        worker: LeasedWorker,
        tasks: list[TaskRecord],
        dependencies: Any = None,
        *,
        is_busy: bool = False,
    ) -> None:
        """Push tasks to a worker in one go. With the lock."""
        connection: Connection = worker.conn
        known = connection.known
        frames = []
        for task in tasks:
            function: FunctionDef = task.function
            if function.key not in known:
                known.add(function.key)
                frames.append(definition_frames(function))
            if task.slots and dependencies is None:
                try:
                    found = self._arguments.dependencies(task)
                except (DependencyFailed, DependencyPending):  # lost since it was ready
                    task.conn = None
                    worker.tasks.pop(task.task_id, None)
                    self._runtime.io.post(functools.partial(self._submit_again, worker, task))
                    continue
            else:
                found = dependencies
            frames.append(call_frame(task, found))
        if is_busy and frames:
            connection.gather(b"".join(frames), self._runtime.gathering)
        elif frames:
            connection.send_frame(frames[0] if len(frames) == 1 else b"".join(frames))

    def _submit_again(self, worker: LeasedWorker, task: TaskRecord) -> None:
        with self._runtime.lock:
            task.pool.withdrawn(worker, task.task_id)
            self.feed(task.pool)
        self.submit(task)

    def feed(self, pool: ShapePool) -> None:
        """Tasks came back: give them to workers that have none, and ask for more. With the lock."""
        for worker, tasks in pool.feed():
            self.send(worker, tasks)
        self._leases.send_demand(pool)

    def on_call_message(self, connection: Connection, message: Any, payload: bytes) -> None:
        """What a leased worker says, on whichever thread reads it."""
        kind = type(message)
        lease: Lease = connection.context
        runtime = self._runtime
        if kind is Reply:
            now = time.monotonic()
            may_retry = message.status == REPLY_ERROR and self._replies.may_retry(
                lease.worker.tasks.get(message.task_id), payload
            )
            with runtime.lock:
                task = lease.pool.finished(lease.worker, message.task_id, message.exec_us, now)
                if task is not None:
                    waiters = self._replies.complete(task, message, payload, may_retry=may_retry)
                else:
                    waiters = []
                    runtime.ownership.refuse_returns(message)
                tasks = lease.pool.refill(lease.worker)
                if tasks:
                    self.send(lease.worker, tasks)
                leaving = lease.worker.is_leaving and not lease.worker.tasks
                effects = runtime.table.take_effects()
            for wake in waiters:
                wake()
            if effects is not None:
                runtime.ownership.carry_out(effects)
            if leaving:
                self._leases.give_back(lease.pool, lease.worker)
        elif kind is HandBack:
            with runtime.lock:
                handed = lease.pool.handed_back(lease.worker, message.task_ids)
                cancelled = [t for t in handed if t.is_cancelled]
                lease.pool.resubmit([t for t in handed if not t.is_cancelled])
                self.feed(lease.pool)
                leaving = lease.worker.is_leaving and not lease.worker.tasks
            for task in cancelled:
                self._replies.fail(task, runtime.cancelled_error(task.task_id, task_name(task)))
            if leaving:
                self._leases.give_back(lease.pool, lease.worker)
        elif kind is StreamItem:
            runtime.ownership.stream_item(
                lease.worker.tasks.get(message.task_id), message, payload, connection
            )
        elif kind is WorkerExit:
            with runtime.lock:
                lease.is_reusable = False
                lease.pool.recalled(lease.worker.lease_id)
                done = not lease.worker.tasks
            if done:
                self._leases.give_back(lease.pool, lease.worker)

    def cancel(self, task: TaskRecord, *, force: bool, recursive: bool) -> None:
        """Cancel a task of this process's: drop it if it is not sent, else tell its worker."""
        runtime = self._runtime
        with runtime.lock:
            if task.is_done or task.is_cancelled:
                return
            task.is_cancelled = True
            task.retries_left = 0
            connection: Connection | None = task.conn
            if connection is None:
                try:
                    task.pool.pending.remove(task)
                except ValueError:
                    pass  # it waits for its arguments, or is on its way back from a worker
        if connection is None:
            self._replies.fail(task, runtime.cancelled_error(task.task_id, task_name(task)))
            return
        lease: Lease = connection.context
        runtime.ownership.send_cancel(lease.address, task.task_id, force=force, recursive=recursive)

    def run_again(self, task: TaskRecord) -> None:
        """Make a lost result again: the task as it was, one retry less. Its returns are pending already."""
        with self._runtime.lock:
            task.is_done = False
            self._replies.count_attempt(task)
        self.submit(task)
