"""How many replicas a deployment shall have, by its load. Fields and defaults are Ray Serve's.

A policy says how many it wants; that is damped by the factors, kept within the bounds, and followed once it
has been wanted for the delay. Lives here: the decision, and saying why. Does not: the readings
(`load_history`), the replicas (`deployments`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retinue.serve.autoscaling_options import AutoscalingConfig, AutoscalingContext
from retinue.serve.controller.load_history import LoadHistory
from retinue.serve.routing.names import DeploymentID

DECISIONS_KEPT = 20
ERRORS_KEPT = 5
# Between two looks at an average that only time changes.
LOOK_AGAIN_S = 1.0
SILENT_INTERVALS = 3  # a router tells each interval while it has requests
MIN_SILENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Scaling:
    """A decision, for people. `at`: monotonic; `time_s`: Unix time."""

    at: float
    time_s: float
    before: int
    after: int
    reason: str
    policy: str


@dataclass(slots=True)
class _Pending:
    """More, or fewer, are wanted since `since`."""

    is_up: bool
    since: float


class Autoscaler:
    """Of one deployment. Readings go in; `decide` gives the number of replicas."""

    def __init__(
        self,
        app_name: str,
        name: str,
        config: AutoscalingConfig,
        *,
        capacity: float | None = None,
        first: int | None = None,
    ) -> None:
        self.app_name = app_name
        self.name = name
        self.config = config
        self.capacity = capacity
        self.load = LoadHistory(config.look_back_period_s, _silence_of(config))
        self.decisions: deque[Scaling] = deque(maxlen=DECISIONS_KEPT)
        self.errors: deque[str] = deque(maxlen=ERRORS_KEPT)
        self.last_reason = ""
        self.last_up: float | None = None
        self.last_down: float | None = None
        self.policy_state: dict[str, Any] = {}
        self.application_policy = ""  # the application's policy, if it has one, goes before our own
        self._answer: tuple[float, str] | None = None  # of the user's policy, and why
        self._pending: _Pending | None = None
        self._wanted: int | None = None
        initial = config.initial_replicas if config.initial_replicas is not None else config.min_replicas
        self.target = self._bounded(_at_capacity(initial, capacity) if first is None else first)

    # facts

    def use(self, config: AutoscalingConfig, *, capacity: float | None, now: float) -> None:
        """Other options hold from now on; what has been read stays."""
        if config != self.config:
            self._pending = None
            self._answer = None
        self.config, self.capacity = config, capacity
        self.load.keep(config.look_back_period_s, _silence_of(config))
        self._set(self._bounded(self.target), "the bounds have changed", now)

    def router_told(self, router_id: str, queued: int, ongoing: int, now: float) -> None:
        self.load.router(router_id, queued, ongoing, now)

    def replica_told(self, replica_id: str, custom: dict[str, float], now: float) -> None:
        self.load.replica(replica_id, custom, now)

    def replica_gone(self, replica_id: str) -> None:
        self.load.replica_gone(replica_id)

    # bounds

    @property
    def min_replicas(self) -> int:
        return _at_capacity(self.config.min_replicas, self.capacity)

    @property
    def max_replicas(self) -> int:
        return _at_capacity(self.config.max_replicas, self.capacity)

    def _bounded(self, count: int) -> int:
        return max(self.min_replicas, min(self.max_replicas, count))

    # the decision

    def decide(self, running: Sequence[str], now: float) -> int:
        """The number of replicas that there shall be. `running`: the ids of those that take requests."""
        self.load.forget_silent(now)
        context = self.context(running, now)
        wanted, why = self._first(context)
        if not why and self.has_users_policy:
            wanted, why = self._by_users_policy(context)
        elif not why and self.target and running:
            wanted, why = self._by_load(context)
        self._wanted = wanted
        return self._after_delay(wanted, why, now)

    def context(self, running: Sequence[str], now: float) -> AutoscalingContext:
        """What a policy decides on."""
        how, look_back = self.config.aggregation_function, self.config.look_back_period_s
        # A rise that need not last (upscale_delay_s) need not last to be seen either: where it outweighs the
        # average over the whole period, the last `upscale_delay_s` count.
        recent = min(look_back, self.config.upscale_delay_s)
        load = self.load
        total = max(load.total.aggregate(how, now, look_back), load.total.aggregate(how, now, recent))
        queued = max(load.queued.aggregate(how, now, look_back), load.queued.aggregate(how, now, recent))
        custom = {metric: dict(by_replica) for metric, by_replica in load.custom.items()}
        return AutoscalingContext(
            deployment_id=DeploymentID(self.name, self.app_name),
            deployment_name=self.name,
            app_name=self.app_name,
            current_num_replicas=len(running),
            target_num_replicas=self.target,
            running_replicas=list(running),
            total_num_requests=total,
            total_queued_requests=queued,
            aggregated_metrics=lambda: {
                metric: {i: s.aggregate(how, now, look_back) for i, s in by_replica.items()}
                for metric, by_replica in custom.items()
            },
            raw_metrics=lambda: {
                metric: {i: list(s.steps) for i, s in by_replica.items()}
                for metric, by_replica in custom.items()
            },
            capacity_adjusted_min_replicas=self.min_replicas,
            capacity_adjusted_max_replicas=self.max_replicas,
            policy_state=self.policy_state,
            last_scale_up_time=self.last_up,
            last_scale_down_time=self.last_down,
            current_time=now,
            config=self.config,
        )

    def _first(self, context: AutoscalingContext) -> tuple[int, str]:
        """None runs: a request that waits is reason enough for the first; nobody can say more yet."""
        latest = self.load.total.latest
        if self.target == 0 and latest > 0 and self.max_replicas > 0:
            first = max(1, math.ceil(self.config.get_upscaling_factor()))
            return self._bounded(first), f"{latest:g} requests wait and no replica runs"
        return self.target, ""

    def _by_load(self, context: AutoscalingContext) -> tuple[int, str]:
        requests, per_replica = context.total_num_requests, self.config.get_target_ongoing_requests()
        why = f"{requests:.3g} requests, {per_replica:g} wanted per replica"
        return self._bounded(self._damped(requests / per_replica, context.current_num_replicas)), why

    # the user's policy

    @property
    def has_users_policy(self) -> bool:
        return bool(self.application_policy) or not self.config.policy.is_default_policy_function()

    def answered(self, wanted: float, state: Mapping[str, Any] | None) -> None:
        """The user's policy wants so many. Raises ValueError or TypeError for what is no number."""
        if not math.isfinite(wanted):
            raise ValueError(f"the policy {self.policy_name} wants {wanted} replicas")
        self._answer = float(wanted), f"{self.policy_name} wants {wanted:g}"
        self.policy_state = dict(state or {})
        self.errors.clear()

    def policy_failed(self, text: str) -> None:
        """It raised, or does not return: what it said last goes on."""
        if text not in self.errors:
            self.errors.append(text)

    def _by_users_policy(self, context: AutoscalingContext) -> tuple[int, str]:
        if self._answer is None:
            return self.target, ""
        wanted, why = self._answer
        return self._bounded(self._damped(wanted, context.current_num_replicas)), why

    @property
    def policy_name(self) -> str:
        return self.application_policy or self.config.policy.policy_function

    def _damped(self, wanted: float, current: int) -> int:
        if current == 0:
            return math.ceil(wanted)
        difference = wanted - current
        up = difference > 0
        factor = self.config.get_upscaling_factor() if up else self.config.get_downscaling_factor()
        damped = math.ceil(round(current + factor * difference, 9))
        if math.ceil(wanted) < current and damped == current:
            damped -= 1  # a small factor must not stand in the way for ever
        return max(0, damped)

    def _after_delay(self, wanted: int, why: str, now: float) -> int:
        if wanted == self.target:
            self._pending = None
            return self.target
        is_up = wanted > self.target
        if self._pending is None or self._pending.is_up != is_up:
            self._pending = _Pending(is_up, now)
        goes_last = not is_up and self.target > 1 and wanted == 0
        if now >= self._pending.since + self._delay_s(is_up) - 1e-9 or (is_up and self.target == 0):
            # The last replica goes by itself, after a delay of its own.
            self._pending = _Pending(False, now) if goes_last else None
            self._set(1 if goes_last else wanted, why, now)
        return self.target

    def _delay_s(self, is_up: bool) -> float:
        config = self.config
        if is_up:
            return config.upscale_delay_s
        if self.target == 1 and config.downscale_to_zero_delay_s is not None:
            return config.downscale_to_zero_delay_s
        return config.downscale_delay_s

    def _set(self, count: int, why: str, now: float) -> None:
        if count == self.target:
            return
        before, self.target = self.target, count
        if count > before:
            self.last_up = now
        else:
            self.last_down = now
        bounds = f"{self.min_replicas} to {self.max_replicas} allowed"
        self.last_reason = f"{before} -> {count} replicas: {why} ({bounds})"
        self.decisions.append(Scaling(now, time.time(), before, count, self.last_reason, self.policy_name))

    def next_decision_at(self, now: float) -> float | None:
        """When to decide again though nothing is told until then; None: only when something is."""
        times = []
        if self._pending is not None:
            times.append(max(now + 0.001, self._pending.since + self._delay_s(self._pending.is_up)))
        if not self.load.total.is_steady(now, self.config.look_back_period_s):
            times.append(now + LOOK_AGAIN_S)
        if self.has_users_policy:
            times.append(now + LOOK_AGAIN_S)
        silence = self.load.next_silence()
        if silence is not None:
            times.append(max(now + 0.001, silence))
        return min(times, default=None)

    def explain(self, now: float) -> str:
        """What it sees and waits for, in words."""
        latest, queued = self.load.total.latest, self.load.queued.latest
        text = f"{latest:g} requests now ({queued:g} queued)"
        if self._pending is None or self._wanted is None:
            return f"{text}; {self.target} replicas are right"
        delay_s = self._delay_s(self._pending.is_up)
        left = max(0.0, self._pending.since + delay_s - now)
        return f"{text}; {self._wanted} replicas wanted instead of {self.target}, followed in {left:.3g} s"

    @property
    def wanted(self) -> int:
        """What the policy wanted last, within the bounds and before delays."""
        return self.target if self._wanted is None else self._wanted

    @property
    def direction(self) -> int:
        """1: more are wanted, -1: fewer, 0: neither."""
        return 0 if self._pending is None else 1 if self._pending.is_up else -1


def _silence_of(config: AutoscalingConfig) -> float:
    return max(MIN_SILENCE_S, SILENT_INTERVALS * config.metrics_interval_s)


def _at_capacity(count: int, capacity: float | None) -> int:
    if capacity is None or count == 0:
        return count
    return 0 if capacity == 0 else max(1, int(count * capacity / 100 + 0.5))
