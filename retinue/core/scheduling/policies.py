"""Which node is to run something: a pure choice over a view of the cluster.

Used by the head (actors), by every node agent (leases that do not fit at home) and by the autoscaler's
simulation. Lives here: the strategies and the words for "no". Does not: keeping the view, carrying out.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct, field

from retinue.core.scheduling.resources import GPU, Units, describe, fits, subtract, to_units
from retinue.core.wire.messages import NodeInfo

# Below this share of use a node counts as empty: work packs at home before it spreads (as Ray).
PACK_UNTIL = 0.5
# The choice is random among this share of the best nodes, so that agents who share a view do not all
# run to the same one.
TOP_SHARE = 0.2

SPREAD = "SPREAD"
NODE_PREFIX = "node:"


class NodeView(Struct):
    """A node as the chooser sees it; `take` keeps it true until the next report."""

    node_id: bytes
    total: Units
    free: Units
    labels: dict[str, str] = field(default_factory=dict)
    is_alive: bool = True
    is_draining: bool = False

    @classmethod
    def of(cls, info: NodeInfo) -> NodeView:
        return cls(
            info.node_id,
            to_units(info.total),
            to_units(info.available),
            info.labels,
            info.alive,
            info.draining,
        )

    def take(self, request: Mapping[str, int]) -> None:
        subtract(self.free, request)

    def takes_work(self) -> bool:
        return self.is_alive and not self.is_draining

    def utilisation(self, request: Mapping[str, int]) -> float:
        """The highest share in use now, over the CPUs and what `request` asks for."""
        highest = 0.0
        for name, total in self.total.items():
            if total and (name in request or name == "CPU"):
                highest = max(highest, 1 - (self.free.get(name, 0) / total))
        return highest


class Fits(Struct, frozen=True):
    node_id: bytes


class Wait(Struct, frozen=True):
    """Possible, but busy now. `node_id` is where it will most likely fit first."""

    node_id: bytes


class Infeasible(Struct, frozen=True):
    """No node could take it even if idle. `is_final`: a node that joins could not change that either."""

    message: str
    is_final: bool = False


Choice = Fits | Wait | Infeasible


def choose_node(
    request: Mapping[str, int],
    nodes: Iterable[NodeView],
    *,
    local_node_id: bytes | None,
    strategy: str,
    rng: random.Random,
    exclude: Collection[bytes] = (),
    after: bytes = b"",
    may_be_busy: bool = False,
) -> Choice:
    """Choose a node for `request` (units; see `resources.to_units`).

    `strategy` is that of `messages.Shape`: "" packs at home until it is half used, then takes one of the
    least used with room; "SPREAD" takes the next one with room after the node `after`, by id; "node:<hex>"
    only that one, or with ":soft" any if that one is gone or too small. `exclude`d nodes are busy for
    whatever reason. `may_be_busy`: what is to be spread may wait where it is sent.
    """
    usable = [node for node in nodes if node.takes_work()]
    if strategy.startswith(NODE_PREFIX):
        choice = _affinity(request, usable, strategy, exclude)
        if choice is not None:
            return choice
    feasible = [node for node in usable if fits(request, node.total)]
    if not feasible:
        return Infeasible(_nowhere(request, usable))
    with_room = [node for node in feasible if node.node_id not in exclude and fits(request, node.free)]
    if not with_room and may_be_busy and strategy == SPREAD:
        with_room = feasible
    if not with_room:
        return Wait(_least_used(request, feasible).node_id)
    if strategy == SPREAD:
        return Fits(_next(request, with_room, after).node_id)
    return Fits(_best(request, with_room, local_node_id, rng).node_id)


def is_known_strategy(strategy: str) -> bool:
    if strategy in ("", SPREAD):
        return True
    return strategy.startswith(NODE_PREFIX) and parse_node(strategy) is not None


def parse_node(strategy: str) -> tuple[bytes, bool] | None:
    """(node_id, is_soft) of "node:<hex>[:soft]"; None if it is not that."""
    text, _, mode = strategy.removeprefix(NODE_PREFIX).partition(":")
    try:
        node_id = bytes.fromhex(text)
    except ValueError:
        return None
    return (node_id, mode == "soft") if node_id and mode in ("", "soft") else None


def _affinity(
    request: Mapping[str, int], usable: Sequence[NodeView], strategy: str, exclude: Collection[bytes]
) -> Choice | None:
    """The answer for "node:...", or None if any node will do after all."""
    parsed = parse_node(strategy)
    if parsed is None:
        return Infeasible(f"unknown scheduling strategy {strategy!r}", is_final=True)
    node_id, is_soft = parsed
    node = next((node for node in usable if node.node_id == node_id), None)
    if node is not None and fits(request, node.total):
        has_room = node_id not in exclude and fits(request, node.free)
        return Fits(node_id) if has_room else Wait(node_id)
    if is_soft:
        return None
    if node is None:
        return Infeasible(
            f"it must run on node {node_id.hex()}, which is not (or no longer) alive", is_final=True
        )
    return Infeasible(
        f"it needs {describe(request)} on node {node_id.hex()}, which has {describe(node.total)}",
        is_final=True,
    )


def _next(request: Mapping[str, int], with_room: Sequence[NodeView], after: bytes) -> NodeView:
    """The round goes by id, as every chooser knows the nodes in an order of its own."""
    return min(
        with_room, key=lambda node: (_has_spare_gpus(request, node), node.node_id <= after, node.node_id)
    )


def _has_spare_gpus(request: Mapping[str, int], node: NodeView) -> bool:
    """A node with GPUs is kept for those who need them, unless it is the only one."""
    return GPU in node.total and GPU not in request


def _best(
    request: Mapping[str, int],
    with_room: Sequence[NodeView],
    local_node_id: bytes | None,
    rng: random.Random,
) -> NodeView:
    def score(node: NodeView) -> tuple[bool, float, bool]:
        used = node.utilisation(request)
        if used < PACK_UNTIL:
            used = 0.0
        return (_has_spare_gpus(request, node), used, node.node_id != local_node_id)

    if len(with_room) == 1:
        return with_room[0]
    scored = sorted(((score(node), node) for node in with_room), key=lambda pair: pair[0])
    best_score, best = scored[0]
    if best.node_id == local_node_id:
        return best
    top = scored[: max(1, int(len(scored) * TOP_SHARE))]
    ties = [node for node_score, node in scored if node_score[:2] == best_score[:2]]
    return rng.choice(ties if len(ties) > len(top) else [node for _, node in top])


def _least_used(request: Mapping[str, int], nodes: Sequence[NodeView]) -> NodeView:
    return min(nodes, key=lambda node: (node.utilisation(request), node.node_id))


def _nowhere(request: Mapping[str, int], usable: Sequence[NodeView]) -> str:
    kinds: dict[str, int] = {}
    for node in usable:
        text = describe(
            {name: value for name, value in node.total.items() if not name.startswith(NODE_PREFIX)}
        )
        kinds[text] = kinds.get(text, 0) + 1
    listed = [f"{count} x {text}" for text, count in sorted(kinds.items(), key=lambda item: -item[1])[:5]]
    there = "; ".join(listed) if listed else "no node"
    return f"it needs {describe(request)}, and no node has that much: there is {there}"
