"""Workers, an agent and a caller, their messages in any order: every task is done, no worker idles."""

from __future__ import annotations

import random
from collections import Counter, deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.core.client.leases import IDLE_LEASE_S, LeasedWorker, ShapePool
from retinue.core.client.tasks import FunctionDef, TaskRecord

DURATIONS_US = {"short": 10, "middling": 300, "long": 50_000}


class Worker:
    """Runs what comes, in order; may hand back what it has not started."""

    def __init__(self, lease_id: int) -> None:
        self.lease_id = lease_id
        self.inbox: deque[list[TaskRecord]] = deque()  # from the caller
        self.outbox: deque[tuple[str, Any]] = deque()  # to the caller
        self.queue: deque[TaskRecord] = deque()
        self.running: TaskRecord | None = None
        self.is_dead = False


class Agent:
    """Grants leases while it has room, to a demand that it knows as a level."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.wanted = 0
        self.inbox: deque[tuple[str, int]] = deque()
        self.outbox: deque[tuple[str, int]] = deque()
        self.leased: set[int] = set()
        self.ids = iter(range(1, 1_000_000))


class Simulation:
    """The caller does what `client.submission` does; all else is drawn from `rng`."""

    def __init__(self, rng: random.Random, capacity: int, kinds: list[str]) -> None:
        self.rng = rng
        self.now = 0.0
        self.pool = ShapePool(1)
        self.agent = Agent(capacity)
        self.workers: dict[int, Worker] = {}
        self.functions = {k: FunctionDef(k.encode(), b"", k, []) for k in DURATIONS_US}
        self.to_submit = deque(
            TaskRecord(f"{i}".encode(), self.functions[kind]) for i, kind in enumerate(kinds)
        )
        self.done: Counter[bytes] = Counter()
        self.started: Counter[bytes] = Counter()
        self.crashes = 0

    # --- the caller

    def send(self, leased: LeasedWorker, tasks: list[TaskRecord]) -> None:
        self.workers[leased.lease_id].inbox.append(tasks)

    def feed(self) -> None:
        for leased, tasks in self.pool.feed():
            self.send(leased, tasks)

    def ask(self) -> None:
        wanted = self.pool.demand()
        if wanted is not None:
            self.agent.inbox.append(("demand", wanted))

    def submit(self) -> None:
        task = self.to_submit.popleft()
        leased = self.pool.submit(task)
        if leased is not None:
            self.send(leased, [task])
        elif self.pool.demand_grew():
            self.ask()

    def tick(self) -> None:
        self.ask()
        for leased in self.pool.returnable(self.now):
            self.give_back(leased)

    def give_back(self, leased: LeasedWorker) -> None:
        assert not leased.tasks
        if self.pool.removed(leased.lease_id) is not None:
            self.agent.inbox.append(("return", leased.lease_id))

    def from_agent(self) -> None:
        kind, lease_id = self.agent.outbox.popleft()
        pool = self.pool
        if kind == "grant":
            pool.grant_seen()
            if not pool.pending:
                self.agent.inbox.append(("return", lease_id))
                return
            leased = LeasedWorker(lease_id, lease_id, self.now)
            self.workers[lease_id] = Worker(lease_id)
            pool.granted(leased)
            self.send(leased, pool.refill(leased))
        elif kind == "recall":
            leased_or_none = pool.recalled(lease_id)
            if leased_or_none is not None and not leased_or_none.tasks:
                self.give_back(leased_or_none)
        elif kind == "lost":
            found = pool.workers.get(lease_id)
            if found is None:
                return
            while self.workers[lease_id].outbox:  # what it answered before it died
                self.from_worker(self.workers[lease_id])
            if pool.removed(lease_id) is None:
                return
            again = list(found.tasks.values())
            found.tasks.clear()
            pool.resubmit(again)
            self.feed()
            self.ask()

    def from_worker(self, worker: Worker) -> None:
        leased = self.pool.workers.get(worker.lease_id)
        kind, value = worker.outbox.popleft()
        if leased is None:
            return
        if kind == "reply":
            task, exec_us = value
            if self.pool.finished(leased, task.task_id, exec_us, self.now) is not None:
                self.done[task.task_id] += 1
            tasks = self.pool.refill(leased)
            if tasks:
                self.send(leased, tasks)
            if leased.is_leaving and not leased.tasks:
                self.give_back(leased)
        else:
            self.pool.resubmit(self.pool.handed_back(leased, value))
            self.feed()
            if leased.is_leaving and not leased.tasks:
                self.give_back(leased)
            self.ask()

    # --- the agent

    def to_agent(self) -> None:
        agent = self.agent
        kind, value = agent.inbox.popleft()
        if kind == "demand":
            agent.wanted = value
        else:
            agent.leased.discard(value)
            self.workers.pop(value, None)

    def grant(self) -> None:
        agent = self.agent
        agent.wanted -= 1
        lease_id = next(agent.ids)
        agent.leased.add(lease_id)
        agent.outbox.append(("grant", lease_id))

    # --- workers

    def take(self, worker: Worker) -> None:
        worker.queue.extend(worker.inbox.popleft())

    def start(self, worker: Worker) -> None:
        worker.running = worker.queue.popleft()
        self.started[worker.running.task_id] += 1

    def finish(self, worker: Worker) -> None:
        assert worker.running is not None
        exec_us = DURATIONS_US[worker.running.function.name]
        worker.outbox.append(("reply", (worker.running, exec_us)))
        worker.running = None

    def hand_back(self, worker: Worker) -> None:
        # The running task may be over by the time this is sent: `finish` can come first.
        ids = [t.task_id for t in worker.queue]
        worker.queue.clear()
        worker.outbox.append(("hand back", ids))

    def crash(self, worker: Worker) -> None:
        worker.is_dead = True
        worker.queue.clear()
        worker.inbox.clear()
        worker.running = None
        self.crashes += 1
        self.agent.leased.discard(worker.lease_id)
        self.agent.outbox.append(("lost", worker.lease_id))

    # --- all of it

    def moves(self, *, disturb: bool) -> list[tuple[Any, tuple[Any, ...]]]:
        agent = self.agent
        moves: list[tuple[Any, tuple[Any, ...]]] = []
        if self.to_submit:
            moves.append((self.submit, ()))
        if agent.inbox:
            moves.append((self.to_agent, ()))
        if agent.outbox:
            moves.append((self.from_agent, ()))
        if agent.wanted > 0 and len(agent.leased) < agent.capacity:
            moves.append((self.grant, ()))
        for worker in self.workers.values():
            if worker.outbox:
                moves.append((self.from_worker, (worker,)))
            if worker.is_dead:
                continue
            if worker.inbox:
                moves.append((self.take, (worker,)))
            if worker.running is None and worker.queue:
                moves.append((self.start, (worker,)))
            if worker.running is not None:
                moves.append((self.finish, (worker,)))
            if disturb:
                if worker.queue:
                    moves.append((self.hand_back, (worker,)))
                if self.rng.random() < 0.02:
                    moves.append((self.crash, (worker,)))
        if disturb and agent.leased and self.rng.random() < 0.2:
            lease_id = self.rng.choice(sorted(agent.leased))
            moves.append((lambda: agent.outbox.append(("recall", lease_id)), ()))
        if disturb and self.rng.random() < 0.2:
            moves.append((self.tick, ()))
        return moves

    def step(self, *, disturb: bool) -> bool:
        self.now += self.rng.choice([0.0, 0.001, 0.1])
        moves = self.moves(disturb=disturb)
        if not moves:
            return False
        function, arguments = self.rng.choice(moves)
        function(*arguments)
        self.pool.check_invariants()
        self.check_nobody_idles()
        return True

    def check_nobody_idles(self) -> None:
        if self.pool.pending:
            idle = [w for w in self.pool.workers.values() if not w.tasks and not w.is_leaving]
            assert not idle, "a worker idles while tasks wait"

    def settle(self) -> None:
        """Only what must happen by itself, with ticks."""
        while self.step(disturb=False):
            pass
        self.tick()
        while self.step(disturb=False):
            pass


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    capacity=st.integers(1, 4),
    kinds=st.lists(st.sampled_from(sorted(DURATIONS_US)), min_size=1, max_size=60),
    disturbance=st.integers(0, 400),
)
def test_every_task_is_done_whatever_is_handed_back_recalled_or_lost(seed, capacity, kinds, disturbance):
    simulation = Simulation(random.Random(seed), capacity, kinds)
    for _ in range(disturbance):
        if not simulation.step(disturb=True):
            break
    for _ in range(3):
        simulation.settle()
    assert set(simulation.done) == {f"{i}".encode() for i in range(len(kinds))}
    assert max(simulation.done.values()) == 1
    if not simulation.crashes:
        assert max(simulation.started.values()) == 1, "a task ran twice although no worker died"
    simulation.now += IDLE_LEASE_S
    simulation.settle()
    assert simulation.agent.leased == set(), "leases that nobody gives back"
    assert simulation.agent.wanted == 0, "the agent was left with a demand"
    assert not simulation.pool.workers


@pytest.mark.parametrize("kind", sorted(DURATIONS_US))
def test_workers_share_a_burst(kind):
    simulation = Simulation(random.Random(1), 4, [kind] * 400)
    while simulation.to_submit:
        simulation.submit()
    simulation.settle()
    assert len(simulation.done) == 400
