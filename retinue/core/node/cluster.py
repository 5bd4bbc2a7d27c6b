"""The rest of the cluster, as this node's agent knows it: the head, and the other agents.

The head may die at any time: nothing here waits for it. What it must hear is kept until a new one has
registered us. Lives here: those connections, the cluster view, reports. Does not: what the messages mean.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from retinue.core.config import AgentConfig
from retinue.core.transport import loop as transport
from retinue.core.transport.loop import LoopConnection
from retinue.core.wire.messages import (
    Address,
    ClusterView,
    Hello,
    Message,
    NodeInfo,
    NodeReport,
    RegisterNode,
)

logger = logging.getLogger(__name__)

REPORT_INTERVAL_S = 0.05
HEARTBEAT_S = 1.0
FIRST_BACKOFF_S = 0.02
MAX_BACKOFF_S = 1.0
# Unsaid to a head that is away: enough for every process of a node to end.
MAX_UNSAID = 10_000

MakeReport = Callable[[], NodeReport]
MakeRegistration = Callable[[], tuple[RegisterNode, bytes]]


class Cluster:
    """Build, set the callbacks, `run` as a task, `close`."""

    def __init__(
        self, config: AgentConfig, *, make_registration: MakeRegistration, make_report: MakeReport
    ) -> None:
        self.on_head_message: Callable[[LoopConnection, Any, bytes], None] = lambda c, m, p: None
        self.on_node_message: Callable[[LoopConnection, Any, bytes], None] = lambda c, m, p: None
        self.on_nodes: Callable[[], None] = lambda: None
        self.on_node_died: Callable[[bytes], None] = lambda node_id: None
        self.on_registered: Callable[[], None] = lambda: None
        self.nodes: dict[bytes, NodeInfo] = {}
        self.head: LoopConnection | None = None
        self.epoch = 0
        self._config = config
        self._make_registration = make_registration
        self._make_report = make_report
        self._unsaid: deque[tuple[Message, bytes]] = deque(maxlen=MAX_UNSAID)
        self._is_registered = False
        self._when_registered: list[Callable[[], None]] = []
        self._report_timer: asyncio.TimerHandle | None = None
        self._last_report: NodeReport | None = None
        self._peers: dict[bytes, LoopConnection] = {}
        self._connecting: dict[bytes, asyncio.Task[LoopConnection]] = {}
        self._lost = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    @property
    def _hello(self) -> Hello:
        return Hello("head", self._config.address)

    # --- the head

    async def run(self) -> None:
        """Keep a registration with the head, through its deaths. Ends when cancelled."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                await self._register()
            except (OSError, ConnectionError) as error:
                logger.debug("no head: %s", error)
                await asyncio.sleep(backoff_s)
                backoff_s = min(MAX_BACKOFF_S, backoff_s * 2)
                continue
            backoff_s = FIRST_BACKOFF_S
            await self._lost.wait()

    async def _register(self) -> None:
        config = self._config
        self._lost.clear()
        head = await transport.connect(
            config.head, self._hello, config.token, self._head_message, self._head_lost
        )
        self.head = head
        registration, payload = self._make_registration()
        accepted, _ = await head.request(registration, payload)
        self._is_registered = True
        if accepted.epoch != self.epoch:
            logger.info("registered with the head, epoch %d", accepted.epoch)
        self.epoch = accepted.epoch
        self._last_report = None
        unsaid, self._unsaid = self._unsaid, deque(maxlen=MAX_UNSAID)
        for message, body in unsaid:
            head.send(message, body)
        self.on_registered()
        self._report()
        waiting, self._when_registered = self._when_registered, []
        for then in waiting:
            then()

    def when_registered(self, then: Callable[[], None]) -> None:
        """Run `then` once a head knows this node: now, or after the next registration."""
        if self._is_registered:
            then()
        else:
            self._when_registered.append(then)

    def _head_message(self, connection: LoopConnection, message: Any, payload: bytes) -> None:
        if type(message) is ClusterView:
            self._see(message)
        else:
            self.on_head_message(connection, message, payload)

    def _head_lost(self, connection: LoopConnection) -> None:
        if self.head is connection:
            self.head = None
            self._is_registered = False
            self._lost.set()

    def tell_head(self, message: Message, payload: bytes = b"") -> None:
        """Say it now, or to the next head."""
        if self._is_registered and self.head is not None:
            self.head.send(message, payload)
        else:
            self._unsaid.append((message, payload))

    def ask_head(self, request: Any) -> None:
        """Ask for something whose answer does not matter; not repeated to the next head."""
        if self.head is not None and not self.head.is_closed:
            self.head.start_request(request).add_done_callback(_ignore)

    def _see(self, view: ClusterView) -> None:
        if view.full:
            self.nodes = {}
        for node in view.nodes:
            if node.alive:
                self.nodes[node.node_id] = node
            else:
                self.nodes.pop(node.node_id, None)
                peer = self._peers.pop(node.node_id, None)
                if peer is not None:
                    peer.close()
                self.on_node_died(node.node_id)
        self.on_nodes()

    # --- reports

    def report_soon(self) -> None:
        """Something has changed that the head counts on."""
        if self._report_timer is None or self._report_timer.when() - self._loop.time() > REPORT_INTERVAL_S:
            if self._report_timer is not None:
                self._report_timer.cancel()
            self._report_timer = self._loop.call_later(REPORT_INTERVAL_S, self._report)

    def _report(self) -> None:
        if self._report_timer is not None:
            self._report_timer.cancel()
        self._report_timer = self._loop.call_later(HEARTBEAT_S, self._beat)
        report = self._make_report()
        if self._is_registered and self.head is not None and report != self._last_report:
            self._last_report = report
            self.head.send(report)

    def _beat(self) -> None:
        self._last_report = None
        self._report()

    # --- other nodes

    def address_of(self, node_id: bytes) -> Address | None:
        node = self.nodes.get(node_id)
        return node.address if node is not None else None

    def send_to_node(self, node_id: bytes, message: Message, payload: bytes = b"") -> None:
        """To that node's agent, as soon as there is a connection; dropped if it cannot be reached."""
        peer = self._peers.get(node_id)
        if peer is not None and not peer.is_closed:
            peer.send(message, payload)
            return

        def connected(task: asyncio.Task[LoopConnection]) -> None:
            if not task.cancelled() and task.exception() is None:
                task.result().send(message, payload)

        self._connect(node_id).add_done_callback(connected)

    def peer(self, node_id: bytes) -> Awaitable[LoopConnection]:
        """The connection to that node's agent. Raises OSError if it cannot be reached."""
        return asyncio.shield(self._connect(node_id))

    def _connect(self, node_id: bytes) -> asyncio.Task[LoopConnection]:
        task = self._connecting.get(node_id)
        if task is None:
            task = self._loop.create_task(self._connect_node(node_id))
            self._connecting[node_id] = task
            task.add_done_callback(lambda done: self._connecting.pop(node_id, None))
        return task

    async def _connect_node(self, node_id: bytes) -> LoopConnection:
        peer = self._peers.get(node_id)
        if peer is not None and not peer.is_closed:
            return peer
        address = self.address_of(node_id)
        if address is None:
            raise ConnectionError(f"node {node_id.hex()[:12]} is not alive")
        hello = Hello("node", self._config.address)
        peer = await transport.connect(
            address, hello, self._config.token, self.on_node_message, self._peer_lost
        )
        peer.context = node_id
        self._peers[node_id] = peer
        return peer

    def _peer_lost(self, connection: LoopConnection) -> None:
        if self._peers.get(connection.context) is connection:
            del self._peers[connection.context]

    def close(self) -> None:
        if self._report_timer is not None:
            self._report_timer.cancel()
        for task in list(self._connecting.values()):
            task.cancel()
        for peer in list(self._peers.values()):
            peer.close()
        if self.head is not None:
            self.head.close()


def _ignore(future: asyncio.Future[Any]) -> None:
    """The answer does not matter, nor that none came."""
    if not future.cancelled():
        future.exception()
