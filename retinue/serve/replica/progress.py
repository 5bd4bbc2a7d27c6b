"""Whether requests finish: what a health check asks beside the user's own. Pure: counts and a clock in.

A replica whose loop answers can be stuck all the same: requests that wait for each other, or for a device
that is gone. A loop that answers late is not: it computes. So this counts only time in which requests were
there and none finished, nor an item of a stream was sent.

Lives here: that judgement. Does not: what is done about it (`actor`, and the controller).
"""

from __future__ import annotations


class Progress:
    """Told of counts at each look. `stuck_for` is how long nothing has moved while requests ran."""

    def __init__(self) -> None:
        self._moved = 0
        self._since: float | None = None  # since when requests run without any having moved

    def look(self, *, moved: int, ongoing: int, now: float) -> None:
        """`moved` only grows: requests finished and items sent, together."""
        if not ongoing or moved != self._moved or self._since is None:
            self._since = now if ongoing else None
        self._moved = moved

    def stuck_for(self, now: float) -> float:
        return 0.0 if self._since is None else now - self._since
