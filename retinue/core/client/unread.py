"""Errors of calls whose results were let go of before anybody asked for them: said once, to the log.

Lives here: which errors are worth a line, and how many lines. Does not: noticing that nobody asked
(`ownership.table`, `replies`).
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from typing import TYPE_CHECKING

from retinue.core.client.replies import task_name
from retinue.core.errors import NodeDiedError, RetinueTaskError, TaskCancelledError, WorkerCrashedError
from retinue.core.serialization import deserialize

if TYPE_CHECKING:
    from retinue.core.client.runtime import Runtime
    from retinue.core.client.tasks import TaskRecord

logger = logging.getLogger("retinue")

# As in Ray: what user code raised, and workers that crashed; an actor that was killed is nobody's surprise.
_TOLD = (RetinueTaskError, WorkerCrashedError, NodeDiedError)
BURST = 10
PERIOD_S = 5.0
SWITCH = "RETINUE_IGNORE_UNHANDLED_ERRORS"


class Flood:
    """Lets BURST through in each PERIOD_S, and counts the others. Pure."""

    def __init__(self) -> None:
        self._since = -PERIOD_S
        self._passed = 0
        self.omitted = 0

    def passes(self, now: float) -> bool:
        if now - self._since >= PERIOD_S:
            self._since, self._passed = now, 0
        self._passed += 1
        if self._passed > BURST:
            self.omitted += 1
            return False
        return True

    def take_omitted(self) -> int:
        omitted, self.omitted = self.omitted, 0
        return omitted


class UnreadErrors:
    """Those of one process's calls. `note` is called on any thread; the lines are written on a helper's.

    To unpickle an exception may run user code, or import much: neither belongs on the I/O thread.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._is_wanted = os.environ.get(SWITCH, "") in ("", "0")
        self._flood = Flood()
        self._waiting: deque[tuple[str, bytes]] = deque()  # name of the call, or "" for an actor; error
        self._hint = f" ({SWITCH}=1 leaves such lines out)"  # with the first of them

    def note(self, errors: list[tuple[TaskRecord, bytes]]) -> None:
        """Tasks, and the error blobs that nobody can ask for any more."""
        if not self._is_wanted:
            return
        now = time.monotonic()
        for task, blob in errors:
            if self._flood.passes(now):
                self._tell(_name(task), blob)
            elif self._flood.omitted == 1:
                self._runtime.io.call_later(PERIOD_S, self._tell_omitted)

    def note_actor(self, blob: bytes) -> None:
        """An actor of ours never came to be, and no call waits that would fail with this error."""
        if self._is_wanted and self._flood.passes(time.monotonic()):
            self._tell("", blob)

    def _tell(self, name: str, blob: bytes) -> None:
        self._waiting.append((name, blob))
        if len(self._waiting) == 1:
            self._runtime.io.post(lambda: self._runtime.futures.run_on_helper(self.flush))

    def flush(self) -> None:
        """Write what waits, on this thread."""
        while self._waiting:
            try:
                name, blob = self._waiting.popleft()
            except IndexError:
                return  # another thread was faster
            error = deserialize(blob)
            if not name:
                logger.error("an actor never came to be, and no call waited for it: %s", error)
            elif isinstance(error, _TOLD) and not isinstance(error, TaskCancelledError):
                text = error if isinstance(error, RetinueTaskError) else f"{type(error).__name__}: {error}"
                logger.error("%s failed, and nobody asked for its result%s: %s", name, self._hint, text)
                self._hint = ""

    def _tell_omitted(self) -> None:
        omitted = self._flood.take_omitted()
        if omitted:
            logger.error("%d more calls failed, and nobody asked for their results", omitted)


def _name(task: TaskRecord) -> str:
    class_name = getattr(task.pool, "class_name", "") if task.function is None else ""
    return f"{class_name}.{task_name(task)}" if class_name else task_name(task)
