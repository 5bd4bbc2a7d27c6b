"""The leases of one node: who wants workers, who gets them next, and who has to give one up.

A client (driver, worker by its id, or an actor to be placed) states a *demand* per shape: how many workers it
wants beyond those it has. Demand is a level: a new one replaces the old. The table serves whoever has
least: first the client, then the shape with the fewest leases, in turn among equals. Where nothing is
free it recalls leases from those who have more; a lease whose worker is blocked in `get` lends its CPUs
meanwhile and is never recalled, because what it waits for may be what is waiting here.

Lives here: resources of this node, leases, waiting demand, redirects by the cluster view. Does not:
processes (the pool provides workers for `NeedWorker`), connections, clocks.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Collection, Hashable, Iterable

from msgspec import Struct, field

from retinue.core.scheduling.policies import (
    SPREAD,
    Fits,
    Infeasible,
    NodeView,
    Wait,
    choose_node,
    is_known_strategy,
)
from retinue.core.scheduling.resources import (
    Allocation,
    NodeResources,
    ResourceError,
    Units,
    fits,
    largest_of,
    subtract,
    to_floats,
    to_units,
)
from retinue.core.wire.messages import Shape, WorkerEnv

# A demand that was sent here by another node stays here after this many hops, even if it must wait.
MAX_HOPS = 2
# A lease is not recalled younger than this: handing a worker over costs about 1 ms of its time.
MIN_LEASE_S = 0.02
# How long the resources that a large request collects are kept from smaller ones, and how long after
# that the smaller ones go first again: neither may starve the other.
RESERVE_S = 1.0
RESERVE_AGAIN_S = 1.0
# A redirected share of a large demand: more is decided when the next view of the cluster is here.
REDIRECT_SHARE = 16
# How long what was sent to another node counts as used there, if no news of any node come. The head does not
# push a report that equals the last one: that of a task which has begun and lends its CPUs already.
SENT_AWAY_S = 0.5
WARN_AFTER_S = 1.0
WARN_EVERY_S = 30.0
MAX_START_FAILURES = 3
ACTOR_SHAPE_ID = -1

ClientId = Hashable


class NeedWorker(Struct, frozen=True):
    """Provide a worker for the lease; answer `worker_ready` or `worker_failed`."""

    lease_id: int
    env: WorkerEnv
    is_for_good: bool = False  # an actor: the worker does not come back


class DropNeed(Struct, frozen=True):
    """The lease needs no worker any more."""

    lease_id: int


class Grant(Struct, frozen=True):
    client_id: ClientId
    shape_id: int
    lease_id: int
    worker_id: bytes
    instances: dict[str, list[float]]


class Redirect(Struct, frozen=True):
    client_id: ClientId
    shape_id: int
    count: int
    node_id: bytes


class Refuse(Struct, frozen=True):
    """The demand is dropped. `kind` is the name of an exception."""

    client_id: ClientId
    shape_id: int
    kind: str
    message: str


class Recall(Struct, frozen=True):
    client_id: ClientId
    lease_id: int


class Lost(Struct, frozen=True):
    """The lease's worker died."""

    client_id: ClientId
    lease_id: int
    worker_id: bytes


class FreeWorker(Struct, frozen=True):
    """The worker is no longer leased."""

    worker_id: bytes
    is_reusable: bool


class EndWorker(Struct, frozen=True):
    """End the worker's process; answer `worker_died`."""

    worker_id: bytes
    reason: str


class Warn(Struct, frozen=True):
    """For the client's eyes: its demand fits on no node as they are."""

    client_id: ClientId
    shape_id: int
    message: str


Decision = NeedWorker | DropNeed | Grant | Redirect | Refuse | Recall | Lost | FreeWorker | EndWorker | Warn


class Party(Struct, eq=False):
    """One client's demand for one shape. What is shared is shared between these."""

    client: Client
    shape_id: int
    env: WorkerEnv
    strategy: str
    request: Units  # what a lease holds
    placement: Units  # what must be free to begin it
    turn: int
    is_actor: bool = False
    hops: int = 0
    wanted: int = 0  # includes the leases that wait for their worker
    starting: set[int] = field(default_factory=set)
    active: int = 0  # leases, those waiting for their worker included, blocked ones not
    failures: int = 0
    infeasible: str = ""
    undealt: int = 0  # of `wanted`, to spread: may still be sent to a node that is busy
    full_view: int = -1  # in that view of the cluster no other node had room for it
    warn_at: float = 0.0
    reserve_from: float = 0.0

    def unserved(self) -> int:
        return self.wanted - len(self.starting)

    def rank(self) -> tuple[int, bool, int, int]:
        """The smallest is served first. What blocked tasks wait for goes before more tasks."""
        return (self.client.active, not self.client.is_blocked, self.active, self.turn)


