"""Whole nodes and clusters on this machine: what `init()`, `retinue start` and `Cluster` start and stop.

    start_local_cluster()   head and one node, for a driver; ends with it
    start_head_node()       the same, to outlive its starter: the agent keeps the head running
    start_node(address)     one more node of a cluster that is elsewhere
    stop()                  end what the last two have started on this machine

Lives here: the order of starting and stopping. Does not: processes (`launch.py`), folders (`session.py`).
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec

from retinue.core import session as sessions
from retinue.core.config import AdminConfig, AgentConfig
from retinue.core.errors import RetinueSystemError
from retinue.core.launch import AgentProcess, HeadProcess, HeadSupervisor, Listeners, Process, head_config
from retinue.core.node_watch import NodeWatch
from retinue.core.session import ClusterFile, Session
from retinue.core.transport.blocking import BlockingClient
from retinue.core.wire.messages import Address, Query, Shutdown

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
# An agent that does not answer is sent a signal; one that is over its time by this much is killed.
ASK_TIMEOUT_S = 2.0
AGENT_END_S = 5.0
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What a user can say about a node. None: the agent finds out."""

    num_cpus: float | None = None
    num_gpus: float | None = None
    memory: float | None = None
    object_store_memory: int | None = None
    resources: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    node_ip: str = LOOPBACK
    spill_dir: str = ""
    system_config: dict[str, str] = field(default_factory=dict)


class LocalCluster:
    """A cluster whose processes are this process's children, and end with it.

    `start_head()` first. With `tcp_host`, head and agents listen on TCP as well, which more than one
    node needs: nodes are machines of their own to each other, even where they are not.
    """

    def __init__(self, session: Session, *, tcp_host: str = "", tcp_port: int = 0) -> None:
        self.session = session
        self.head: HeadProcess | None = None
        self.agents: list[AgentProcess] = []
        self._tcp_host = tcp_host
        self._tcp_port = tcp_port
        self._head_node_id = os.urandom(16)
        self._supervisor: HeadSupervisor | None = None

    @property
    def token(self) -> bytes:
        return self.session.token

    @property
    def head_address(self) -> Address:
        assert self.head is not None, "the head was not started"
        return self.head.address

    @property
    def agent_address(self) -> Address:
        """The agent that a driver of this process registers with."""
        return self.agents[0].address

    def start_head(self) -> HeadProcess:
        """Start the head, and keep it running from now on. Returns at once: connect, and it will answer."""
        listeners = _head_listeners(self.session, self._head_node_id, self._tcp_host, self._tcp_port)
        self.head = HeadProcess(head_config(self.session, listeners), listeners)
        self.head.start(time.monotonic())
        self._supervisor = HeadSupervisor(self.head)
        self._supervisor.start()
        return self.head

    def start_agent(self, options: NodeOptions) -> AgentProcess:
        """Start one more node; the first is the head's. Returns at once: connect, and it will answer."""
        is_head_node = not self.agents
        if not is_head_node and not self._tcp_host:
            raise ValueError("a cluster of more than one node needs TCP")
        node_id = self._head_node_id if is_head_node else os.urandom(16)
        listeners = _agent_listeners(self.session, node_id, self._tcp_host)
        try:
            config = _agent_config(
                self.session,
                listeners,
                self.head_address if is_head_node else _remote(self.head_address),
                options,
                is_head_node=is_head_node,
            )
            agent = _start_agent(config, listeners)
        finally:
            listeners.close()  # only the agent listens: with it, connections to the node are refused
        self.agents.append(agent)
        return agent

    def publish(self) -> None:
        """Let tools, and drivers that are told the address, find the cluster."""
        self.session.publish(
            ClusterFile(
                cluster_id=self.session.cluster_id,
                session_dir=self.session.dir,
                token_file=self.session.token_file,
                head=self.head_address,
                agent=self.agents[0].address if self.agents else None,
                agent_pid=self.agents[0].pid if self.agents else 0,
                head_pid=self.head.pid if self.head is not None else 0,
                is_private=True,
                started_at=time.time(),
            )
        )

    def stop_agent(self, agent: AgentProcess, *, is_graceful: bool = True) -> None:
        """End a node and wait until its agent is gone."""
        if agent in self.agents:
            self.agents.remove(agent)
        end(agent, is_graceful=is_graceful)

    def stop_head(self) -> None:
        if self._supervisor is not None:
            self._supervisor.stop()
            self._supervisor = None
        if self.head is not None:
            self.head.stop()
            end(self.head.process)
            self.head.close()

    def shutdown(self) -> None:
        """End all processes, wait for them, and remove the session. May be called twice.

        In a process that was forked from the starter it does nothing: the cluster is not its own.
        """
        if os.getpid() != self.session.pid:
            return
        if self._supervisor is not None:
            self._supervisor.stop()
            self._supervisor = None
        if self.head is not None:
            # At once with the agents: nobody needs it to forget what ends anyway.
            self.head.stop()
        agents, self.agents = self.agents, []
        for agent in agents:
            agent.terminate()
        if self.head is not None:
            # Its sockets go before the agents are waited for: in their backlog an agent that looks for
            # the next head would wait for an answer.
            end(self.head.process)
            self.head.close()
        for agent in agents:
            end(agent)
        self.session.close()


