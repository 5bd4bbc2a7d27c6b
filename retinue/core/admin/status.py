"""The whole cluster at a glance: nodes, what is used, what waits.

Lives here: adding up (pure), and asking for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from retinue.core.admin.ask import Asker
from retinue.core.admin.rows import LOOPBACK
from retinue.core.admin.schemas import memory
from retinue.core.wire.messages import NodeInfo, Query

Amounts = Mapping[str, float]


@dataclass(slots=True)
class ClusterStatus:
    """`resources`: name to (used, total) of the living nodes. `demand`: shapes that wait, and how many."""

    cluster_id: str
    actors: int
    jobs: int
    nodes: list[dict[str, Any]] = field(default_factory=list)
    resources: dict[str, tuple[float, float]] = field(default_factory=dict)
    demand: list[tuple[dict[str, float], int]] = field(default_factory=list)
    stores: list[dict[str, Any]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """For tools."""
        return {
            "cluster_id": self.cluster_id,
            "actors": self.actors,
            "jobs": self.jobs,
            "nodes": self.nodes,
            "resources": {name: {"used": u, "total": t} for name, (u, t) in self.resources.items()},
            "demand": [{"resources": shape, "count": count} for shape, count in self.demand],
        }

    def resources_for_people(self) -> dict[str, tuple[str, str]]:
        """Without each node's own resource, and memory with its units."""
        return {
            name: (_amount(name, used), _amount(name, total))
            for name, (used, total) in self.resources.items()
            if not name.startswith("node:")
        }


def _amount(name: str, amount: float) -> str:
    return memory(amount) if "memory" in name else f"{amount:g}"


def used_resources(nodes: Sequence[NodeInfo]) -> dict[str, tuple[float, float]]:
    """(used, total) by resource, over the living nodes."""
    totals: dict[str, float] = defaultdict(float)
    free: dict[str, float] = defaultdict(float)
    for node in nodes:
        if node.alive:
            for name, amount in node.total.items():
                totals[name] += amount
                free[name] += node.available.get(name, 0.0)
    return {name: (round(total - free[name], 4), round(total, 4)) for name, total in sorted(totals.items())}


def add_demand(documents: Sequence[Mapping[str, Any]]) -> list[tuple[dict[str, float], int]]:
    """Shapes that wait anywhere, those that most wait for first."""
    counts: dict[tuple[tuple[str, float], ...], int] = defaultdict(int)
    for document in documents:
        for shape, count in document["shapes"]:
            counts[tuple(sorted(shape.items()))] += count
    return sorted(((dict(shape), count) for shape, count in counts.items()), key=lambda pair: -pair[1])


def node_line(node: NodeInfo, facts: Mapping[str, Any] | None) -> dict[str, Any]:
    """One node; `facts`: what its agent says of it, None if it does not answer."""
    total, free = node.total.get("CPU", 0.0), node.available.get("CPU", 0.0)
    line: dict[str, Any] = {
        "node": node.node_id.hex()[:12] + (" (head)" if node.is_head else ""),
        "node_id": node.node_id.hex(),
        "address": node.address.host or LOOPBACK,
        "state": _state(node),
        "CPU used": f"{total - free:g} of {total:g}" if node.alive else "",
        "memory": memory(node.total.get("memory", 0.0)),
        "waiting": node.waiting,
    }
    if facts is not None:
        store = facts["store"]
        line |= {
            "store used": f"{memory(store['used_bytes'])} of {memory(store['budget_bytes'])}",
            "spilled": memory(store["on_disk_bytes"]),
            "workers": facts["workers"],
        }
    return line


def _state(node: NodeInfo) -> str:
    if not node.alive:
        return f"DEAD ({node.death_reason})" if node.death_reason else "DEAD"
    return "DRAINING" if node.draining else "ALIVE"


def read_status(asker: Asker) -> ClusterStatus:
    """Ask the head and all agents."""
    summary = asker.ask_head(Query(0, "summary"))
    nodes = asker.nodes()
    facts = {answer.node_id: answer.document for answer in asker.ask_nodes("node").answers}
    shown = sorted(nodes, key=lambda node: (not node.alive, not node.is_head))
    return ClusterStatus(
        cluster_id=summary["cluster_id"],
        actors=summary["actors"],
        jobs=summary["jobs"],
        nodes=[node_line(node, facts.get(node.node_id.hex())) for node in shown],
        resources=used_resources(nodes),
        demand=add_demand(asker.ask_head(Query(0, "demand"))),
        stores=[{"node_id": node_id, **document["store"]} for node_id, document in facts.items()],
    )
