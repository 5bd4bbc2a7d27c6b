"""A whole node in simulated time: random clients, sizes, nesting, deaths. Everything finishes."""

from __future__ import annotations

import heapq
import random
from collections.abc import Hashable

from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.core.scheduling.leases import (
    Decision,
    DropNeed,
    EndWorker,
    FreeWorker,
    Grant,
    LeaseTable,
    Lost,
    NeedWorker,
    Recall,
    Refuse,
)
from retinue.core.scheduling.resources import UNIT, NodeResources
from retinue.core.wire.messages import Shape, WorkerEnv

TICK_S = 0.02
LIMIT_S = 2_000.0


class Client:
    def __init__(self, name: Hashable, tasks: int, shape: Shape) -> None:
        self.name = name
        self.tasks = tasks
        self.shape = shape
        self.recalled: set[int] = set()
        self.parent: bytes = b""  # a worker that is blocked until this client's tasks are done


class Simulation:
    """Clients keep their leases while they have tasks, as real ones do; tasks may wait for children."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.cpus = self.rng.randint(1, 4)
        self.resources = NodeResources({"CPU": self.cpus, "GPU": 2, "x": 1})
        self.table = LeaseTable(node_id=b"n", resources=self.resources, rng=self.rng)
        self.clients: dict[Hashable, Client] = {}
        self.events: list[tuple[float, int, str, object]] = []
        self.now = 0.0
        self.count = 0
        self.lent = 0
        self.running: dict[int, Grant] = {}
        for index in range(self.rng.randint(1, 4)):
            self.at(self.rng.uniform(0, 2), "join", (f"c{index}", self.rng.choice([1, 3, 30])))
        self.at(0.0, "tick", None)

    def at(self, delay: float, what: str, argument: object) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.now + delay, self.count, what, argument))

    def run(self) -> None:
        while self.clients or any(what == "join" for _, _, what, _ in self.events):
            assert self.now < LIMIT_S, f"starved: {[(c.name, c.tasks) for c in self.clients.values()]}"
            self.now, _, what, argument = heapq.heappop(self.events)
            getattr(self, what)(argument)
            self.check()

    def check(self) -> None:
        self.table.check_invariants()
        if not self.lent:
            assert self.resources.free["CPU"] >= 0

    def join(self, what: tuple[Hashable, int], parent: bytes = b"") -> None:
        name, tasks = what
        cpu = self.rng.choice([0.5, 1, 1, 1, self.cpus])
        resources: dict[str, float] = {"CPU": cpu}
        if not parent and self.rng.random() < 0.3:  # a child could wait for its parent's GPU for ever
            resources["GPU"] = self.rng.choice([0.5, 1, 2])
        client = Client(name, tasks, Shape(resources, WorkerEnv(b"j")))
        client.parent = parent
        self.clients[name] = client
        self.carry(self.table.demand(name, 1, tasks, now=self.now, shape=client.shape))

    def tick(self, _: object) -> None:
        self.carry(self.table.tick(now=self.now))
        self.at(TICK_S, "tick", None)

    def carry(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            match decision:
                case NeedWorker(lease_id):
                    self.at(self.rng.uniform(0, 0.01), "worker", lease_id)
                case Grant():
                    self.running[decision.lease_id] = decision
                    self.begin(decision)
                case Recall(client_id, lease_id):
                    assert lease_id not in self.clients[client_id].recalled
                    self.clients[client_id].recalled.add(lease_id)
                case Lost(client_id, lease_id):
                    self.running.pop(lease_id, None)
                    client = self.clients[client_id]
                    client.tasks += 1
                    self.carry(self.table.demand(client.name, 1, self.waiting(client), now=self.now))
                case EndWorker(worker_id):
                    self.carry(self.table.worker_died(worker_id, now=self.now))
                case Refuse(client_id):
                    client = self.clients[client_id]
                    self.carry(self.table.demand(client.name, 1, self.waiting(client), now=self.now))
                case FreeWorker() | DropNeed():
                    pass
                case _:
                    raise AssertionError(decision)

    def waiting(self, client: Client) -> int:
        return max(0, client.tasks)

    def worker(self, lease_id: object) -> None:
        assert isinstance(lease_id, int)
        if self.rng.random() < 0.1:
            self.carry(self.table.worker_failed(lease_id, "", "", now=self.now))
        else:
            self.carry(self.table.worker_ready(lease_id, b"w%d" % lease_id, now=self.now))

    def begin(self, grant: Grant) -> None:
        """Run a task on the lease, or give it back if there is none."""
        client = self.clients.get(grant.client_id)
        if client is None:
            return
        if client.tasks <= 0 or grant.lease_id in client.recalled:
            del self.running[grant.lease_id]
            self.carry(self.table.returned(client.name, grant.lease_id, is_reusable=True, now=self.now))
            self.maybe_leave(client)
            return
        client.tasks -= 1
        if self.rng.random() < 0.2 and len(self.clients) < 12:
            self.at(self.rng.uniform(0, 0.05), "nest", grant)
        elif self.rng.random() < 0.05:
            self.at(self.rng.uniform(0, 0.2), "die", grant)
        else:
            self.at(self.rng.choice([0.001, 0.01, 0.3]), "finish", grant)

    def nest(self, grant: Grant) -> None:
        if grant.lease_id in self.running:
            self.count += 1
            self.carry(self.table.blocked(grant.worker_id, now=self.now))
            self.lent += 1
            self.join((grant.worker_id, self.rng.randint(1, 3)), parent=grant.worker_id)

    def die(self, grant: Grant) -> None:
        if grant.lease_id in self.running:
            self.carry(self.table.worker_died(grant.worker_id, now=self.now))

    def finish(self, grant: Grant) -> None:
        if grant.lease_id in self.running:
            self.begin(grant)

    def maybe_leave(self, client: Client) -> None:
        if client.tasks > 0 or any(grant.client_id == client.name for grant in self.running.values()):
            return
        if self.clients.pop(client.name, None) is None:
            return
        self.carry(self.table.client_gone(client.name, now=self.now))
        if client.parent:
            self.carry(self.table.unblocked(client.parent))
            parent = next((g for g in self.running.values() if g.worker_id == client.parent), None)
            if parent is not None:
                self.finish(parent)
            self.lent -= self.resources.free["CPU"] >= 0


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_every_task_of_every_client_finishes_and_everything_is_returned(seed: int) -> None:
    simulation = Simulation(seed)
    simulation.run()
    simulation.table.check_invariants()
    for lease in list(simulation.table._leases.values()):
        assert not lease.worker_id
    assert not simulation.table.is_waiting()
    assert all(simulation.resources.free[name] <= total for name, total in simulation.resources.total.items())
    assert simulation.resources.free["CPU"] <= simulation.cpus * UNIT
