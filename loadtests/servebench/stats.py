"""Arithmetic of figures: percentiles, tallies of answers, whether memory stayed flat. No I/O."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

OK = "ok"


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all are not above. ValueError without values."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass
class Tally:
    """What became of requests: when each was due, how long its answer took, how it ended.

    Outcomes are `ok`, a status ("503"), or what happened instead: `wrong` (2xx with another body),
    `refused`, `broken` (the connection ended first), `late` (not answered when the load ended).
    """

    due: list[float] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    outcome: list[str] = field(default_factory=list)

    def add(self, due: float, took_s: float, outcome: str) -> None:
        self.due.append(due)
        self.took_s.append(took_s)
        self.outcome.append(outcome)

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.outcome)

    @property
    def failed(self) -> int:
        return sum(outcome != OK for outcome in self.outcome)

    def times_of(self, outcome: str = OK) -> list[float]:
        return [t for t, o in zip(self.took_s, self.outcome, strict=True) if o == outcome]

    def rate(self, seconds: float, outcome: str = OK) -> float:
        return self.counts[outcome] / seconds

    def without_first(self, seconds: float) -> "Tally":
        """Only what was due later than `seconds` after the first: connections are made in the beginning."""
        since = min(self.due, default=0.0) + seconds
        kept = Tally()
        for due, took_s, outcome in zip(self.due, self.took_s, self.outcome, strict=True):
            if due >= since:
                kept.add(due, took_s, outcome)
        return kept

    def outage_s(self) -> float:
        """The longest time between two answers that were right, from the first due to the last."""
        ends = sorted(d + t for d, t, o in zip(self.due, self.took_s, self.outcome, strict=True) if o == OK)
        return max((b - a for a, b in itertools.pairwise(ends)), default=math.inf)

    def recovered_after_s(self, since: float, share: float, window_s: float = 0.25) -> float:
        """From `since` to the start of the first window in which, and in the one after it, at least `share`
        of what was due was answered right; infinite if there is none."""
        if not self.due:
            return math.inf
        last = max(self.due)
        start = since
        while start + 2 * window_s <= last:
            if all(self._is_good(start + i * window_s, window_s, share) for i in (0, 1)):
                return start - since
            start += window_s
        return math.inf

    def _is_good(self, start: float, window_s: float, share: float) -> bool:
        inside = [
            (t, o)
            for d, t, o in zip(self.due, self.took_s, self.outcome, strict=True)
            if start <= d < start + window_s
        ]
        return bool(inside) and sum(o == OK for _, o in inside) >= share * len(inside)


def growth(early: dict[int, int], late: dict[int, int]) -> float:
    """The largest relative growth among processes (pid -> bytes) that are in both."""
    return max((late[pid] / size - 1 for pid, size in early.items() if pid in late and size), default=0.0)


def is_event_stream_right(body: bytes, chunks: int) -> bool:
    """Whether a stream has each event once, in order, however its pieces were joined."""
    numbers = [int(n) for n in re.findall(rb"tok(\d+)", body)]
    return numbers == list(range(chunks))
