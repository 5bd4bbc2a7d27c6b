"""The nodes as the head knows them: who is there, what is free, who is gone.

Lives here: registration, reports, graces, draining, the view that is pushed to agents, and the room that
actors on their way to a node will take there. Does not: connections, or choosing a node
(`scheduling.policies`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from retinue.core.scheduling.policies import NodeView
from retinue.core.scheduling.resources import Units, subtract, to_units
from retinue.core.wire.messages import NodeInfo

MAX_DEAD_NODES = 1_000


@dataclass(frozen=True, slots=True)
class NodeDied:
    """Told once; what ran there is gone."""

    node_id: bytes
    reason: str


@dataclass(slots=True)
class _Taken:
    """Room for an actor that is on its way; `start` counts the StartActors sent to the node."""

    units: Units
    start: int
    is_settled: bool = False  # the agent has answered: its next report counts the actor


@dataclass(slots=True)
class _Node:
    info: NodeInfo
    view: NodeView
    is_connected: bool = True
    starts: int = 0
    taken: dict[bytes, _Taken] = field(default_factory=dict)  # by actor id
    demand: list[tuple[dict[str, float], int]] = field(default_factory=list)
    recallable: Units = field(default_factory=dict)


class NodeTable:
    """`grace_s`: how long an agent may be without a connection before its node is dead."""

    def __init__(self, *, grace_s: float) -> None:
        self._grace_s = grace_s
        self._nodes: dict[bytes, _Node] = {}
        self._dead: dict[bytes, NodeInfo] = {}
        self._away_until: dict[bytes, float] = {}
        self._awaited: dict[bytes, None] = {}  # known to an earlier head, not seen by this one
        self._awaited_until = 0.0
        self._changed: dict[bytes, None] = {}

    # recovery

    def await_nodes(self, node_ids: Iterable[bytes], *, until: float) -> None:
        """An earlier head knew these. Until all are here, or the time is up, this one only listens."""
        self._awaited = dict.fromkeys(node_ids)
        self._awaited_until = until

    def is_recovering(self, *, now: float) -> bool:
        return bool(self._awaited) and now < self._awaited_until

    def give_up_awaited(self) -> list[bytes]:
        """The time is up: these are dead."""
        awaited, self._awaited = list(self._awaited), {}
        return awaited

    # facts

    def registered(self, info: NodeInfo) -> None:
        """An agent is here, for the first time, after a lost connection, or after it was thought dead."""
        info = msgspec.structs.replace(info, alive=True, death_reason="", end_time=0.0)
        known = self._nodes.get(info.node_id)
        if known is not None and known.info.draining:
            info = msgspec.structs.replace(info, draining=True)
        self._nodes[info.node_id] = _Node(info, NodeView.of(info))
        self._dead.pop(info.node_id, None)
        self._away_until.pop(info.node_id, None)
        self._awaited.pop(info.node_id, None)
        self._note_change(info.node_id)

    def reported(
        self,
        node_id: bytes,
        available: Mapping[str, float],
        *,
        waiting: int,
        demand: list[tuple[dict[str, float], int]],
        starts: int = 0,
        recallable: Mapping[str, float] | None = None,
    ) -> bool:
        """Returns whether anything is new. `starts`: how many StartActors the report has counted in.

        `recallable`: what tasks' leases hold, which they would give up for an actor.
        """
        node = self._nodes.get(node_id)
        if node is None:
            return False
        for actor_id in [a for a, taken in node.taken.items() if taken.is_settled or taken.start <= starts]:
            del node.taken[actor_id]
        before = dict(node.view.free)
        node.view.free = to_units(available)
        for taken in node.taken.values():
            subtract(node.view.free, taken.units)
        node.demand = demand
        node.recallable = to_units(recallable or {})
        if available == node.info.available and waiting == node.info.waiting:
            return before != node.view.free
        node.info = msgspec.structs.replace(node.info, available=dict(available), waiting=waiting)
        self._changed[node_id] = None
        return True

    def connection_lost(self, node_id: bytes, *, now: float) -> None:
        node = self._nodes.get(node_id)
        if node is not None:
            node.is_connected = False
            self._away_until[node_id] = now + self._grace_s

    def died(self, node_id: bytes, reason: str, *, wall_time: float) -> list[NodeDied]:
        """The node is gone for certain (its agent's process is dead, or it has said goodbye)."""
        self._away_until.pop(node_id, None)
        node = self._nodes.pop(node_id, None)
        if node is None:
            return []
        self._dead[node_id] = msgspec.structs.replace(
            node.info, alive=False, available={}, waiting=0, death_reason=reason, end_time=wall_time
        )
        while len(self._dead) > MAX_DEAD_NODES:
            del self._dead[next(iter(self._dead))]
        self._note_change(node_id)
        return [NodeDied(node_id, reason)]

    def drain(self, node_id: bytes) -> bool:
        """No more work goes there. False if there is no such node."""
        node = self._nodes.get(node_id)
        if node is None:
            return False
        node.info = msgspec.structs.replace(node.info, draining=True)
        node.view.is_draining = True
        self._note_change(node_id)
        return True

    def tick(self, *, now: float, wall_time: float) -> list[NodeDied]:
        late = [node_id for node_id, until in self._away_until.items() if until <= now]
        reason = f"its agent's connection was lost and not back within {self._grace_s:g} s"
        return [decision for node_id in late for decision in self.died(node_id, reason, wall_time=wall_time)]

    def next_deadline(self) -> float | None:
        times = list(self._away_until.values())
        if self._awaited:
            times.append(self._awaited_until)
        return min(times, default=None)

    # room for actors on their way

    def take(self, node_id: bytes, actor_id: bytes, units: Units) -> None:
        """A StartActor goes there; its room counts as used until a report counts it in."""
        node = self._nodes[node_id]
        node.starts += 1
        node.taken[actor_id] = _Taken(dict(units), node.starts)
        node.view.take(units)

    def settle(self, node_id: bytes, actor_id: bytes, *, is_placed: bool) -> None:
        """The agent has answered: the actor is there, or it is not (REJECTED, FAILED, DIED)."""
        node = self._nodes.get(node_id)
        if node is None or actor_id not in node.taken:
            return
        if is_placed:
            node.taken[actor_id].is_settled = True
            return
        for name, value in node.taken.pop(actor_id).units.items():
            node.view.free[name] = node.view.free.get(name, 0) + value

    # views

    def views(self) -> list[NodeView]:
        """For `choose_node`: connected nodes only, since the others cannot be told anything now."""
        return [node.view for node in self._nodes.values() if node.is_connected]

    def views_after_recall(self) -> list[NodeView]:
        """As `views`, with the room that there would be without the tasks that give way to an actor."""
        views = []
        for node in self._nodes.values():
            if node.is_connected:
                free = dict(node.view.free)
                for name, value in node.recallable.items():
                    free[name] = free.get(name, 0) + value
                views.append(msgspec.structs.replace(node.view, free=free))
        return views

    def is_alive(self, node_id: bytes) -> bool:
        return node_id in self._nodes

    def get(self, node_id: bytes) -> NodeInfo | None:
        node = self._nodes.get(node_id)
        return node.info if node is not None else self._dead.get(node_id)

    def infos(self) -> list[NodeInfo]:
        """All nodes, the dead ones last."""
        return [node.info for node in self._nodes.values()] + list(self._dead.values())

    def demand(self) -> list[tuple[bytes, list[tuple[dict[str, float], int]]]]:
        return [(node_id, node.demand) for node_id, node in self._nodes.items() if node.demand]

    def take_changes(self) -> list[NodeInfo]:
        """The nodes that have changed since the last call, for the pushed view."""
        changed, self._changed = self._changed, {}
        return [info for node_id in changed if (info := self.get(node_id)) is not None]

    def has_changes(self) -> bool:
        return bool(self._changed)

    def _note_change(self, node_id: bytes) -> None:
        self._changed[node_id] = None

    def check_invariants(self) -> None:
        assert not (self._nodes.keys() & self._dead.keys())
        assert self._away_until.keys() <= self._nodes.keys()
        assert all(info.alive is False for info in self._dead.values())
        for node in self._nodes.values():
            assert node.info.alive
            assert node.is_connected == (node.info.node_id not in self._away_until)
