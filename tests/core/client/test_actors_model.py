"""A caller, the head and an actor that crashes and restarts; messages in any order that can be."""

from __future__ import annotations

import random
from collections import Counter, deque
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.core.client.actors import ALIVE, DEAD, RESTARTING, ActorQueue
from retinue.core.client.tasks import TaskRecord
from retinue.core.wire.messages import ActorInfo, Address

ACTOR = b"a" * 16


class Process:
    """One incarnation, and the caller's connection to it."""

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.is_running = True

    def address(self) -> Address:
        return Address(bytes([self.incarnation]) * 16, b"n" * 16, "")


class Link:
    """A connection; what was sent before it broke may be lost, in both directions."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.is_broken = False
        self.calls: deque[TaskRecord] = deque()
        self.replies: deque[bytes] = deque()
        self.sent: list[TaskRecord] = []


class Simulation:
    def __init__(
        self, rng: random.Random, *, restarts: int, calls: list[tuple[int, int]], out_of_order: bool
    ) -> None:
        self.rng = rng
        self.queue = ActorQueue(ACTOR, out_of_order=out_of_order)
        self.restarts_left = restarts
        self.process: Process | None = Process(0)
        self.processes = {0: self.process}
        self.links: list[Link] = []
        self.all_links: list[Link] = []
        self.news: deque[ActorInfo] = deque([self.info()])
        self.to_connect: deque[int] = deque()
        self.to_submit = deque(
            TaskRecord(str(i).encode(), None, "m", retries_left=retries, unready=unready)
            for i, (retries, unready) in enumerate(calls)
        )
        self.retries = {str(i).encode(): retries for i, (retries, _) in enumerate(calls)}
        self.unready: list[TaskRecord] = []
        self.executed: Counter[bytes] = Counter()
        self.sent: Counter[bytes] = Counter()
        self.results: Counter[bytes] = Counter()
        self.failures: Counter[bytes] = Counter()

    def info(self) -> ActorInfo:
        if self.process is None:
            return ActorInfo(ACTOR, DEAD, 0)
        return ActorInfo(ACTOR, ALIVE, self.process.incarnation, self.process.address())

    # --- the caller, as client.actor_calls does it

    def fail(self, tasks: list[TaskRecord]) -> None:
        for task in tasks:
            self.failures[task.task_id] += 1

    def send(self, tasks: list[TaskRecord]) -> None:
        link = self.queue.conn
        for task in tasks:
            assert task.unready == 0
            assert task.seq == len(link.sent)
            link.sent.append(task)
            self.sent[task.task_id] += 1
            if not link.is_broken:
                link.calls.append(task)

    def submit(self) -> None:
        task = self.to_submit.popleft()
        if task.unready:
            self.unready.append(task)
        if self.queue.state == DEAD:
            self.fail([task])
        elif self.queue.submit(task):
            self.send([task])

    def make_ready(self) -> None:
        self.unready.pop(self.rng.randrange(len(self.unready))).unready = 0
        self.drain()

    def drain(self) -> None:
        self.send(self.queue.sendable())

    def read_news(self) -> None:
        info = self.news.popleft()
        must_connect, failed = self.queue.update(info, b"")
        self.fail(failed)
        if must_connect:
            self.to_connect.append(info.incarnation)

    def connect(self) -> None:
        incarnation = self.to_connect.popleft()
        process = self.processes[incarnation]
        queue = self.queue
        if not process.is_running:
            self.news.append(self.info())  # nobody listens: the caller asks the head again
        elif not (queue.incarnation > incarnation or queue.state == DEAD or queue.conn is not None):
            link = Link(process)
            self.links.append(link)
            self.all_links.append(link)
            self.fail(queue.connected(link, incarnation))
            self.drain()

    def notice_break(self, link: Link) -> None:
        self.links.remove(link)
        if self.queue.conn is link:
            self.queue.disconnected()
            if self.queue.state != DEAD:
                self.news.append(self.info())  # the caller asks

    def read_reply(self, link: Link) -> None:
        task_id = link.replies.popleft()
        if self.queue.answered(task_id) is not None:
            self.results[task_id] += 1

    # --- the actor

    def execute(self, link: Link) -> None:
        task = link.calls.popleft()
        self.executed[task.task_id] += 1
        link.replies.append(task.task_id)

    def crash(self) -> None:
        assert self.process is not None
        self.process.is_running = False
        for link in self.links:
            if link.process is self.process:
                self.break_link(link)
        if self.restarts_left == 0:
            self.process = None
        else:
            self.restarts_left -= 1
            incarnation = self.process.incarnation + 1
            self.news.append(ActorInfo(ACTOR, RESTARTING, incarnation))
            self.process = self.processes[incarnation] = Process(incarnation)
        self.news.append(self.info())

    def break_link(self, link: Link) -> None:
        link.is_broken = True
        link.calls.clear()
        for _ in range(self.rng.randint(0, len(link.replies))):
            link.replies.pop()

    # --- all of it

    def step(self, *, disturb: bool) -> bool:
        moves: list[tuple[Any, tuple[Any, ...]]] = []
        if self.to_submit:
            moves.append((self.submit, ()))
        if self.unready:
            moves.append((self.make_ready, ()))
        if self.news:
            moves.append((self.read_news, ()))
        if self.to_connect:
            moves.append((self.connect, ()))
        for link in self.links:
            if link.replies:
                moves.append((self.read_reply, (link,)))
            elif link.is_broken:
                moves.append((self.notice_break, (link,)))
            if link.calls:
                moves.append((self.execute, (link,)))
            if disturb and not link.is_broken and self.rng.random() < 0.1:
                moves.append((self.break_link, (link,)))
        if disturb and self.process is not None and self.rng.random() < 0.05:
            moves.append((self.crash, ()))
        if not moves:
            return False
        function, arguments = self.rng.choice(moves)
        function(*arguments)
        self.queue.check_invariants()
        return True


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    restarts=st.integers(0, 3),
    calls=st.lists(st.tuples(st.sampled_from([0, 0, 1, 3, -1]), st.integers(0, 1)), min_size=1, max_size=25),
    out_of_order=st.booleans(),
    disturbance=st.integers(0, 200),
)
def test_every_call_ends_once_in_order_and_is_repeated_no_more_than_allowed(
    seed, restarts, calls, out_of_order, disturbance
):
    simulation = Simulation(random.Random(seed), restarts=restarts, calls=calls, out_of_order=out_of_order)
    for _ in range(disturbance):
        if not simulation.step(disturb=True):
            break
    while simulation.step(disturb=False):
        pass
    for task_id, retries in simulation.retries.items():
        assert simulation.results[task_id] + simulation.failures[task_id] == 1, (
            f"call {task_id!r} did not end once"
        )
        if retries >= 0:
            assert simulation.sent[task_id] <= 1 + retries
            assert simulation.executed[task_id] <= 1 + retries
        if retries < 0 and simulation.process is not None:
            assert simulation.results[task_id] == 1
    if not out_of_order:
        for link in simulation.all_links:
            numbers = [int(t.task_id) for t in link.sent]
            assert numbers == sorted(numbers), "a connection saw calls out of order"
    assert not simulation.queue.is_busy()
