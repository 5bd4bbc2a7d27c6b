"""How long to wait before what keeps dying is started once more. Pure: time comes as an argument."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class RestartBackoff:
    """No wait after a life of at least `healthy_s`; quick deaths in a row wait 0, then ever longer.

    The first quick death is not held against it: whoever kills a process on purpose wants it back at once.
    """

    healthy_s: float
    first_s: float
    max_s: float
    quick_deaths: int = 0
    started_at: float | None = None

    def started(self, now: float) -> None:
        self.started_at = now

    def ended(self, now: float) -> float:
        """The process has died; returns the seconds to wait before the next start."""
        lived = now - self.started_at if self.started_at is not None else 0.0
        self.started_at = None
        if lived >= self.healthy_s:
            self.quick_deaths = 0
            return 0.0
        self.quick_deaths += 1
        if self.quick_deaths == 1:
            return 0.0
        return min(self.max_s, self.first_s * 2.0 ** min(self.quick_deaths - 2, 32))
