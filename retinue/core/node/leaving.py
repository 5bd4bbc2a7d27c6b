"""A node's end in order: what runs may finish, for a while.

First the tasks: nothing new is begun, and each lease comes back when its task is over. Then the actors and
idle workers, which those tasks may have needed: they finish the calls that they have accepted. Lives here:
that order. Does not: the end of what is late, and of the agent (`agent`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from retinue.core.node.leasing import Leasing
from retinue.core.node.processes import WORKER, Processes

logger = logging.getLogger(__name__)

REASON = "its node was shut down"
STAYING, TASKS, WORKERS, OVER = "STAYING", "TASKS", "WORKERS", "OVER"


class Leaving:
    """`begin`, then `look` whenever a lease or a process has ended; `done` is called once."""

    def __init__(self, leasing: Leasing, processes: Processes, done: Callable[[], None]) -> None:
        self._leasing = leasing
        self._processes = processes
        self._done = done
        self._state = STAYING
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, grace_s: float) -> None:
        """`done` follows when nothing runs any more, after `grace_s` at the latest."""
        if self._state is not STAYING:
            return
        logger.info("the node is shut down; what runs has %g s", grace_s)
        self._timer = asyncio.get_running_loop().call_later(grace_s, self._late)
        self._state = TASKS
        self._leasing.leave()
        self.look()

    def look(self) -> None:
        if self._state is TASKS and not self._leasing.has_tasks():
            self._state = WORKERS
            self._leasing.pool.close()
            for process in self._processes:
                # Not intended by whoever made it: an actor that may restart does so on another node.
                self._processes.end(process.worker_id, REASON, is_forced=False, is_intended=False)
        if self._state is WORKERS and not any(process.kind == WORKER for process in self._processes):
            self._over()

    def _late(self) -> None:
        left = [process.label or str(process.pid) for process in self._processes if process.kind == WORKER]
        logger.warning("these are killed, for they have not ended in time: %s", ", ".join(left))
        self._over()

    def _over(self) -> None:
        self.close()
        self._done()

    def close(self) -> None:
        self._state = OVER
        if self._timer is not None:
            self._timer.cancel()
