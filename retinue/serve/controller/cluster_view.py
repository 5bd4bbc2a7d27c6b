"""What the controller knows of the cluster: its nodes, and, when asked for, who has which resources.

Lives here: asking, at most once at a time, off the loop. Does not: what follows from the answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import retinue
from retinue.core import doors
from retinue.exceptions import RetinueError
from retinue.serve.controller.placement import ClusterResources, Holder
from retinue.serve.messages import NAMESPACE
from retinue.util import state as state_api

logger = logging.getLogger(__name__)

ASK_LIMIT = 10_000


A_TOUCH = 0.001


def pinned_to(node_id: str) -> dict[str, float]:
    """Resources that place an actor on this very node: a touch of what no other node has."""
    return {f"node:{node_id}": A_TOUCH}


@dataclass(frozen=True, slots=True)
class NodeInfo:
    node_id: str
    ip: str
    is_head: bool


class ClusterView:
    """`on_change` is called when nodes come, drain or go, and after each look at the resources."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.nodes: dict[str, NodeInfo] = {}
        self.draining: set[str] = set()
        self.unplaced: set[str] = set()  # names of serve's actors that no node has room for
        self.resources: ClusterResources | None = None
        self.looked_at = 0.0
        self._on_change = on_change
        self._look: asyncio.TimerHandle | None = None
        self._look_when = 0.0
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Learn which nodes there are."""
        await self._read_nodes()

    async def run(self) -> None:
        """Follow the nodes."""
        async for event in doors.watch_nodes():
            node_id = event.node.node_id
            if event.kind == doors.DRAINING:
                self.draining.add(node_id)
            elif event.kind == doors.LEFT:
                self.draining.discard(node_id)
                self.nodes.pop(node_id, None)
            elif node_id not in self.nodes:
                await self._read_nodes()
            self._on_change()

    async def _read_nodes(self) -> None:
        rows = await asyncio.to_thread(retinue.nodes)
        self.nodes = {
            row["NodeID"]: NodeInfo(row["NodeID"], row["NodeManagerAddress"], row["IsHeadNode"])
            for row in rows
            if row["Alive"]
        }

    def look_at(self, when: float) -> None:
        """Ask the cluster who has its resources, at this reading of the monotonic clock or before."""
        if self._looking is not None:
            return
        if self._look is not None:
            if self._look_when <= when:
                return
            self._look.cancel()
        self._look_when = when
        loop = asyncio.get_running_loop()
        self._look = loop.call_later(max(0.0, when - time.monotonic()), self._look_now)

    def _look_now(self) -> None:
        self._look = None
        self._looking = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        try:
            self.resources, self.unplaced = await asyncio.to_thread(_ask_cluster)
        except (RetinueError, OSError, TimeoutError) as error:
            logger.warning("the cluster does not tell its resources: %s", error)
        finally:
            self.looked_at = time.monotonic()
            self._looking = None
        self._on_change()

    def close(self) -> None:
        if self._look is not None:
            self._look.cancel()
        if self._looking is not None:
            self._looking.cancel()


def _ask_cluster() -> tuple[ClusterResources, set[str]]:
    nodes = {row["NodeID"]: row["Resources"] for row in retinue.nodes() if row["Alive"]}
    available = retinue.available_resources()
    holders, unplaced = [], set()
    for actor in state_api.list_actors(limit=ASK_LIMIT, detail=True):
        if actor.state == "PENDING_CREATION" and not actor.node_id:
            if actor.ray_namespace == NAMESPACE and actor.name:
                unplaced.add(actor.name)
        elif actor.state == "ALIVE" and actor.required_resources:
            name = actor.name or actor.class_name
            holders.append(Holder(f"actor {name}", actor.required_resources))
    running = [("state", "=", "RUNNING"), ("type", "=", "NORMAL_TASK")]
    tasks = state_api.list_tasks(filters=running, limit=ASK_LIMIT, detail=True)
    holders += [Holder(f"task {t.name}", t.required_resources) for t in tasks if t.required_resources]
    return ClusterResources(nodes, available, holders), unplaced
