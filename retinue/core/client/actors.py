"""One actor as its caller sees it: calls in order, what is in flight, and what a death means for them. Pure.

Calls go out in the order they were made. One whose arguments are not there yet holds back those behind
it (unless the actor allows out-of-order execution). Each incarnation has sequence numbers of its own.

Lives here: order, limits, what is repeated and what fails. Does not: connections, frames, the head.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from msgspec import structs

from retinue.core.client.tasks import TaskRecord
from retinue.core.wire.messages import ActorInfo, Address, CallOptions, DeathInfo

CONNECTING, ALIVE, RESTARTING, DEAD = "CONNECTING", "ALIVE", "RESTARTING", "DEAD"


class ActorQueue:
    """Calls of this process to one actor."""

    def __init__(
        self,
        actor_id: bytes,
        *,
        max_pending_calls: int = -1,
        out_of_order: bool = False,
        class_name: str = "",
    ) -> None:
        self.actor_id = actor_id
        self.class_name = class_name
        self.max_pending_calls = max_pending_calls
        self.out_of_order = out_of_order
        self.state = CONNECTING
        self.incarnation = -1
        self.address: Address | None = None
        self.conn: Any = None
        self.death: DeathInfo | None = None
        self.death_cause = ""
        self.error_blob: bytes = b""
        self.waiting: deque[TaskRecord] = deque()  # not sent
        self.in_flight: dict[bytes, TaskRecord] = {}
        self.orphans: list[TaskRecord] = []  # sent, their connection lost, the head's word awaited
        self._next_seq = 0

    # --- calls

    def is_full(self) -> bool:
        """Whether `max_pending_calls` are unanswered."""
        return 0 < self.max_pending_calls <= len(self.waiting) + len(self.in_flight) + len(self.orphans)

    def is_busy(self) -> bool:
        """Whether any call is unanswered."""
        return bool(self.in_flight or self.waiting or self.orphans)

    def submit(self, task: TaskRecord) -> bool:
        """A call was made: True if it is to be sent now."""
        if self.conn is not None and not task.unready and (self.out_of_order or not self.waiting):
            self._send(task)
            return True
        self.waiting.append(task)
        return False

    def sendable(self) -> list[TaskRecord]:
        """The waiting calls that may go now, in order."""
        if self.conn is None or not self.waiting:
            return []
        tasks = []
        if self.out_of_order:
            held_back: deque[TaskRecord] = deque()
            for task in self.waiting:
                if task.unready:
                    held_back.append(task)
                else:
                    tasks.append(task)
            self.waiting = held_back
        else:
            while self.waiting and not self.waiting[0].unready:
                tasks.append(self.waiting.popleft())
        for task in tasks:
            self._send(task)
        return tasks

    def _send(self, task: TaskRecord) -> None:
        task.seq = self._next_seq
        self._next_seq += 1
        task.conn = self.conn
        self.in_flight[task.task_id] = task

    def answered(self, task_id: bytes) -> TaskRecord | None:
        return self.in_flight.pop(task_id, None)

    def retry(self, task: TaskRecord) -> None:
        """Repeat a call that its method's `retry_exceptions` allows to repeat: behind those that wait."""
        task.conn = None
        self.waiting.append(task)

    def cancel_waiting(self, task_id: bytes) -> TaskRecord | None:
        """Take a call back that has not been sent."""
        for task in self.waiting:
            if task.task_id == task_id:
                self.waiting.remove(task)
                return task
        return None

    # --- the actor's life

    def connected(self, conn: Any, incarnation: int) -> list[TaskRecord]:
        """There is a connection. Returns the calls of an earlier one, broken meanwhile, that fail."""
        self.conn = conn
        self.state = ALIVE
        self.incarnation = incarnation
        self.death = None
        self.death_cause = ""
        self._next_seq = 0
        return self._settle_orphans()

    def disconnected(self) -> None:
        """The connection is gone: what was in flight waits for the head's word."""
        self.conn = None
        if self.state == ALIVE:
            self.state = CONNECTING
        orphans = list(self.in_flight.values())
        self.in_flight.clear()
        for task in orphans:
            task.conn = None
        self.orphans.extend(orphans)

    def update(self, info: ActorInfo, error_blob: bytes) -> tuple[bool, list[TaskRecord]]:
        """The head's word. Returns whether to connect to `address` now, and the calls that failed.

        Orphans are repeated, in order and before all others, while their `max_task_retries` last. Where the
        actor lives on and only the connection broke, nobody knows what became of them: the same goes.
        """
        if self.state == DEAD or (info.incarnation < self.incarnation and info.state != DEAD):
            return False, []  # death is final; or an older incarnation's news
        if info.state == ALIVE:
            if self.conn is not None and info.incarnation == self.incarnation:
                return False, []
            self.address = info.address
            if self.conn is not None:  # the old incarnation's connection has not broken yet
                self.disconnected()
            self.state = CONNECTING
            return True, self._settle_orphans()
        self.death = info.death
        self.death_cause = info.death_cause
        if info.state == RESTARTING:
            self.state = RESTARTING
            if self.conn is not None:
                self.disconnected()
                self.state = RESTARTING
            return False, self._settle_orphans()
        if info.state == DEAD:
            self.state = DEAD
            self.error_blob = error_blob
            if self.conn is not None:
                self.disconnected()
                self.state = DEAD
            failed = [*self.orphans, *self.waiting]
            self.orphans.clear()
            self.waiting.clear()
            return False, failed
        return False, []

    def _settle_orphans(self) -> list[TaskRecord]:
        again, failed = [], []
        for task in self.orphans:
            if task.retries_left != 0 and not task.is_cancelled:
                task.retries_left -= 1 if task.retries_left > 0 else 0
                task.attempt += 1
                task.options = structs.replace(task.options or CallOptions(), attempt=task.attempt)
                again.append(task)
            else:
                failed.append(task)
        self.orphans.clear()
        self.waiting.extendleft(reversed(again))
        return failed

    def describe_death(self) -> str:
        """Why it is dead or away, for an error's message."""
        if self.death_cause:
            return self.death_cause
        if self.death is not None:
            return self.death.describe()
        if self.state == CONNECTING:
            return "the connection to it broke, and with it the answer"
        return "no cause is known"

    def check_invariants(self) -> None:
        assert self.conn is not None or not self.in_flight
        assert self.state != DEAD or not (self.waiting or self.in_flight or self.orphans)
