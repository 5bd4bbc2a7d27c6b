"""The keeper thread: touches free ranges ahead of use and punches those that are too many.

Carries out `Warm` and `Punch` off the agent's loop (16 MiB take 1-35 ms, GIL free) and hands each one's end
back through a callback. Lives here: the thread and its queue. Does not: which range and when (`store`).
"""

import logging
import queue
import threading
from collections.abc import Callable

from retinue.core.objects.arena import Arena
from retinue.core.objects.decisions import Punch, Warm

logger = logging.getLogger(__name__)

KeeperJob = Warm | Punch
Finished = Callable[[KeeperJob, str | None], object]
"""Called in the keeper thread with the job and None, or why it failed; pass it on to the loop."""


class Keeper:
    """Build, `start`, `submit` jobs from one thread, `stop`. The store keeps at most one Warm in flight."""

    def __init__(self, arena: Arena, finished: Finished) -> None:
        self._arena = arena
        self._finished = finished
        self._jobs: queue.SimpleQueue[KeeperJob | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="arena-keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: KeeperJob) -> None:
        self._jobs.put(job)

    def stop(self) -> None:
        """Finish what was submitted, then end. Waits for it."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._finished(job, self._carry_out(job))

    def _carry_out(self, job: KeeperJob) -> str | None:
        try:
            if isinstance(job, Warm):
                self._arena.touch(job.offset, job.size)
            elif not self._arena.punch(job.offset, job.size):
                return "some pages are in use"
        except OSError as error:
            # Not fatal: untouched space is slow, unpunched space is memory not given back.
            logger.warning("%s of %d bytes failed: %s", type(job).__name__, job.size, error)
            return error.strerror or str(error)
        except Exception as error:  # a mistake of ours; the thread must go on
            logger.exception("%s of %d bytes failed", type(job).__name__, job.size)
            return repr(error)
        return None
