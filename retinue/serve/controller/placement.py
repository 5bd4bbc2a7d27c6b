"""Why a replica fits on no node, in words; and whether stopping another would make room.

Lives here: the arithmetic and the sentence. Does not: asking the cluster (`cluster_view`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HOLDERS_NAMED = 5
TOLERANCE = 1e-6  # resources are counted in ten-thousandths
GIB = 1 << 30

Resources = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds resources: an actor (by name, else by class) or tasks of a name."""

    name: str
    resources: Resources


@dataclass(frozen=True, slots=True)
class ClusterResources:
    """`nodes`: what each living node has in all. `available`: what is free of it, all nodes together."""

    nodes: Mapping[str, Resources]
    available: Resources
    holders: Sequence[Holder] = ()


def fits_a_node(wanted: Resources, cluster: ClusterResources) -> bool:
    """Whether some node would have room if nothing ran on it."""
    return any(_covers(total, wanted) for total in cluster.nodes.values())


def makes_room(wanted: Resources, freed: Resources, cluster: ClusterResources) -> bool:
    """Whether what is free would do, with what a replica holds that stops."""
    after = {
        name: cluster.available.get(name, 0.0) + freed.get(name, 0.0) for name in {*cluster.available, *freed}
    }
    return fits_a_node(wanted, cluster) and _covers(after, wanted)


def emptiest(
    nodes: Sequence[str], taken: Mapping[str, int], wanted: Resources, totals: Mapping[str, Resources]
) -> str:
    """The node with the fewest replicas, of those that are large enough as far as is known; "": no node."""
    large = [node_id for node_id in nodes if node_id not in totals or _covers(totals[node_id], wanted)]
    return min(large or nodes, key=lambda node_id: (taken.get(node_id, 0), node_id), default="")


def _covers(there: Resources, wanted: Resources) -> bool:
    return all(there.get(name, 0.0) >= amount - TOLERANCE for name, amount in wanted.items())


def explain(wanted: Resources, count: int, cluster: ClusterResources) -> str:
    """What is missing for `count` replicas, what there is, and who holds it."""
    many = "1 replica waits" if count == 1 else f"{count} replicas wait"
    text = f"{many} for a node with room: {'it needs' if count == 1 else 'each needs'} {_shown(wanted)}"
    if not cluster.nodes:
        return f"{text}; the cluster has no node"
    if not fits_a_node(wanted, cluster):
        largest = ", ".join(_shown(_of_interest(total, wanted)) for total in cluster.nodes.values())
        return f"{text}, and no node has that much at all; the nodes have {largest}"
    total = {
        name: sum(node.get(name, 0.0) for node in cluster.nodes.values()) for name in wanted if wanted[name]
    }
    free = {name: cluster.available.get(name, 0.0) for name in total}
    text = f"{text}; free: {_shown(free)} of {_shown(total)}"
    short = {name for name in total if free[name] < wanted[name] - TOLERANCE} or set(total)
    holders = _holders(cluster.holders, short)
    return f"{text}; held by {holders}" if holders else text


def _of_interest(resources: Resources, wanted: Resources) -> dict[str, float]:
    return {name: resources.get(name, 0.0) for name in wanted}


def _holders(holders: Sequence[Holder], short: set[str]) -> str:
    held: dict[str, dict[str, float]] = {}
    counts: dict[str, int] = {}
    for holder in holders:
        amounts = {name: amount for name, amount in holder.resources.items() if name in short and amount}
        if not amounts:
            continue
        counts[holder.name] = counts.get(holder.name, 0) + 1
        sums = held.setdefault(holder.name, {})
        for name, amount in amounts.items():
            sums[name] = sums.get(name, 0.0) + amount
    ranked = sorted(held, key=lambda name: (-max(held[name].values()), name))
    named = [
        f"{name}{f' x {counts[name]}' if counts[name] > 1 else ''} ({_shown(held[name])})"
        for name in ranked[:HOLDERS_NAMED]
    ]
    more = f" and {len(ranked) - HOLDERS_NAMED} more" if len(ranked) > HOLDERS_NAMED else ""
    return ", ".join(named) + more


def _shown(resources: Resources) -> str:
    parts = []
    for name, amount in resources.items():
        if name in ("memory", "object_store_memory"):
            parts.append(f"{amount / GIB:.4g} GiB {name.replace('_', ' ')}")
        else:
            parts.append(f"{amount:.4g} {name}")
    return ", ".join(parts) or "nothing"
