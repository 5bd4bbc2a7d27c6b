"""What a deployment's load was: readings of routers and replicas, and their aggregates over time.

The load is a step function: each router's number holds until its next reading. Lives here: keeping it and
averaging it, by the time that each number held. Does not: deciding by it (`replica_autoscaling`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from retinue.serve.autoscaling_options import AggregationFunction

MAX_STEPS = 4096


@dataclass(slots=True)
class StepSeries:
    """A number over time. Readings come in order; those from before the look-back period are dropped."""

    keep_s: float
    steps: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=MAX_STEPS))

    def add(self, now: float, value: float) -> None:
        if self.steps and self.steps[-1][1] == value:
            return
        if self.steps and self.steps[-1][0] == now:
            self.steps.pop()
        self.steps.append((now, value))
        self._forget(now)

    def _forget(self, now: float) -> None:
        # The last step before the period's beginning still holds at it.
        while len(self.steps) >= 2 and self.steps[1][0] <= now - self.keep_s:
            self.steps.popleft()

    @property
    def latest(self) -> float:
        return self.steps[-1][1] if self.steps else 0.0

    def aggregate(self, how: AggregationFunction, now: float, period_s: float) -> float:
        """Over the last `period_s`, as far as there are readings; 0 s: the latest."""
        if not self.steps:
            return 0.0
        begin = max(now - period_s, self.steps[0][0])
        if begin >= now:
            return self.latest
        total, largest, smallest = 0.0, float("-inf"), float("inf")
        ends = [at for at, _ in list(self.steps)[1:]] + [now]
        for (at, value), end in zip(self.steps, ends, strict=True):
            length = end - max(at, begin)
            if length > 0:
                total += value * length
                largest, smallest = max(largest, value), min(smallest, value)
        if how is AggregationFunction.MAX:
            return largest
        if how is AggregationFunction.MIN:
            return smallest
        return total / (now - begin)

    def is_steady(self, now: float, period_s: float) -> bool:
        """Whether time alone changes no aggregate any more."""
        return not self.steps or self.steps[-1][0] <= now - period_s or len(self.steps) == 1


@dataclass(slots=True)
class _Reading:
    queued: int
    ongoing: int
    at: float


class LoadHistory:
    """The requests of one deployment: queued in routers, and ongoing."""

    def __init__(self, keep_s: float, stale_s: float) -> None:
        self.stale_s = stale_s
        self._routers: dict[str, _Reading] = {}
        self.total = StepSeries(keep_s)
        self.queued = StepSeries(keep_s)
        self.custom: dict[str, dict[str, StepSeries]] = {}  # metric -> replica id -> series

    def keep(self, keep_s: float, stale_s: float) -> None:
        self.stale_s = stale_s
        self.total.keep_s = self.queued.keep_s = keep_s

    def router(self, router_id: str, queued: int, ongoing: int, now: float) -> None:
        if queued or ongoing:
            self._routers[router_id] = _Reading(queued, ongoing, now)
        else:
            self._routers.pop(router_id, None)
        self._sum(now)

    def replica(self, replica_id: str, custom: dict[str, float], now: float) -> None:
        for metric, value in custom.items():
            series = self.custom.setdefault(metric, {}).setdefault(replica_id, StepSeries(self.total.keep_s))
            series.add(now, value)

    def replica_gone(self, replica_id: str) -> None:
        for metric in list(self.custom):
            self.custom[metric].pop(replica_id, None)
            if not self.custom[metric]:
                del self.custom[metric]

    def forget_silent(self, now: float) -> None:
        """A router that has told nothing for long is gone, and its requests with it."""
        silent = [i for i, reading in self._routers.items() if reading.at <= now - self.stale_s]
        for router_id in silent:
            del self._routers[router_id]
        if silent:
            self._sum(now)

    def next_silence(self) -> float | None:
        """When the next router would be taken for gone."""
        return min((r.at + self.stale_s for r in self._routers.values()), default=None)

    def _sum(self, now: float) -> None:
        queued = sum(r.queued for r in self._routers.values())
        self.queued.add(now, queued)
        self.total.add(now, queued + sum(r.ongoing for r in self._routers.values()))
