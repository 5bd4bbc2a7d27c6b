"""Wait for nodes to come and go, as the head sees them: blocking, for starters, tools and tests."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import Self

from retinue.core.errors import RetinueSystemError
from retinue.core.launch import AgentProcess, Process
from retinue.core.transport.blocking import BlockingClient
from retinue.core.wire.messages import Address, ClusterView, NodeInfo, WatchNodes

LOG_TAIL_BYTES = 4096
DYING_S = 1.0


class NodeWatch:
    """The head's view of the nodes, for those who wait for a node to come or go. Blocking; one thread."""

    def __init__(self, head: Address, token: bytes) -> None:
        self._head = head
        self._token = token
        self._client: BlockingClient | None = None
        self._has_view = False  # of the head that we are connected to
        self.nodes: dict[bytes, NodeInfo] = {}

    def wait_until(
        self,
        is_so: Callable[[dict[bytes, NodeInfo]], bool],
        *,
        timeout_s: float,
        agent: Process | None = None,
    ) -> None:
        """Raises TimeoutError, or RetinueSystemError if `agent` ends before it is so."""
        deadline = time.monotonic() + timeout_s
        while not (self._has_view and is_so(self.nodes)):
            _raise_if_ended(agent)
            try:
                client = self._connected(deadline)
            except OSError:
                # The listener may have gone with the agent that kept it: then that is what to say.
                if agent is not None:
                    agent.wait(DYING_S)
                _raise_if_ended(agent)
                raise
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"the nodes were not as expected within {timeout_s:g} s")
            if self._has_news(client, agent, left):
                self._take(client, left)

    def wait_alive(self, agent: AgentProcess, *, timeout_s: float) -> None:
        """Until the agent's node is alive. Raises RetinueSystemError, with its log, if it ends or is late."""
        node_id = agent.config.node_id
        try:
            self.wait_until(lambda nodes: _is_alive(nodes, node_id), timeout_s=timeout_s, agent=agent)
        except (TimeoutError, RetinueSystemError) as error:
            log = log_tail(agent.config.log_path)
            raise RetinueSystemError(f"the node did not start: {error}{log}") from error

    def _connected(self, deadline: float) -> BlockingClient:
        if self._client is None:
            timeout_s = max(0.01, deadline - time.monotonic())
            self._client = BlockingClient(self._head, self._token, timeout_s=timeout_s)
            self._client.send(WatchNodes(0))
        return self._client

    @staticmethod
    def _has_news(client: BlockingClient, agent: Process | None, timeout_s: float) -> bool:
        if client.has_message():
            return True
        poller = select.poll()
        poller.register(client.fileno(), select.POLLIN)
        if agent is not None and agent.pidfd >= 0:
            poller.register(agent.pidfd, select.POLLIN)
        ready = poller.poll(timeout_s * 1000)
        return any(fd == client.fileno() for fd, _ in ready)

    def _take(self, client: BlockingClient, timeout_s: float) -> None:
        try:
            message, _ = client.receive(timeout_s)
        except ConnectionError:
            self.close()  # the head has died; its successor sends the full view
            return
        if isinstance(message, ClusterView):
            if message.full:
                self.nodes.clear()
                self._has_view = True
            self.nodes.update((info.node_id, info) for info in message.nodes)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
            self._has_view = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _raise_if_ended(agent: Process | None) -> None:
    if agent is not None and agent.returncode is not None:
        raise RetinueSystemError(f"the node agent ended with code {agent.returncode}")


def _is_alive(nodes: dict[bytes, NodeInfo], node_id: bytes) -> bool:
    return node_id in nodes and nodes[node_id].alive


def log_tail(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace").strip()
    except OSError:
        return ""
    return f"; its log ends with:\n{text}" if text else ""
