"""What the calling side says to node agents."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from retinue.core.client.leasing import LeaseClient
from retinue.core.client.tasks import FunctionDef, TaskRecord
from retinue.core.wire.messages import Address, LeaseDemand, LeaseRedirect, Shape, WorkerEnv

HOME = b"home"
SHAPE = Shape({"CPU": 1}, WorkerEnv(b"job1"))


class Recorder:
    """An agent's connection that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.is_closed = False
        self.context: Any = None

    def send(self, message: Any, payload: bytes = b"") -> None:
        self.sent.append(message)


def test_redirected_home_it_asks_there_for_all_that_it_needs() -> None:
    runtime: Any = SimpleNamespace(lock=threading.Lock(), node_id=HOME)
    client, agent = LeaseClient(runtime), Recorder()
    address = Address(b"agent", HOME, "/agent")
    client.use_agent(address, agent)  # type: ignore[arg-type]
    pool = client.pool_for(SHAPE, b"shape")
    for index in range(5):
        pool.submit(TaskRecord(b"%d" % index, FunctionDef(b"key", b"", "f", [])))
    client.send_demand(pool)
    assert client.on_agent_message(agent, LeaseRedirect(pool.shape_id, 1, address), b"")  # type: ignore[arg-type]
    assert [(d.wanted, d.hops) for d in agent.sent if isinstance(d, LeaseDemand)] == [(5, 0), (5, 0)]