def start_local_cluster(options: NodeOptions, *, temp_dir: str | None = None) -> LocalCluster:
    """A driver's own cluster: head and one node. Both answer as soon as they are up."""
    cluster = LocalCluster(sessions.new_session(temp_dir))
    try:
        cluster.start_head()
        cluster.start_agent(options)
        cluster.publish()
    except BaseException:
        cluster.shutdown()
        raise
    return cluster


# --- nodes that outlive their starter ---------------------------------------------------------------------


@dataclass(slots=True)
class StartedNode:
    """A node that runs. With `block`, `agent` is a child that ends with this process."""

    cluster: ClusterFile
    agent: AgentProcess
    session: Session

    def wait(self) -> int | None:
        """Until the agent ends; for `--block`."""
        return self.agent.wait()

    def close(self) -> None:
        """For `--block`: end the node in order."""
        end(self.agent)
        self.session.close()


def start_head_node(
    options: NodeOptions,
    *,
    host: str = LOOPBACK,
    port: int = 0,
    block: bool = False,
    temp_dir: str | None = None,
    timeout_s: float = START_TIMEOUT_S,
    admin: socket.socket | None = None,
) -> StartedNode:
    """Start a cluster and wait until its first node is alive. Raises RetinueSystemError if it does not start.

    Unless `block`, it outlives this process: `stop()` ends it. `admin`: a listening socket for the admin
    server (see `core.admin.server`), which the agent keeps running.
    """
    session = sessions.new_session(temp_dir)
    node_id = os.urandom(16)
    with _closed_on_error(session):
        head_listeners = _head_listeners(session, node_id, host, port)
        listeners = _agent_listeners(session, node_id, host)
        try:
            config = _agent_config(
                session, listeners, head_listeners.address, options, is_head_node=True, has_parent=block
            )
            config = msgspec.structs.replace(
                config,
                supervised_head=head_config(session, head_listeners),
                supervised_admin=_admin_config(session, head_listeners.address, admin),
            )
            admin_fds = [admin.fileno()] if admin is not None else []
            agent = _start_agent(config, listeners, head_listeners.fds() + admin_fds)
        finally:
            listeners.close()
            head_listeners.close()  # the agent keeps them for the heads to come
        return _finish_start(session, agent, head_listeners.address, timeout_s, block=block)


