"""A real head and real agents, driven by clients that speak the protocol through blocking sockets."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retinue.core.cluster import LOOPBACK, LocalCluster, NodeOptions
from retinue.core.launch import AgentProcess
from retinue.core.objects.arena import Arena
from retinue.core.session import new_session
from retinue.core.transport.blocking import BlockingClient
from retinue.core.wire.messages import (
    Address,
    LeaseDemand,
    LeaseGrant,
    LogLines,
    NodeCall,
    RegisterProcess,
    Shape,
    WorkerEnv,
)

JOB = b"job1"
TIMEOUT_S = 20.0


class DriverClient:
    """A driver process, as its agent sees one; it is this test's process."""

    def __init__(
        self, agent: AgentProcess, token: bytes, *, job_id: bytes = JOB, env: WorkerEnv | None = None
    ) -> None:
        self.agent = agent.address
        self.job_id = job_id
        self.address = Address(os.urandom(16), agent.address.node_id, "")
        self.client = BlockingClient(
            agent.address, token, kind="agent", sender=self.address, job_id=job_id, timeout_s=TIMEOUT_S
        )
        request = RegisterProcess(0, self.address, os.getpid(), "driver", job_id, 0, env)
        self.registered, _ = self.client.request(request)
        self.node_id = agent.address.node_id

    def shape(self, cpus: float = 1.0, strategy: str = "", **env: Any) -> Shape:
        return Shape({"CPU": cpus} if cpus else {}, WorkerEnv(self.job_id, **env), strategy)

    def demand(self, wanted: int, shape: Shape | None = None, *, shape_id: int = 1, hops: int = 0) -> None:
        self.client.send(LeaseDemand(shape_id, wanted, shape or self.shape(), hops))

    def lease(self, shape: Shape | None = None, *, shape_id: int = 1) -> LeaseGrant:
        self.demand(1, shape, shape_id=shape_id)
        grant = self.expect(LeaseGrant)
        assert isinstance(grant, LeaseGrant)
        return grant

    def expect(self, kind: type, timeout_s: float = TIMEOUT_S) -> Any:
        """The next message that is not log output, which must be of this kind."""
        while True:
            message, _ = self.client.receive(timeout_s)
            if not isinstance(message, LogLines):
                assert isinstance(message, kind), message
                return message

    def log_lines(self) -> tuple[LogLines, str]:
        """The next log output."""
        while True:
            message, payload = self.client.receive()
            if isinstance(message, LogLines):
                return message, payload.decode()

    def ask(self, what: str, **arguments: str) -> Any:
        import msgspec

        _, payload = self.client.request(NodeCall(0, what, arguments))
        return msgspec.msgpack.decode(payload)

    def pid_of(self, worker: Address) -> int:
        (found,) = [w for w in self.ask("workers") if w["worker_id"] == worker.worker_id.hex()]
        return int(found["pid"])

    def arena(self) -> Arena:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(TIMEOUT_S)
            sock.connect(self.registered.arena_path)
            _, descriptors, _, _ = socket.recv_fds(sock, 16, 1)
        return Arena.attach(descriptors[0])

    def close(self) -> None:
        self.client.close()


class Nodes:
    """A cluster, and the drivers that a test has connected to it."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self._drivers: list[DriverClient] = []
        self.to_close: list[BlockingClient] = []

    def add(self, *, cpus: float = 2, **options: Any) -> AgentProcess:
        knobs = {"prestart": "0", **options.pop("system_config", {})}
        options.setdefault("object_store_memory", 64 << 20)
        return self.cluster.start_agent(NodeOptions(num_cpus=cpus, system_config=knobs, **options))

    def driver(self, agent: AgentProcess | None = None, **more: Any) -> DriverClient:
        driver = DriverClient(agent or self.cluster.agents[0], self.cluster.token, **more)
        self._drivers.append(driver)
        return driver

    def head_client(self) -> BlockingClient:
        return BlockingClient(self.cluster.head_address, self.cluster.token, timeout_s=TIMEOUT_S)

    def close(self) -> None:
        for client in (*self._drivers, *self.to_close):
            client.close()
        self.cluster.shutdown()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """No agent yet: `add` them."""
    cluster = LocalCluster(new_session(str(tmp_path)), tcp_host=LOOPBACK)
    cluster.start_head()
    nodes = Nodes(cluster)
    yield nodes
    nodes.close()
    assert os.listdir(tmp_path) == []


@pytest.fixture
def driver(nodes: Nodes) -> DriverClient:
    """A driver on a node of two CPUs."""
    nodes.add()
    return nodes.driver()


def wait_gone(pid: int) -> None:
    """Until the process has ended (or the test's time limit)."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], TIMEOUT_S)[0], f"process {pid} lives on"
    finally:
        os.close(pidfd)


def wait_until(is_so: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    """Ask again and again; each asking is a round trip, which is all the pause there is."""
    import time

    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not become so in time"
