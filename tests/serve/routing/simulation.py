"""Routers and replicas in simulated time: real `ReplicaScheduler` and `Admission`, everything else made up.

Messages between a router and a replica take the pair's own time and stay in order, as on one connection;
notices may be lost. One seed gives one run.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from retinue.serve.routing.admission import Admission
from retinue.serve.routing.scheduler import Replica, ReplicaScheduler, Waiting

TICK_S = 0.02


@dataclass(eq=False)
class Request:
    """One request, and what became of it."""

    number: int
    arrived: float
    before: int  # requests that waited anywhere when it came
    accepted_before: int  # by all replicas, when it came
    deadline: float = 0.0
    model_id: str = ""
    turn: int = 0
    accepted: float = -1.0
    overtaken: int = 0  # requests that replicas have accepted while it waited
    outcome: str = ""
    replica: str = ""

    @property
    def wait_s(self) -> float:
        return self.accepted - self.arrived


@dataclass(eq=False)
class SimReplica:
    name: str
    admission: Admission
    service_s: Callable[[], float]
    is_alive: bool = True
    running: set[Request] = field(default_factory=set)
    most: int = 0
    busy_s: float = 0.0  # slots times seconds
    changed: float = 0.0
    next_tick: float = 0.0


class SimRouter:
    """What the shell does: carry events into the scheduler, and decisions out."""

    def __init__(self, sim: Simulation, name: str) -> None:
        self.sim = sim
        self.name = name
        self.scheduler = ReplicaScheduler(sim.rng.random)
        self.is_ticking = False
        self.waiting: dict[Request, Waiting] = {}
        self.latency_s = {r.name: sim.rng.uniform(*sim.latency_s) for r in sim.replicas}
        for replica in sim.replicas:
            self.scheduler.usable(self.scheduler.add(replica.name, replica.admission.max_ongoing))

    def request(self, deadline_s: float = 0.0, model_id: str = "") -> Request:
        sim = self.sim
        deadline = sim.now + deadline_s if deadline_s else 0.0
        request = Request(len(sim.requests), sim.now, sim.waiting, sim.accepted, deadline, model_id)
        sim.requests.append(request)
        replica = self.scheduler.take_for(model_id, "") if model_id else self.scheduler.take()
        request.turn = self.scheduler.turn
        if replica is None:
            self._wait(request)
        else:
            self._offer(request, replica)
        return request

    def _wait(self, request: Request) -> None:
        waiting = self.scheduler.wait(
            request.turn,
            self.sim.now,
            request,
            request.arrived,
            deadline=request.deadline,
            model_id=request.model_id,
        )
        if waiting is None:
            self.sim.end(self, request, "refused")
            return
        self.waiting[request] = waiting
        self.assign()
        if not self.is_ticking and self.scheduler.queued:
            self.is_ticking = True
            self.sim.after(TICK_S, self._tick)

    def _tick(self) -> None:
        self.is_ticking = False
        for waiting in self.scheduler.tick(self.sim.now):
            del self.waiting[waiting.token]
            self.sim.end(self, waiting.token, "late")
        self.assign()
        if self.scheduler.queued:
            self.is_ticking = True
            self.sim.after(TICK_S, self._tick)

    def cancel(self, request: Request) -> None:
        waiting = self.waiting.pop(request, None)
        if waiting is not None:
            self.scheduler.cancel(waiting)
            self._leave()
            self.sim.end(self, request, "cancelled")

    def assign(self) -> None:
        for waiting, replica in self.scheduler.assign(self.sim.now):
            del self.waiting[waiting.token]
            self._offer(waiting.token, replica)
        self._leave()
        for replica in self.scheduler.telling:
            self.sim.messages += 1
            self.sim.after(
                self.latency_s[replica.replica_id], self.sim.waits, self, replica.replica_id, replica.told
            )
        self.scheduler.telling = []
        self.scheduler.check_invariants()

    def _leave(self) -> None:
        for replica in self.scheduler.leaving:
            self.sim.after(self.latency_s[replica.replica_id], self.sim.left, self, replica.replica_id)
        self.scheduler.leaving = []

    def _offer(self, request: Request, replica: Replica) -> None:
        self.sim.after(self.latency_s[replica.replica_id], self.sim.offered, self, request, replica)

    # --- what comes back

    def refused(self, request: Request, replica: Replica, load: int) -> None:
        self.scheduler.refused(replica, self.sim.now, load)
        self._wait(request)

    def replied(self, request: Request, replica: Replica, load: int) -> None:
        self.scheduler.done(replica, load)
        self.sim.end(self, request, "done")
        if self.scheduler.queued:
            self.assign()

    def noticed(self, replica_name: str) -> None:
        replica = self.scheduler.replicas.get(replica_name)
        if replica is not None:
            self.scheduler.noticed(replica, self.sim.now)
            self.assign()

    def lost(self, request: Request, replica: Replica, was_accepted: bool) -> None:
        self.scheduler.done(replica)
        self.scheduler.remove(replica.replica_id)
        if was_accepted:
            self.sim.end(self, request, "lost")
        else:
            self._wait(request)


class Simulation:
    def __init__(
        self,
        seed: int,
        *,
        routers: int,
        limits: list[int],
        service_s: Callable[[random.Random, int], float],
        latency_s: tuple[float, float] = (0.00005, 0.0002),
        loss: float = 0.0,
    ) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 0.0
        self.latency_s = latency_s
        self.loss = loss
        self.requests: list[Request] = []
        self.accepted = 0
        self.refusals = 0
        self.notices = 0
        self.messages = 0  # of how long routers wait
        self.on_end: Callable[[SimRouter, Request], None] = lambda router, request: None
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self.replicas = [
            SimReplica(f"r{i}", Admission(limit), lambda i=i: service_s(self.rng, i))  # type: ignore[misc]
            for i, limit in enumerate(limits)
        ]
        self._by_name = {replica.name: replica for replica in self.replicas}
        self.routers = [SimRouter(self, f"router{i}") for i in range(routers)]

    def after(self, delay_s: float, function: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._numbers), function, args))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, function, args = heapq.heappop(self._events)
            function(*args)
        self.now = max(self.now, until)
        for replica in self.replicas:
            self._count(replica)

    def run_out(self, limit_s: float = 600.0) -> None:
        """Until nothing happens any more."""
        until = self.now + limit_s
        while self._events and self._events[0][0] <= until:
            self.now, _, function, args = heapq.heappop(self._events)
            function(*args)

    # --- at the replicas

    def offered(self, router: SimRouter, request: Request, replica: Replica) -> None:
        at = self._by_name[replica.replica_id]
        back_s = router.latency_s[at.name]
        if not at.is_alive:
            self.after(back_s, router.lost, request, replica, False)
            return
        if not at.admission.offer(router.name, self.now):
            self.refusals += 1
            self.after(back_s, router.refused, request, replica, at.admission.ongoing)
            return
        at.admission.check_invariants()
        self._count(at)
        self.accepted += 1
        request.accepted = self.now
        request.replica = at.name
        request.overtaken = self.accepted - request.accepted_before - 1
        at.running.add(request)
        at.most = max(at.most, len(at.running))
        self.after(at.service_s(), self._finished, router, request, replica, at)

    def _finished(self, router: SimRouter, request: Request, replica: Replica, at: SimReplica) -> None:
        if not at.is_alive:
            return  # told when it died
        self._count(at)
        at.running.discard(request)
        self._notice(at, at.admission.finished(self.now))
        self.after(router.latency_s[at.name], router.replied, request, replica, at.admission.ongoing)

    def left(self, router: SimRouter, replica_name: str) -> None:
        at = self._by_name[replica_name]
        if at.is_alive:
            self._notice(at, at.admission.left(router.name, self.now))

    def waits(self, router: SimRouter, replica_name: str, since: float) -> None:
        at = self._by_name[replica_name]
        if at.is_alive:
            self._notice(at, at.admission.waits(router.name, since, self.now))

    def _notice(self, at: SimReplica, names: Any) -> None:
        for name in names:
            self.notices += 1
            if self.rng.random() >= self.loss:
                router = next(r for r in self.routers if r.name == name)
                self.after(router.latency_s[at.name], router.noticed, at.name)
        due = at.admission.next_tick
        if due and not at.next_tick:
            at.next_tick = due
            self.after(due - self.now + 0.001, self._tick, at)

    def _tick(self, at: SimReplica) -> None:
        at.next_tick = 0.0
        if at.is_alive:
            self._notice(at, at.admission.tick(self.now))

    def _count(self, at: SimReplica) -> None:
        at.busy_s += len(at.running) * (self.now - at.changed)
        at.changed = self.now

    def die(self, number: int) -> None:
        """A replica ends at once, with what it runs. Its routers hear of it when their connections end."""
        at = self.replicas[number]
        self._count(at)
        at.is_alive = False
        running, at.running = at.running, set()
        for router in self.routers:
            replica = router.scheduler.replicas.get(at.name)
            if replica is not None:
                self.after(router.latency_s[at.name], router.scheduler.remove, at.name)
        for request in running:
            router = self.router_of[request]
            replica = router.scheduler.replicas[at.name]
            self.after(router.latency_s[at.name], router.lost, request, replica, True)

    @property
    def router_of(self) -> dict[Request, SimRouter]:
        return self._router_of

    _router_of: dict[Request, SimRouter]

    def end(self, router: SimRouter, request: Request, outcome: str) -> None:
        assert not request.outcome, f"request {request.number} ended twice (seed {self.seed})"
        request.outcome = outcome
        self.on_end(router, request)

    # --- load

    def closed_loop(self, clients: int) -> None:
        """Each router has so many clients, each of which sends its next request at once."""
        self._router_of = {}

        def again(router: SimRouter, request: Request) -> None:
            self._router_of.pop(request, None)
            self.send(router)

        self.on_end = again
        for router in self.routers:
            for _ in range(clients):
                # Not in step.
                self.after(self.rng.uniform(0.0, 0.01), self.send, router)

    def open_loop(self, rate: float, until: float, **options: Any) -> None:
        """Each router gets requests at random times."""
        self._router_of = {}

        def arrive(router: SimRouter) -> None:
            if self.now < until:
                self.send(router, **options)
                self.after(self.rng.expovariate(rate), arrive, router)

        for router in self.routers:
            self.after(self.rng.expovariate(rate), arrive, router)

    def send(self, router: SimRouter, **options: Any) -> None:
        request = router.request(**options)
        self._router_of[request] = router

    # --- what came of it

    def utilisation(self, seconds: float) -> float:
        slots = sum(replica.admission.max_ongoing for replica in self.replicas)
        return sum(replica.busy_s for replica in self.replicas) / (slots * seconds)

    @property
    def waiting(self) -> int:
        """Requests that no replica has accepted, those that are on their way to one among them."""
        return sum(not r.outcome and r.accepted < 0.0 for r in self.requests)

    def unfairness(self, *, after: float = 0.0) -> float:
        """The most that any request waited, in shares of what is fair.

        Fair is one queue for all routers: as many requests are accepted before one as waited anywhere when it
        came, and as there are slots, which it may just have missed.
        """
        slots = sum(replica.admission.max_ongoing for replica in self.replicas)
        worst = 0.0
        for request in self.requests:
            if request.accepted >= 0.0 and request.arrived >= after:
                worst = max(worst, request.overtaken / (request.before + slots))
        return worst
