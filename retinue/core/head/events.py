"""What has happened to the cluster, for people: the latest events, in memory. Pure.

A new head begins with an empty record; the old one's log file has the rest.
"""

from __future__ import annotations

from collections import deque
from typing import Any

MAX_EVENTS = 1_000

INFO, WARNING, ERROR = "INFO", "WARNING", "ERROR"


class EventLog:
    """`add` what happened, `document` to tell it."""

    def __init__(self, limit: int = MAX_EVENTS) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=limit)
        self._count = 0

    def add(self, severity: str, source: str, message: str, *, wall_time: float, **fields: str) -> None:
        """`source`: NODE, ACTOR or JOB. `fields`: ids and causes, for tools."""
        self._count += 1
        event = {"severity": severity, "source": source, "message": message, "at": wall_time}
        self._events.append({**event, "number": self._count, "fields": fields})

    def document(self) -> list[dict[str, Any]]:
        """The oldest first."""
        return list(self._events)