class Client(Struct, eq=False):
    client_id: ClientId
    parties: dict[int, Party] = field(default_factory=dict)
    active: int = 0
    is_blocked: bool = False  # a worker whose own task waits, most likely for what it demands
    is_gone: bool = False


class Lease(Struct, eq=False):
    lease_id: int
    party: Party
    allocation: Allocation
    worker_id: bytes = b""
    granted_at: float = 0.0
    is_recalled: bool = False
    is_ending: bool = False


class LeaseTable:
    """Facts come in as method calls with the time; what to do comes back as a list of decisions."""

    def __init__(self, *, node_id: bytes, resources: NodeResources, rng: random.Random) -> None:
        self.resources = resources
        self._node_id = node_id
        self._rng = rng
        self._clients: dict[ClientId, Client] = {}
        self._leases: dict[int, Lease] = {}
        self._by_worker: dict[bytes, Lease] = {}
        self._waiting: dict[Party, None] = {}
        self._ids = itertools.count(1)
        self._turns = itertools.count()
        self._home = NodeView(node_id, resources.total, resources.free)
        self._others: dict[bytes, NodeView] = {}
        self._reported_free: dict[bytes, Units] = {}  # of nodes that work was sent to since the last view
        self._sent_away_at = 0.0
        self._spread_after = b""  # the node that was the last one's turn
        self._view_is_known = False
        self._view = 0
        self._reserved: Party | None = None
        self._reserved_until = 0.0

    # --- demand

    def demand(
        self,
        client_id: ClientId,
        shape_id: int,
        wanted: int,
        *,
        now: float,
        shape: Shape | None = None,
        hops: int = 0,
    ) -> list[Decision]:
        """The client wants `wanted` more workers of this shape; `shape` at least the first time.

        A shape that means nothing is refused. Raises KeyError for a shape that was never described.
        """
        client = self._clients.get(client_id) or Client(client_id)
        party = client.parties.get(shape_id)
        if party is None:
            if shape is None:
                raise KeyError(f"shape {shape_id} was not described")
            try:
                party = self._party(client, shape_id, shape)
            except ResourceError as error:
                return [Refuse(client_id, shape_id, "TaskUnschedulableError", str(error))]
            self._clients[client_id] = client
            client.parties[shape_id] = party
            own = self._by_worker.get(client_id) if isinstance(client_id, bytes) else None
            client.is_blocked = own is not None and own.allocation.is_lent
        party.hops = hops
        return self._set_wanted(party, wanted, now)

    def place_actor(
        self, client_id: ClientId, shape: Shape, placement: dict[str, float], *, now: float
    ) -> list[Decision]:
        """Make room for an actor: one Grant with `ACTOR_SHAPE_ID`, sooner or later, or a Refuse.

        `placement` must be free to begin; then it holds `shape.resources` until its worker dies.
        """
        client = Client(client_id)
        try:
            party = self._party(client, ACTOR_SHAPE_ID, shape)
            party.placement = largest_of(party.request, to_units(placement))
        except ResourceError as error:
            return [Refuse(client_id, ACTOR_SHAPE_ID, "ActorUnschedulableError", str(error))]
        party.is_actor = True
        self._clients[client_id] = client
        client.parties[ACTOR_SHAPE_ID] = party
        return self._set_wanted(party, 1, now)

    def _party(self, client: Client, shape_id: int, shape: Shape) -> Party:
        if not is_known_strategy(shape.strategy):
            raise ResourceError(f"unknown scheduling strategy {shape.strategy!r}")
        request = to_units(shape.resources)
        return Party(client, shape_id, shape.env, shape.strategy, request, request, next(self._turns))

    def _set_wanted(self, party: Party, wanted: int, now: float) -> list[Decision]:
        out: list[Decision] = []
        if party.unserved() <= 0 < wanted - len(party.starting):
            party.warn_at = now + WARN_AFTER_S
        party.wanted = max(0, wanted)
        party.infeasible = ""
        party.undealt = party.unserved() if party.strategy == SPREAD and not party.hops else 0
        while party.starting and party.unserved() < 0:
            lease = self._leases[max(party.starting)]
            out.append(DropNeed(lease.lease_id))
            self._remove(lease)
        self._note_waiting(party)
        return out + self._serve(now)

    def _note_waiting(self, party: Party) -> None:
        if party.unserved() > 0 and not party.client.is_gone:
            self._waiting[party] = None
            return
        self._waiting.pop(party, None)
        if self._reserved is party:
            self._reserved = None

    # --- workers

    def worker_ready(self, lease_id: int, worker_id: bytes, *, now: float) -> list[Decision]:
        """The pool has a worker for the lease."""
        lease = self._leases.get(lease_id)
        if lease is None or lease.worker_id:
            return [FreeWorker(worker_id, True)]
        party = lease.party
        lease.worker_id = worker_id
        lease.granted_at = now
        self._by_worker[worker_id] = lease
        party.starting.discard(lease_id)
        party.wanted = max(0, party.wanted - 1)
        party.failures = 0
        instances = lease.allocation.instances(self.resources.total)
        return [Grant(party.client.client_id, party.shape_id, lease_id, worker_id, instances)]

    def worker_failed(
        self, lease_id: int, kind: str, reason: str, *, now: float, is_final: bool = False
    ) -> list[Decision]:
        """No worker could be started for the lease. After a few of these the demand is refused."""
        lease = self._leases.get(lease_id)
        if lease is None:
            return []
        party = lease.party
        self._remove(lease)
        party.failures += 1
        out: list[Decision] = []
        if is_final or party.failures >= MAX_START_FAILURES:
            party.failures = 0
            out += self._refuse(party, kind, reason)
        self._note_waiting(party)
        return out + self._serve(now)

    def worker_died(self, worker_id: bytes, *, now: float) -> list[Decision]:
        """Its lease, if it had one, is over."""
        lease = self._by_worker.get(worker_id)
        if lease is None:
            return []
        client = lease.party.client
        self._remove(lease)
        out: list[Decision] = [] if client.is_gone else [Lost(client.client_id, lease.lease_id, worker_id)]
        if lease.party.is_actor:
            self._clients.pop(client.client_id, None)
        return out + self._serve(now)

    def returned(
        self, client_id: ClientId, lease_id: int, *, is_reusable: bool, now: float
    ) -> list[Decision]:
        """The client gives its lease back. Unknown leases are ignored: the worker may just have died."""
        lease = self._leases.get(lease_id)
        if (
            lease is None
            or not lease.worker_id
            or lease.party.client.client_id != client_id
            or lease.is_ending
        ):
            return []
        worker_id = lease.worker_id
        self._remove(lease)
        return [FreeWorker(worker_id, is_reusable), *self._serve(now)]

    def blocked(self, worker_id: bytes, *, now: float) -> list[Decision]:
        """What runs at the worker waits: its CPUs are lent to others."""
        lease = self._by_worker.get(worker_id)
        if lease is None or not self.resources.lend(lease.allocation):
            return []
        self._count(lease.party, -1)
        if worker_id in self._clients:
            self._clients[worker_id].is_blocked = True
        return self._serve(now)

    def unblocked(self, worker_id: bytes) -> list[Decision]:
        lease = self._by_worker.get(worker_id)
        if lease is not None and self.resources.take_back(lease.allocation):
            self._count(lease.party, 1)
        if worker_id in self._clients:
            self._clients[worker_id].is_blocked = False
        return []

    # --- ends

    def client_gone(self, client_id: ClientId, *, now: float) -> list[Decision]:
        """The client died or left: its demand is void, and its workers end with what they run."""
        client = self._clients.pop(client_id, None)
        if client is None:
            return []
        client.is_gone = True
        out: list[Decision] = []
        for party in client.parties.values():
            out += self._abandon(party, "the process that had leased it is gone")
        return out + self._serve(now)

    def job_finished(self, job_id: bytes, *, now: float, keep: Collection[ClientId] = ()) -> list[Decision]:
        """All demand and leases of the job end, except those of clients to `keep` (detached actors)."""
        out: list[Decision] = []
        for client in [c for c in self._clients.values() if c.client_id not in keep]:
            for party in client.parties.values():
                if party.env.job_id == job_id:
                    out += self._abandon(party, "its job ended")
        return out + self._serve(now)

    def withdraw_actor(self, client_id: ClientId, *, now: float) -> list[Decision]:
        """Stop making room; no-op once it was granted."""
        client = self._clients.get(client_id)
        if client is None:
            return []
        party = client.parties[ACTOR_SHAPE_ID]
        if party.wanted == 0:
            return []
        del self._clients[client_id]
        client.is_gone = True
        return [*self._abandon(party, "no longer wanted"), *self._serve(now)]

    def _abandon(self, party: Party, reason: str) -> list[Decision]:
        out: list[Decision] = []
        party.wanted = 0
        for lease in [lease for lease in self._leases.values() if lease.party is party]:
            if not lease.worker_id:
                out.append(DropNeed(lease.lease_id))
                self._remove(lease)
            elif not lease.is_ending:
                lease.is_ending = True
                out.append(EndWorker(lease.worker_id, reason))
        self._note_waiting(party)
        return out

    # --- the cluster

    def drain(self, *, now: float) -> list[Decision]:
        """Begin nothing new here; demand goes elsewhere, running leases go on."""
        self._home.is_draining = True
        return self._serve(now)

    def cluster_changed(self, nodes: Iterable[NodeView], *, now: float) -> list[Decision]:
        """All nodes as the head sees them now; this one is known better here."""
        self._others = {
            node.node_id: node for node in nodes if node.node_id != self._node_id and node.is_alive
        }
        self._reported_free.clear()
        self._view_is_known = True
        self._view += 1
        return self._serve(now)

    def tick(self, *, now: float) -> list[Decision]:
        """Look again at what waits. Call about every 20 ms while `is_waiting()`."""
        if not self._waiting:
            return []
        out = self._serve(now)
        for party in self._waiting:
            if party.infeasible and now >= party.warn_at and not party.is_actor:
                party.warn_at = now + WARN_EVERY_S
                out.append(Warn(party.client.client_id, party.shape_id, party.infeasible))
        return out

    def is_waiting(self) -> bool:
        return bool(self._waiting)

    # --- serving

    def _serve(self, now: float) -> list[Decision]:
        """Give what there is to those who have least, then recall what others have too much of."""
        out: list[Decision] = []
        if not self._waiting:
            return out
        if self._reserved is not None and now >= self._reserved_until:
            self._reserved.reserve_from = now + RESERVE_AGAIN_S
            self._reserved = None
        if self._reported_free and now >= self._sent_away_at + SENT_AWAY_S:
            self._believe_reports()
        queue = [(party.rank(), party) for party in self._waiting]
        heapq.heapify(queue)
        redirects: dict[tuple[Party, bytes], int] = {}
        stuck: list[Party] = []
        while queue:
            _, party = heapq.heappop(queue)
            if not self._serve_one(party, now, out, redirects):
                if party.wanted:
                    stuck.append(party)
                continue
            party.turn = next(self._turns)
            if self._reserved is party:
                self._reserved = None
            self._note_waiting(party)
            if party.unserved() > 0:
                heapq.heappush(queue, (party.rank(), party))
        for (party, node_id), count in redirects.items():
            out.append(Redirect(party.client.client_id, party.shape_id, count, node_id))
        self._recall_for(stuck, now, out)
        return out

    def _believe_reports(self) -> None:
        for node_id, free in self._reported_free.items():
            self._others[node_id].free = free
        self._reported_free.clear()
        self._view += 1

    def _serve_one(
        self, party: Party, now: float, out: list[Decision], redirects: dict[tuple[Party, bytes], int]
    ) -> bool:
        """One lease more for the party, here or elsewhere; False if that is impossible now."""
        is_full = party.full_view == self._view and party.undealt <= 0
        stays = party.is_actor or party.hops >= (1 if party.strategy == SPREAD else MAX_HOPS)
        if not self._others or stays or is_full:
            return self._serve_here(party, out)
        if party.hops and self._serve_here(party, out):
            return True
        exclude: tuple[bytes, ...] = (self._node_id,) if party.hops or not self._may_take(party) else ()
        choice = self._choose(party, exclude)
        if isinstance(choice, Fits) and choice.node_id == self._node_id:
            if self._serve_here(party, out):
                self._note_turn(party, choice.node_id)
                return True
            choice = self._choose(party, (self._node_id,))
        if isinstance(choice, Fits) and choice.node_id != self._node_id:
            self._note_turn(party, choice.node_id)
            self._send_away(party, choice.node_id, now, redirects)
            return True
        if isinstance(choice, Wait) and party.undealt > 0:
            self._deal(party, now, redirects)
            return True
        if isinstance(choice, Infeasible):
            self._cannot(party, choice, out)
        else:
            party.infeasible = ""
            if party.strategy in ("", SPREAD):
                party.full_view = self._view  # with ten thousand nodes, asking again costs 10 ms
        return False

    def _deal(self, party: Party, now: float, redirects: dict[tuple[Party, bytes], int]) -> None:
        """No node has room: what is to be spread waits where its turn is, here or elsewhere."""
        choice = self._choose(party, (), may_be_busy=True)
        assert isinstance(choice, Fits)
        self._note_turn(party, choice.node_id)
        if choice.node_id != self._node_id:
            self._send_away(party, choice.node_id, now, redirects)

    def _note_turn(self, party: Party, node_id: bytes) -> None:
        if party.strategy == SPREAD:
            self._spread_after = node_id
            party.undealt -= 1

    def _choose(
        self, party: Party, exclude: tuple[bytes, ...], *, may_be_busy: bool = False
    ) -> Fits | Wait | Infeasible:
        return choose_node(
            party.request,
            [self._home, *self._others.values()],
            local_node_id=self._node_id,
            strategy=party.strategy,
            rng=self._rng,
            exclude=exclude,
            after=self._spread_after,
            may_be_busy=may_be_busy,
        )

    def _send_away(
        self, party: Party, node_id: bytes, now: float, redirects: dict[tuple[Party, bytes], int]
    ) -> None:
        node = self._others[node_id]
        self._reported_free.setdefault(node_id, dict(node.free))
        self._sent_away_at = now
        share = 1 if party.strategy == SPREAD else max(1, party.unserved() // REDIRECT_SHARE)
        count = 1
        node.take(party.request)
        while count < share and party.request and fits(party.request, node.free):
            node.take(party.request)
            count += 1
        redirects[party, node_id] = redirects.get((party, node_id), 0) + count
        party.wanted -= count
        party.infeasible = ""

    def _serve_here(self, party: Party, out: list[Decision]) -> bool:
        if not self._others and not party.is_actor:
            self._check_alone(party, out)
        if self._home.is_draining or not party.wanted or not self._may_take(party):
            return False
        if not fits(party.placement, self.resources.free):
            return False
        allocation = self.resources.allocate(party.request)
        if allocation is None:
            return False
        lease = Lease(next(self._ids), party, allocation)
        self._leases[lease.lease_id] = lease
        party.starting.add(lease.lease_id)
        self._count(party, 1)
        out.append(NeedWorker(lease.lease_id, party.env, party.is_actor))
        return True

    def _check_alone(self, party: Party, out: list[Decision]) -> None:
        """Say so where the only node there is can never serve the party."""
        if not party.strategy and self.resources.could_ever_fit(party.request):
            party.infeasible = ""
            return
        choice = self._choose(party, ())
        if isinstance(choice, Infeasible):
            self._cannot(party, choice, out)

    def _cannot(self, party: Party, why: Infeasible, out: list[Decision]) -> None:
        """A node that joins may change it, so the demand waits, with a warning; unless none ever can."""
        party.infeasible = why.message
        if why.is_final and self._view_is_known:
            out += self._refuse(party, "TaskUnschedulableError", why.message)

    def _refuse(self, party: Party, kind: str, message: str) -> list[Decision]:
        out: list[Decision] = [Refuse(party.client.client_id, party.shape_id, kind, message)]
        party.wanted = len(party.starting)
        self._waiting.pop(party, None)
        if party.is_actor:
            self._clients.pop(party.client.client_id, None)
        return out

    def _may_take(self, party: Party) -> bool:
        """Nothing that a large request is collecting is given away under its nose."""
        large = self._reserved
        if large is None or large is party:
            return True
        free = self.resources.free
        return not any(
            name in large.placement and free.get(name, 0) - value < large.placement[name]
            for name, value in party.request.items()
        )

    # --- recalling

    def _recall_for(self, stuck: list[Party], now: float, out: list[Decision]) -> None:
        coming = dict(self.resources.free)
        for lease in self._leases.values():
            if lease.is_recalled or lease.is_ending:
                _give(coming, lease)
        for party in sorted(stuck, key=Party.rank):
            if party.infeasible or not fits(party.placement, self.resources.total):
                continue
            if not fits(party.placement, coming):
                victims = self._victims(party, coming, now)
                for lease in victims:
                    lease.is_recalled = True
                    out.append(Recall(lease.party.client.client_id, lease.lease_id))
                    _give(coming, lease)
            self._maybe_reserve(party, now)
            if fits(party.placement, coming):
                subtract(coming, party.request)

    def _victims(self, party: Party, coming: Units, now: float) -> list[Lease]:
        """The leases whose return makes room for one lease of the party; empty if that would not be fair."""
        coming = dict(coming)
        chosen: list[Lease] = []
        clients: dict[Client, int] = {}
        parties: dict[Party, int] = {}
        candidates: list[Lease] = []
        for lease in self._leases.values():
            owner = lease.party
            if lease.is_recalled or lease.is_ending or lease.allocation.is_lent:
                continue
            clients[owner.client] = clients.get(owner.client, 0) + 1
            parties[owner] = parties.get(owner, 0) + 1
            if lease.worker_id and not owner.is_actor and now - lease.granted_at >= MIN_LEASE_S:
                candidates.append(lease)
        mine = clients.get(party.client, 0), parties.get(party, 0)
        while not fits(party.placement, coming):
            short = [name for name, value in party.placement.items() if coming.get(name, 0) < value]
            best: Lease | None = None
            best_rank = (0, 0, 0)
            for lease in candidates:
                owner = lease.party
                theirs = clients[owner.client], parties[owner]
                if not _has_more(theirs, mine, is_same_client=owner.client is party.client):
                    continue
                if not any(name in lease.allocation.units for name in short):
                    continue
                rank = (theirs[0], theirs[1], -lease.lease_id)
                if best is None or rank > best_rank:
                    best, best_rank = lease, rank
            if best is None:
                return []
            candidates.remove(best)
            chosen.append(best)
            clients[best.party.client] -= 1
            parties[best.party] -= 1
            _give(coming, best)
        return chosen

    def _maybe_reserve(self, party: Party, now: float) -> None:
        """Let a party that has nothing collect what is freed: smaller requests would pass it for ever."""
        if self._reserved is not None or now < party.reserve_from or party.active:
            return
        held_by_actors: Units = {}
        for lease in self._leases.values():
            if lease.party.is_actor:
                _give(held_by_actors, lease)
        possible = dict(self.resources.total)
        subtract(possible, held_by_actors)
        if fits(party.placement, possible):
            self._reserved = party
            self._reserved_until = now + RESERVE_S

    # --- bookkeeping

    def _remove(self, lease: Lease) -> None:
        del self._leases[lease.lease_id]
        party = lease.party
        party.starting.discard(lease.lease_id)
        if lease.worker_id:
            del self._by_worker[lease.worker_id]
        if not lease.allocation.is_lent:
            self._count(party, -1)
        self.resources.release(lease.allocation)

    def _count(self, party: Party, change: int) -> None:
        party.active += change
        party.client.active += change

    # --- looking

    def available(self) -> dict[str, float]:
        return self.resources.available()

    def recallable(self) -> dict[str, float]:
        """Held by leases that would be recalled for somebody who has nothing."""
        amounts: Units = {}
        for lease in self._leases.values():
            if lease.worker_id and not (
                lease.party.is_actor or lease.is_recalled or lease.is_ending or lease.allocation.is_lent
            ):
                _give(amounts, lease)
        return to_floats(amounts)

    def waiting_shapes(self) -> list[tuple[dict[str, float], int]]:
        """Demand that does not fit now, for the head's report: (resources, how many)."""
        return [(to_floats(party.placement), party.unserved()) for party in self._waiting]

    def leases(self) -> list[Lease]:
        """All that are granted, or wait for their worker."""
        return list(self._leases.values())

    def lease_of(self, worker_id: bytes) -> Lease | None:
        return self._by_worker.get(worker_id)

    def check_invariants(self) -> None:
        self.resources.check_invariants(lease.allocation for lease in self._leases.values())
        for client in self._clients.values():
            assert client.active == sum(party.active for party in client.parties.values())
            for party in client.parties.values():
                mine = [lease for lease in self._leases.values() if lease.party is party]
                assert party.active == sum(not lease.allocation.is_lent for lease in mine)
                assert party.starting == {lease.lease_id for lease in mine if not lease.worker_id}
                assert (party in self._waiting) == (party.unserved() > 0)
        assert self._reserved is None or self._reserved in self._waiting


def _has_more(theirs: tuple[int, int], mine: tuple[int, int], *, is_same_client: bool) -> bool:
    """Fair to take from them: who has nothing may ask anyone; others leave them as rich as themselves."""
    level = 1 if is_same_client else 0
    return theirs[level] >= mine[level] + (2 if mine[level] else 1)


def _give(amounts: Units, lease: Lease) -> None:
    for name, value in lease.allocation.units.items():
        if not (lease.allocation.is_lent and name == "CPU"):
            amounts[name] = amounts.get(name, 0) + value
