"""Nodes that come, drain and go, as the head says it.

After the head's death the watch goes on with its successor; nodes that this one has yet to hear of have not
left. Lives here: the watch, and what makes events of views. Does not: which nodes there are (`head.nodes`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from retinue.core.current import get_runtime
from retinue.core.doors.kv import hub_of
from retinue.core.doors.watching import Mailbox, Watch
from retinue.core.wire.messages import ClusterView, NodeInfo, Ping, WatchNodes

if TYPE_CHECKING:
    from retinue.core.client.runtime import Runtime
    from retinue.core.transport.threads import Connection

JOINED: Literal["joined"] = "joined"
DRAINING: Literal["draining"] = "draining"
LEFT: Literal["left"] = "left"


@dataclass(frozen=True, slots=True)
class Node:
    """A node, at the time of the event."""

    node_id: str  # hex, as `retinue.nodes()` has it
    hostname: str
    host: str  # where its TCP sockets listen; "" on a single machine
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    is_head: bool


@dataclass(frozen=True, slots=True)
class NodeEvent:
    kind: Literal["joined", "draining", "left"]
    node: Node
    reason: str = ""  # why it left


class NodeBook:
    """Events from views. Pure."""

    def __init__(self) -> None:
        self._nodes: dict[bytes, NodeInfo] = {}

    def see(self, nodes: Iterable[NodeInfo], *, is_full: bool, awaits_nodes: bool) -> list[NodeEvent]:
        events: list[NodeEvent] = []
        missing = dict(self._nodes)
        for info in nodes:
            known = missing.pop(info.node_id, None)
            if not info.alive:
                if self._nodes.pop(info.node_id, None) is not None:
                    events.append(NodeEvent(LEFT, _node(info), info.death_reason))
                continue
            self._nodes[info.node_id] = info
            if known is None:
                events.append(NodeEvent(JOINED, _node(info)))
            if info.draining and not (known is not None and known.draining):
                events.append(NodeEvent(DRAINING, _node(info)))
        if is_full and not awaits_nodes:
            for info in missing.values():
                del self._nodes[info.node_id]
                events.append(NodeEvent(LEFT, _node(info), "a new head does not know it"))
        return events

    def all(self) -> list[NodeEvent]:
        """What a new watcher is told first."""
        events = []
        for info in self._nodes.values():
            events.append(NodeEvent(JOINED, _node(info)))
            if info.draining:
                events.append(NodeEvent(DRAINING, _node(info)))
        return events


def _node(info: NodeInfo) -> Node:
    return Node(info.node_id.hex(), info.hostname, info.address.host, info.total, info.labels, info.is_head)


class NodeHub:
    """The watches of one process; everything here runs on its I/O thread."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._head = runtime.head
        self._io = runtime.io
        self._book = NodeBook()
        self._mailboxes: list[Mailbox[NodeEvent]] = []
        self._is_watching = False
        self._head.handlers[ClusterView] = self._see
        self._head.on_connected.append(self._connected)

    def add(self, mailbox: Mailbox[NodeEvent]) -> None:
        self._io.post(lambda: self._add(mailbox))

    def _add(self, mailbox: Mailbox[NodeEvent]) -> None:
        self._mailboxes.append(mailbox)
        for event in self._book.all():
            _put(mailbox, event)
        if self._is_watching:
            return
        self._is_watching = True
        connection = self._head.connection
        if connection is None or connection.is_closed:
            self._head.request(Ping(0), _no_matter)  # has it connect, and that sets up the watch
        else:
            connection.request(WatchNodes(0), _no_matter)

    def remove(self, mailbox: Mailbox[NodeEvent]) -> None:
        if not self._runtime.is_stopping:  # its I/O thread is gone
            self._io.post(lambda: self._remove(mailbox))

    def _remove(self, mailbox: Mailbox[NodeEvent]) -> None:
        if mailbox in self._mailboxes:
            self._mailboxes.remove(mailbox)

    def stop(self) -> None:
        """The process leaves the cluster: whoever waits for an event stops."""
        for mailbox in self._mailboxes:
            mailbox.close()

    def _connected(self, connection: Connection) -> None:
        if self._is_watching:
            connection.request(WatchNodes(0), _no_matter)

    def _see(self, connection: Connection, view: ClusterView, payload: bytes) -> None:
        for event in self._book.see(view.nodes, is_full=view.full, awaits_nodes=view.awaits_nodes):
            for mailbox in self._mailboxes:
                _put(mailbox, event)


def _put(mailbox: Mailbox[NodeEvent], event: NodeEvent) -> None:
    mailbox.put((event.node.node_id, event.kind), event)


def watch_nodes() -> Watch[NodeEvent]:
    """The nodes that there are, as having joined, and then each that joins, begins to drain, or leaves."""
    hub = hub_of(get_runtime(), NodeHub)
    mailbox: Mailbox[NodeEvent] = Mailbox()
    hub.add(mailbox)
    return Watch(mailbox, lambda: hub.remove(mailbox))


def _no_matter(response: Any, body: bytes) -> None:
    """What comes of it comes by itself."""