def start_node(
    address: str,
    options: NodeOptions,
    *,
    host: str = LOOPBACK,
    block: bool = False,
    temp_dir: str | None = None,
    timeout_s: float = START_TIMEOUT_S,
) -> StartedNode:
    """Start a node of the cluster whose head listens on `address` ("host:port"), and wait until it is alive.

    The token comes from the environment, or from the cluster's own folder if it is on this machine.
    Raises ConnectionError, AuthenticationError or RetinueSystemError.
    """
    found = sessions.find_cluster_at(address, temp_dir)
    token = sessions.cluster_token(found) if found is not None else sessions.token_from_environment()
    if token is None:
        raise ConnectionError(
            f"the token of the cluster at {address} is not known here: set "
            f"{sessions.TOKEN_VARIABLE} or {sessions.TOKEN_FILE_VARIABLE}"
        )
    head_host, head_port = parse_address(address)
    head = Address(b"\xff" * 16, b"\xff" * 16, "", head_host, head_port)
    with BlockingClient(head, token, timeout_s=timeout_s) as client:
        summary = msgspec.msgpack.decode(client.request(Query(0, "summary"))[1])
    session = sessions.new_session(temp_dir, cluster_id=summary["cluster_id"], token=token)
    with _closed_on_error(session):
        node_id = os.urandom(16)
        listeners = _agent_listeners(session, node_id, host)
        try:
            config = _agent_config(session, listeners, head, options, is_head_node=False, has_parent=block)
            agent = _start_agent(config, listeners)
        finally:
            listeners.close()
        return _finish_start(session, agent, head, timeout_s, block=block)


def _finish_start(
    session: Session, agent: AgentProcess, head: Address, timeout_s: float, *, block: bool
) -> StartedNode:
    cluster = ClusterFile(
        cluster_id=session.cluster_id,
        session_dir=session.dir,
        token_file=session.token_file,
        head=head,
        agent=agent.address,
        agent_pid=agent.pid,
        is_head_node=agent.config.is_head_node,
        started_at=time.time(),
        admin=_admin_url(agent.config.supervised_admin),
    )
    try:
        with NodeWatch(head, session.token) as watch:
            watch.wait_alive(agent, timeout_s=timeout_s)
    except BaseException:
        end(agent, is_graceful=False)
        raise
    session.publish(cluster)
    started = StartedNode(cluster, agent, session)
    if not block:
        agent.detach()
        session.close()
    return started


def parse_address(address: str) -> tuple[str, int]:
    """Split "host:port". Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise ValueError(f"expected the head's address as 'host:port', got {address!r}")
    return host.strip("[]"), int(port)


# --- stopping --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stopped:
    """What `stop()` did: nodes that ended in order, and nodes that had to be killed."""

    ended: int = 0
    killed: int = 0


def stop(
    *,
    force: bool = False,
    grace_period_s: float = STOP_TIMEOUT_S,
    temp_dir: str | None = None,
    include_private: bool = False,
) -> Stopped:
    """End this user's nodes on this machine that were started to outlive their starter.

    What runs there has `grace_period_s` to finish; with `force`, everything is killed at once. Returns once
    their processes are gone and their folders removed.
    """
    clusters = [c for c in sessions.find_clusters(temp_dir) if include_private or not c.is_private]
    pidfds = {c.session_dir: pidfd for c in clusters if (pidfd := _agent_pidfd(c)) is not None}
    killed = 0
    for cluster in clusters:
        pidfd = pidfds.get(cluster.session_dir)
        if pidfd is not None and (force or not _ask_to_end(cluster, grace_period_s)):
            _send(pidfd, signal.SIGKILL if force else signal.SIGTERM)
    deadline = time.monotonic() + grace_period_s + AGENT_END_S
    for pidfd in pidfds.values():
        if not _ended_within(pidfd, deadline - time.monotonic()):
            _send(pidfd, signal.SIGKILL)
            killed += 1
            _ended_within(pidfd, STOP_TIMEOUT_S)
        _reap(pidfd)
        os.close(pidfd)
    for session_dir in pidfds:
        _wait_unheld(session_dir, STOP_TIMEOUT_S)
    sessions.clean_stale(temp_dir)
    return Stopped(ended=len(pidfds) - killed, killed=killed)


def _ask_to_end(cluster: ClusterFile, grace_period_s: float) -> bool:
    """Have the agent end its node in order; False if it cannot be asked."""
    assert cluster.agent is not None  # it is this machine's
    try:
        token = sessions.cluster_token(cluster)
        with BlockingClient(cluster.agent, token, kind="agent", timeout_s=ASK_TIMEOUT_S) as client:
            client.request(Shutdown(0, grace_period_s))
    except (OSError, RetinueSystemError):
        return False
    return True


def end(process: Process, *, is_graceful: bool = True, timeout_s: float = STOP_TIMEOUT_S) -> int | None:
    """End a child: ask, wait, and kill it if it does not. Returns its exit code."""
    if is_graceful:
        process.terminate()
        code = process.wait(timeout_s)
        if code is not None:
            return code
    process.kill()
    return process.wait()


def _agent_pidfd(cluster: ClusterFile) -> int | None:
    """None if the process is gone, or its number is another process's by now."""
    try:
        pidfd = os.pidfd_open(cluster.agent_pid)
        with open(f"/proc/{cluster.agent_pid}/cmdline", "rb") as file:
            is_ours = os.fsencode(cluster.session_dir) in file.read().split(b"\0")
    except (OSError, ValueError):
        return None
    if is_ours:
        return pidfd
    os.close(pidfd)
    return None


