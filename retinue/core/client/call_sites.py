"""Where in the user's source objects are made: recorded only under RETINUE_RECORD_REF_CREATION_SITES=1.

Looking for a line costs about 2.5 us, more than a small put. So a process that records has ids made by a
factory that also looks, and one that does not pays nothing. Lives here: that factory, and the lines, for as
long as their objects are known. Does not: showing them (`describe`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Container, Iterable
from types import FrameType

from retinue.core.ids import TASK_ID_SIZE, IdFactory

VARIABLE = "RETINUE_RECORD_REF_CREATION_SITES"
# Forgotten objects' lines are looked for whenever there are twice as many lines as after the last look.
MIN_LINES = 10_000
_OWN = "retinue."

Known = Callable[[], Iterable[tuple[bytes, object]]]


class CallSites:
    """Lines by the id of the call or put. `known` gives the objects that the process knows, by id."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._lines: dict[bytes, str] = {}
        self._limit = MIN_LINES

    def note(self, new_id: bytes) -> None:
        """The user's code, somewhere above, has made a call or put with this id."""
        self._lines[new_id] = user_line(sys._getframe(1))
        if len(self._lines) > self._limit:
            self._forget()

    def of(self, object_id: bytes) -> str:
        """`file:line`; "" if it was not recorded."""
        return self._lines.get(object_id) or self._lines.get(object_id[:TASK_ID_SIZE], "")

    def _forget(self) -> None:
        known = [object_id for object_id, _ in self._known()]
        kept: Container[bytes] = {*known, *(object_id[:TASK_ID_SIZE] for object_id in known)}
        self._lines = {made: line for made, line in list(self._lines.items()) if made in kept}
        self._limit = max(MIN_LINES, 2 * len(self._lines))


class RecordingIds(IdFactory):
    """Makes ids, and notes whose code wants them."""

    __slots__ = ("_sites",)

    def __init__(self, job_id: bytes, sites: CallSites) -> None:
        super().__init__(job_id)
        self._sites = sites

    def task_id(self) -> bytes:
        task_id = super().task_id()
        self._sites.note(task_id)
        return task_id

    def put_id(self, task_id: bytes, index: int) -> bytes:
        object_id = super().put_id(task_id, index)
        self._sites.note(object_id)
        return object_id


def wanted_call_sites(known: Known) -> CallSites | None:
    """Where to record, if the environment asks for it."""
    return CallSites(known) if os.environ.get(VARIABLE, "0") not in ("", "0") else None


def make_ids(job_id: bytes, sites: CallSites | None) -> IdFactory:
    return IdFactory(job_id) if sites is None else RecordingIds(job_id, sites)


def user_line(frame: FrameType | None) -> str:
    """The innermost line that is not Retinue's, as `file:line`; "" on a thread that runs only Retinue."""
    while frame is not None:
        if not frame.f_globals.get("__name__", "").startswith(_OWN):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
