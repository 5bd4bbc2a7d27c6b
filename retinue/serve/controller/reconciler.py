"""What brings a deployment's replicas to its target: start, stop, reconfigure.

Levels, not events: it reads what shall be and what is, and names the difference. A rolling update is such a
difference: replicas of another version, and those on a node that drains, are replaced one step at a time.
Carrying a plan out and planning again gives an empty plan. Lives here: that function. Does not: failures and
which version is the target (`rollout`), how many there shall be (`replica_autoscaling`), doing it
(`replicas`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from retinue.serve.controller.replica_life import (
    ENDING,
    PENDING_MIGRATION,
    RECOVERING,
    RUNNING,
    SERVING,
    STARTING,
    STOPPING,
)
from retinue.serve.status_schema import ReplicaState


@dataclass(frozen=True, slots=True)
class Target:
    """`config_id` stands for what is applied to running replicas in place.

    `max_surge`: replicas above `num_replicas` during an update; 0: old ones stop first, `max_unavailable` at
    a time. `may_start`: False while starting waits after failures. `may_trade`: stopping an old replica would
    make room for a new one that fits nowhere. `max_alive`: no more than so many at any time.
    """

    version: str
    num_replicas: int
    config_id: str = ""
    max_surge: int = 1
    max_unavailable: int = 1
    may_start: bool = True
    may_trade: bool = True
    max_alive: int | None = None


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """`is_unplaced`: no node has room for it. `age`: orders replicas, the oldest lowest."""

    replica_id: str
    version: str
    state: ReplicaState
    config_id: str = ""
    is_unplaced: bool = False
    ongoing: int = 0
    age: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    start: int = 0
    stop: tuple[str, ...] = ()
    reconfigure: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.start or self.stop or self.reconfigure)


def surge_of(num_replicas: int, max_surge_percent: int) -> int:
    """Replicas above the target during an update: the percentage rounded up; 0 only for 0 %."""
    return (max_surge_percent * max(1, num_replicas) + 99) // 100


def unavailable_of(num_replicas: int, rolling_update_percentage: float) -> int:
    """How many may be away at a time where old replicas stop first: at least one."""
    return max(1, int(rolling_update_percentage * num_replicas))


def plan(target: Target, observed: Sequence[ReplicaStatus]) -> Plan:
    """Say what brings the observed replicas to the target; empty when they are there, or on their way."""
    alive = [r for r in observed if r.state not in ENDING]
    if target.num_replicas == 0:
        return Plan(stop=tuple(r.replica_id for r in alive))
    new = [r for r in alive if _is_wanted(r, target)]
    old = [r for r in alive if not _is_wanted(r, target)]
    surplus = _first_to_go(new)[: max(0, len(new) - target.num_replicas)]
    kept = [r for r in new if r not in surplus]
    outdated = _outdated_to_stop(target, kept, old, releasing=sum(r.state is STOPPING for r in observed))
    start = _to_start(target, kept, [r for r in old if r not in outdated])
    return Plan(
        start=start,
        stop=tuple(r.replica_id for r in (*surplus, *outdated)),
        reconfigure=tuple(
            r.replica_id for r in kept if r.state is RUNNING and r.config_id != target.config_id
        ),
    )


def _is_wanted(replica: ReplicaStatus, target: Target) -> bool:
    return replica.version == target.version and replica.state is not PENDING_MIGRATION


def _first_to_go(replicas: Iterable[ReplicaStatus]) -> list[ReplicaStatus]:
    """Those that nobody would miss first: unplaced, starting, then the least busy, of these the youngest."""
    rank = {STARTING: 1, RECOVERING: 2}
    return sorted(
        replicas,
        key=lambda r: (0 if r.is_unplaced else rank.get(r.state, 3), r.ongoing, -r.age),
    )


def _outdated_to_stop(
    target: Target, new: Sequence[ReplicaStatus], old: Sequence[ReplicaStatus], *, releasing: int
) -> list[ReplicaStatus]:
    # One that is RECOVERING may be serving: it is judged once it has answered.
    useless = [r for r in old if r.state is STARTING]
    serving_old = _first_to_go(r for r in old if r.state in SERVING)
    serving = sum(r.state in SERVING for r in new) + len(serving_old)
    floor = target.num_replicas - (0 if target.max_surge else target.max_unavailable)
    count = max(0, serving - max(0, floor))
    if target.may_start and target.may_trade:
        # The new one fits nowhere: its step stops an old one first, and requests wait in the routers. What is
        # stopping already makes room for as many.
        unplaced = sum(r.is_unplaced for r in new) - releasing
        lowest = max(0, target.num_replicas - max(1, target.max_surge, target.max_unavailable))
        count = max(count, min(unplaced, serving - lowest))
    return [*useless, *serving_old[: max(0, count)]]


def _to_start(target: Target, new: Sequence[ReplicaStatus], old: Sequence[ReplicaStatus]) -> int:
    if not target.may_start or (old and any(r.is_unplaced for r in new)):
        return 0
    missing = target.num_replicas - len(new)
    alive = len(new) + len(old)
    room = target.num_replicas + target.max_surge - alive if old else missing
    if target.max_alive is not None:
        room = min(room, target.max_alive - alive)
    return max(0, min(missing, room))
