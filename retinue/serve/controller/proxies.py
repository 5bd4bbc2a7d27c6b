"""Where proxies shall run, and what becomes of one that does not answer.

Lives here: which slots of which nodes have one, and when one is replaced. Does not: starting them
(`proxy_fleet`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from retinue.serve.proxy_options import ProxyLocation
from retinue.serve.status_schema import ProxyStatus

UNHEALTHY_AFTER = 3  # health checks in a row

# Worst first: what a node's status is where it has several proxies.
_RANK = (
    ProxyStatus.UNHEALTHY,
    ProxyStatus.STARTING,
    ProxyStatus.DRAINING,
    ProxyStatus.HEALTHY,
    ProxyStatus.DRAINED,
)


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """A proxy's place: the `index`-th on a node."""

    node_id: str
    index: int


@dataclass(frozen=True, slots=True)
class NodeView:
    node_id: str
    is_head: bool = False
    is_draining: bool = False
    has_replicas: bool = False


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """`drain`: proxies whose slot shall be empty; `forget`: those whose node is gone."""

    start: tuple[Slot, ...] = ()
    replace: tuple[Slot, ...] = ()
    drain: tuple[Slot, ...] = ()
    forget: tuple[Slot, ...] = ()


def wanted_slots(location: ProxyLocation, nodes: Iterable[NodeView], slots_per_node: int) -> set[Slot]:
    """One proxy for each slot of the nodes that `location` means; the head's node always is one of them."""
    if location is ProxyLocation.Disabled:
        return set()
    chosen = [
        n
        for n in nodes
        if not n.is_draining and (n.is_head or (n.has_replicas and location is ProxyLocation.EveryNode))
    ]
    return {Slot(n.node_id, index) for n in chosen for index in range(slots_per_node)}


def plan_fleet(
    wanted: Iterable[Slot], observed: Mapping[Slot, ProxyStatus], living_nodes: Iterable[str]
) -> FleetPlan:
    """What brings the proxies to `wanted`; empty when they are there, or on their way."""
    slots, living = set(wanted), set(living_nodes)
    gone = {slot for slot in observed if slot.node_id not in living}
    here = {slot: status for slot, status in observed.items() if slot not in gone}
    ending = (ProxyStatus.DRAINING, ProxyStatus.DRAINED)
    return FleetPlan(
        start=tuple(sorted(slots - here.keys())),
        replace=tuple(
            sorted(s for s, status in here.items() if s in slots and status is ProxyStatus.UNHEALTHY)
        ),
        drain=tuple(sorted(s for s, status in here.items() if s not in slots and status not in ending)),
        forget=tuple(sorted(gone)),
    )


def status_by_node(observed: Mapping[Slot, ProxyStatus]) -> dict[str, ProxyStatus]:
    worst: dict[str, ProxyStatus] = {}
    for slot, status in observed.items():
        known = worst.get(slot.node_id)
        if known is None or _RANK.index(status) < _RANK.index(known):
            worst[slot.node_id] = status
    return worst


@dataclass(slots=True)
class ProxyHealth:
    """One proxy's status from the answers to its health checks."""

    status: ProxyStatus = ProxyStatus.STARTING
    message: str = ""
    failures: int = field(default=0)

    def is_ready(self) -> None:
        self.status, self.message, self.failures = ProxyStatus.HEALTHY, "", 0

    def answered(self) -> None:
        self.failures = 0

    def missed(self, reason: str) -> None:
        """A check failed or was not answered in time."""
        self.failures += 1
        self.message = reason
        if self.failures >= UNHEALTHY_AFTER and self.status is ProxyStatus.HEALTHY:
            self.status = ProxyStatus.UNHEALTHY

    def died(self, reason: str) -> None:
        """Its process is gone; another one is on its way."""
        self.status, self.message, self.failures = ProxyStatus.STARTING, reason, 0

    def drains(self) -> None:
        self.status = ProxyStatus.DRAINING
