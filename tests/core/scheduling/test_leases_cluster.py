"""Several nodes and one client in simulated time: more tasks than CPUs, all of which wait for each other."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from hypothesis import example, given, settings
from hypothesis import strategies as st

from retinue.core.client.leases import LeasedWorker, ShapePool
from retinue.core.client.tasks import FunctionDef, TaskRecord
from retinue.core.scheduling.leases import (
    Decision,
    DropNeed,
    FreeWorker,
    Grant,
    LeaseTable,
    NeedWorker,
    Redirect,
)
from retinue.core.scheduling.policies import NodeView
from retinue.core.scheduling.resources import NodeResources, to_units
from retinue.core.wire.messages import Shape, WorkerEnv

CLIENT, HOME = b"client", b"n0"
TICK_S, REPORT_S = 0.02, 0.05
LIMIT_S = 20.0


class Simulation:
    """Messages between two ends keep their order; those of different ends pass each other as they like."""

    def __init__(self, seed: int, cpus: list[int], tasks: int, *, is_home_full: bool) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.delays = self.rng.choice([[0.0001], [0.0001, 0.005, 0.1], [0.005, 0.02], [0.02, 0.2]])
        self.start_s = self.rng.choice([0.001, 0.05, 0.2])
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.last: dict[object, float] = {}  # when the latest message on a connection arrived
        self.tables = {
            b"n%d" % i: LeaseTable(node_id=b"n%d" % i, resources=NodeResources({"CPU": n}), rng=self.rng)
            for i, n in enumerate(cpus)
        }
        self.reports: dict[bytes, dict[str, float]] = {}
        self.is_spread = self.rng.random() < 0.5
        self.shape = Shape({"CPU": 1}, WorkerEnv(b"j"), "SPREAD" if self.is_spread else "")
        self.pool = ShapePool(1, is_spread=self.is_spread)
        self.tasks = tasks
        self.begun = 0
        function = FunctionDef(b"key", b"", "meet", [])
        for index in range(tasks):
            self.pool.submit(TaskRecord(b"%d" % index, function))
        if is_home_full:
            self.tables[HOME].place_actor(b"actor", Shape({"CPU": cpus[0]}, WorkerEnv(b"j")), {}, now=0.0)
        for node_id in self.tables:
            self.after(0, lambda node_id=node_id: self.node_ticks(node_id))  # type: ignore[misc]
            self.after(0, lambda node_id=node_id: self.report(node_id))  # type: ignore[misc]
        self.after(0.2, self.client_ticks)

    def after(self, delay: float, event: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.now + delay, self.count, event))

    def send(self, connection: object, event: Callable[[], None]) -> None:
        arrival = max(self.now + self.rng.choice(self.delays), self.last.get(connection, 0.0))
        self.last[connection] = arrival
        self.after(arrival - self.now, event)

    def run(self) -> None:
        while self.begun < self.tasks:
            assert self.now < LIMIT_S, f"{self.begun} of {self.tasks} tasks have begun"
            self.now, _, event = heapq.heappop(self.events)
            event()
            self.pool.check_invariants()

    # the nodes

    def node_ticks(self, node_id: bytes) -> None:
        self.carry(node_id, self.tables[node_id].tick(now=self.now))
        self.after(TICK_S, lambda: self.node_ticks(node_id))

    def report(self, node_id: bytes) -> None:
        """To the head, which tells all nodes of what is new."""
        available = self.tables[node_id].available()
        if self.reports.get(node_id) != available:
            self.reports[node_id] = available
            reports = dict(self.reports)
            for other in self.tables:
                self.send(("view", other), lambda other=other: self.see(other, reports))  # type: ignore[misc]
        self.after(REPORT_S, lambda: self.report(node_id))

    def see(self, node_id: bytes, reports: dict[bytes, dict[str, float]]) -> None:
        views = [NodeView(n, self.tables[n].resources.total, to_units(free)) for n, free in reports.items()]
        self.carry(node_id, self.tables[node_id].cluster_changed(views, now=self.now))

    def carry(self, node_id: bytes, decisions: list[Decision]) -> None:
        table = self.tables[node_id]
        table.check_invariants()
        for decision in decisions:
            match decision:
                case NeedWorker(lease_id):
                    worker_id = node_id + b"%d" % lease_id
                    self.after(
                        self.rng.uniform(0, self.start_s),
                        lambda lease_id=lease_id, worker_id=worker_id: self.carry(  # type: ignore[misc]
                            node_id, table.worker_ready(lease_id, worker_id, now=self.now)
                        ),
                    )
                case Grant():
                    self.send(("client", node_id), lambda d=decision: self.granted(node_id, d))  # type: ignore[misc]
                case Redirect():
                    self.send(("client", node_id), lambda d=decision: self.redirected(node_id, d))  # type: ignore[misc]
                case DropNeed() | FreeWorker():
                    pass
                case _:
                    raise AssertionError(decision)

    def demand(self, node_id: bytes, wanted: int, hops: int) -> None:
        decide = self.tables[node_id].demand
        self.send(
            ("agent", node_id, hops),
            lambda: self.carry(node_id, decide(CLIENT, 1, wanted, now=self.now, shape=self.shape, hops=hops)),
        )

    # the client, as `client.leasing` is one

    def client_ticks(self) -> None:
        self.pool.lose_patience(self.now)
        wanted = self.pool.demand()
        if wanted is not None:
            self.demand(HOME, wanted, 0)
        self.after(0.002, self.client_ticks)

    def granted(self, node_id: bytes, grant: Grant) -> None:
        self.pool.grant_seen(node_id=b"" if node_id == HOME else node_id)
        if not self.pool.pending:
            table = self.tables[node_id]
            self.carry(node_id, table.returned(CLIENT, grant.lease_id, is_reusable=True, now=self.now))
            return
        self.count += 1
        worker = LeasedWorker(self.count, None, self.now)
        self.pool.granted(worker)
        self.begun += len(self.pool.refill(worker))
        self.pool.one_task_only(worker)
        self.after(self.rng.uniform(0, 0.1), lambda: self.blocked(node_id, grant))

    def blocked(self, node_id: bytes, grant: Grant) -> None:
        self.carry(node_id, self.tables[node_id].blocked(grant.worker_id, now=self.now))

    def redirected(self, source: bytes, redirect: Redirect) -> None:
        source = b"" if source == HOME else source
        if redirect.node_id == HOME:
            self.pool.grant_seen(redirect.count, source)
        else:
            wanted = self.pool.redirected(redirect.count, redirect.node_id, source, self.now)
            self.demand(redirect.node_id, wanted, 1)


@given(
    st.integers(0, 2**32),
    st.lists(st.integers(1, 3), min_size=2, max_size=4),
    st.integers(1, 12),
    st.booleans(),
)
@example(42, [2, 1, 1], 11, True)
@example(365, [2, 3, 1, 2], 10, False)
@settings(max_examples=100, deadline=None)
def test_all_begin_however_many_there_are_and_wherever_there_is_room(
    seed: int, cpus: list[int], tasks: int, is_home_full: bool
) -> None:
    Simulation(seed, cpus, tasks, is_home_full=is_home_full).run()
