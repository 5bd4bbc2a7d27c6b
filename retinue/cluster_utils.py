"""`Cluster`: several nodes on this machine, for tests of what a real cluster does.

Every node is an agent of its own with its own arena and workers; they talk over TCP with the cluster's
token, as nodes on several machines do. All ends with this process.
"""

from __future__ import annotations

import atexit
from typing import Any

import retinue
from retinue.core import session as sessions
from retinue.core.cluster import LOOPBACK, LocalCluster, NodeOptions
from retinue.core.errors import RetinueSystemError
from retinue.core.launch import AgentProcess
from retinue.core.node_watch import NodeWatch
from retinue.core.wire.messages import NodeInfo

__all__ = ["Cluster", "ClusterNode"]

START_TIMEOUT_S = 30.0
DEFAULT_STORE_BYTES = 150 * 1024 * 1024
_NODE_ARGUMENTS = frozenset(
    {"num_cpus", "num_gpus", "memory", "object_store_memory", "resources", "labels", "system_config"}
)


class ClusterNode:
    """One node of a `Cluster`."""

    def __init__(self, agent: AgentProcess) -> None:
        self.process = agent

    @property
    def node_id(self) -> str:
        """As hex, like `retinue.nodes()` has it."""
        return self.process.config.node_id.hex()

    unique_id = node_id

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_head(self) -> bool:
        return self.process.config.is_head_node

    def is_alive(self) -> bool:
        """Whether the agent's process runs."""
        return self.process.pidfd >= 0 and self.process.returncode is None

    def __repr__(self) -> str:
        return f"ClusterNode({self.node_id[:12]}, pid={self.pid})"


class Cluster:
    """As Ray's. The first node that is added has the head beside it; drivers register there.

    `head_node_args` are `add_node`'s arguments for the first node, with `initialize_head`; `connect` calls
    `retinue.init` on it.
    """

    def __init__(
        self,
        initialize_head: bool = False,
        connect: bool = False,
        head_node_args: dict[str, Any] | None = None,
        shutdown_at_exit: bool = True,
    ) -> None:
        if connect and not initialize_head:
            raise ValueError("connect=True needs initialize_head=True: there is nothing to connect to yet")
        self.head_node: ClusterNode | None = None
        self.worker_nodes: set[ClusterNode] = set()
        self.connected = False
        self._processes: LocalCluster | None = None
        self._watch: NodeWatch | None = None
        if shutdown_at_exit:
            atexit.register(self.shutdown)
        if initialize_head:
            self.add_node(**(head_node_args or {}))
        if connect:
            self.connect()

    @property
    def address(self) -> str:
        """ "host:port" of the head, for `retinue.init(address=...)`."""
        head = self._started().head_address
        return f"{head.host}:{head.port}"

    gcs_address = address

    def connect(self, namespace: str | None = None) -> Any:
        """Call `retinue.init` on this cluster."""
        context = retinue.init(address=self.address, namespace=namespace, ignore_reinit_error=True)
        self.connected = True
        return context

    def add_node(self, wait: bool = True, **node_args: Any) -> ClusterNode:
        """Start a node.

        Takes `num_cpus` (1), `num_gpus` (0), `memory`, `object_store_memory` (150 MiB), `resources`,
        `labels`. Returns once the head knows it, or at once without `wait`. Raises TypeError for others.
        """
        options = _options(node_args)
        if self._processes is None:
            self._processes = LocalCluster(sessions.new_session(), tcp_host=LOOPBACK)
            self._processes.start_head()
        node = ClusterNode(self._processes.start_agent(options))
        if self.head_node is None:
            self.head_node = node
            self._processes.publish()
        else:
            self.worker_nodes.add(node)
        if wait:
            try:
                self._nodes().wait_alive(node.process, timeout_s=START_TIMEOUT_S)
            except BaseException:
                self.remove_node(node, allow_graceful=False)
                raise
        return node

    def remove_node(self, node: ClusterNode, allow_graceful: bool = True) -> bool:
        """End a node, and return once the head knows: in order, or by SIGKILL to its agent.

        Removing the head's node ends the head as well. Returns whether the node was there.
        """
        if node is not self.head_node and node not in self.worker_nodes:
            return False
        processes = self._started()
        if node is self.head_node:
            self.head_node = None
            processes.stop_head()
            processes.stop_agent(node.process, is_graceful=allow_graceful)
            return True
        self.worker_nodes.discard(node)
        processes.stop_agent(node.process, is_graceful=allow_graceful)
        if self.head_node is not None:
            self._nodes().wait_until(
                lambda nodes: node.process.config.node_id not in _alive(nodes), timeout_s=START_TIMEOUT_S
            )
        return True

    def wait_for_nodes(self, timeout: float = 30) -> None:
        """Until the head knows exactly the nodes of this cluster. Raises TimeoutError."""
        expected = {node.process.config.node_id for node in self.list_all_nodes()}
        self._nodes().wait_until(lambda nodes: _alive(nodes) == expected, timeout_s=timeout)

    def list_all_nodes(self) -> list[ClusterNode]:
        """The head's node first."""
        head = [] if self.head_node is None else [self.head_node]
        return head + sorted(self.worker_nodes, key=lambda node: node.process.pid)

    def remaining_processes_alive(self) -> bool:
        """Whether every agent, and the head, that should run does."""
        processes = self._started()
        head_runs = processes.head is not None and processes.head.process.returncode is None
        return head_runs and all(node.is_alive() for node in self.list_all_nodes())

    def kill_head(self) -> None:
        """SIGKILL the head's process; another one takes its place within a second."""
        head = self._started().head
        assert head is not None
        head.kill()

    def shutdown(self) -> None:
        """Disconnect and end everything. May be called twice."""
        atexit.unregister(self.shutdown)
        if self.connected:
            self.connected = False
            retinue.shutdown()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        processes, self._processes = self._processes, None
        self.head_node = None
        self.worker_nodes.clear()
        if processes is not None:
            processes.shutdown()

    def _started(self) -> LocalCluster:
        if self._processes is None:
            raise RetinueSystemError("the cluster has no node yet: call add_node()")
        return self._processes

    def _nodes(self) -> NodeWatch:
        if self._watch is None:
            processes = self._started()
            self._watch = NodeWatch(processes.head_address, processes.token)
        return self._watch


def _alive(nodes: dict[bytes, NodeInfo]) -> set[bytes]:
    return {node_id for node_id, info in nodes.items() if info.alive}


def _options(node_args: dict[str, Any]) -> NodeOptions:
    unknown = node_args.keys() - _NODE_ARGUMENTS
    if unknown:
        raise TypeError(f"add_node() does not take {', '.join(sorted(unknown))}; it takes {_known()}")
    known = {name: value for name, value in node_args.items() if value is not None}
    defaults = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": DEFAULT_STORE_BYTES}
    return NodeOptions(**(defaults | known))


def _known() -> str:
    return ", ".join(sorted(_NODE_ARGUMENTS))