def _send(pidfd: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass


def _reap(pidfd: int) -> None:
    """If the starter itself stops a node, the agent is its child still."""
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        pass


def _ended_within(pidfd: int, timeout_s: float) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(max(0.0, timeout_s) * 1000))


def _wait_unheld(session_dir: str, timeout_s: float) -> None:
    """Until no process holds the session. flock knows no timeout: a thread waits."""
    try:
        fd = os.open(os.path.join(session_dir, "lock"), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # removed already

    def wait() -> None:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.close(fd)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(timeout_s)


# --- details ---------------------------------------------------------------------------------------------


class _closed_on_error:
    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is not None:
            self._session.close()


def _head_listeners(session: Session, node_id: bytes, tcp_host: str, tcp_port: int) -> Listeners:
    return Listeners.open(
        session.path("head.sock"),
        worker_id=os.urandom(16),
        node_id=node_id,
        tcp_host=tcp_host,
        tcp_port=tcp_port,
    )


def _agent_listeners(session: Session, node_id: bytes, tcp_host: str) -> Listeners:
    path = os.path.join(session.node_dir(node_id), "agent.sock")
    return Listeners.open(path, worker_id=os.urandom(16), node_id=node_id, tcp_host=tcp_host)


def _agent_config(
    session: Session,
    listeners: Listeners,
    head: Address,
    options: NodeOptions,
    *,
    is_head_node: bool,
    has_parent: bool = True,
) -> AgentConfig:
    node_id = listeners.address.node_id
    more: dict[str, Any] = {name: getattr(options, name) for name in NodeOptions.__slots__}
    return AgentConfig(
        cluster_id=session.cluster_id,
        node_id=node_id,
        address=listeners.address,
        head=head,
        token=session.token,
        session_dir=session.dir,
        node_dir=session.node_dir(node_id),
        unix_fd=listeners.unix.fileno(),
        tcp_fd=listeners.tcp_fd,
        is_head_node=is_head_node,
        has_parent=has_parent,
        log_path=session.path("logs", f"agent-{node_id.hex()[:8]}.log"),
        **more,
    )


def _start_agent(
    config: AgentConfig, listeners: Listeners, head_fds: list[int] | None = None
) -> AgentProcess:
    lock_fd = Session(config.session_dir, "", b"", -1).hold()
    try:
        return AgentProcess(msgspec.structs.replace(config, lock_fd=lock_fd), listeners, head_fds)
    finally:
        os.close(lock_fd)


def _admin_config(session: Session, head: Address, admin: socket.socket | None) -> AdminConfig | None:
    if admin is None:
        return None
    return AdminConfig(
        cluster_id=session.cluster_id,
        head=head,
        token=session.token,
        session_dir=session.dir,
        listen_fd=admin.fileno(),
        log_path=session.path("logs", "admin.log"),
        sys_path=[path for path in sys.path if path],
    )


def _admin_url(config: AdminConfig | None) -> str:
    if config is None:
        return ""
    with socket.socket(fileno=os.dup(config.listen_fd)) as admin:
        host, port = admin.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _remote(address: Address) -> Address:
    """As another machine sees it."""
    return Address(address.worker_id, address.node_id, "", address.host, address.port)
