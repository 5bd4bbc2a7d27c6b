"""The life of every actor: where it is placed, when it is started again, when and why it is dead.

    PENDING --STARTED--> ALIVE --RESTART--> RESTARTING --STARTED--> ALIVE
    any of them --END--> DEAD

Lives here: life cycles, names, incarnations, placement, owners. Does not: connections, subscribers, the
disk, or the definitions and arguments (the shell keeps those). Facts come in as method calls, decisions
go out as lists.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from retinue.core.backoff import RestartBackoff
from retinue.core.errors import ActorAlreadyExistsError, InvalidTransitionError
from retinue.core.head.nodes import NodeTable
from retinue.core.scheduling.policies import SPREAD, Choice, Fits, Infeasible, NodeView, Wait, choose_node
from retinue.core.scheduling.resources import ResourceError, Units, largest_of, to_units
from retinue.core.wire.messages import ActorInfo, ActorSpec, Address, DeathInfo

PENDING, ALIVE, RESTARTING, DEAD = "PENDING", "ALIVE", "RESTARTING", "DEAD"
STARTED, RESTART, END = "STARTED", "RESTART", "END"

TRANSITIONS = {
    (PENDING, STARTED): ALIVE,
    (RESTARTING, STARTED): ALIVE,
    (PENDING, RESTART): RESTARTING,  # its process died before the constructor had returned
    (ALIVE, RESTART): RESTARTING,
    (RESTARTING, RESTART): RESTARTING,
    (PENDING, END): DEAD,
    (ALIVE, END): DEAD,
    (RESTARTING, END): DEAD,
}

# What an agent says in ActorProgress.
REJECTED, FAILED, DIED = "REJECTED", "FAILED", "DIED"

HEALTHY_S = 10.0
FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 10.0
MAX_DEAD_ACTORS = 1_000  # kept for people, and for callers that come late
PAST_LENGTH = 16


@dataclass(frozen=True, slots=True)
class Start:
    """Ask the node's agent to host the actor."""

    actor_id: bytes
    node_id: bytes
    incarnation: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask the node's agent to end the worker that hosts it."""

    actor_id: bytes
    node_id: bytes
    incarnation: int
    force: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Updated:
    """Its state has changed: subscribers and the storage want to know."""

    actor_id: bytes


@dataclass(frozen=True, slots=True)
class Saved:
    """Something only the storage wants to know has changed."""

    actor_id: bytes


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Dead long enough; nothing is kept of it."""

    actor_id: bytes


Decision = Start | Stop | Updated | Saved | Forgotten


@dataclass(slots=True)
class Actor:
    """`is_sent`: a node has been asked to host it and has neither refused nor lost it."""

    spec: ActorSpec
    state: str = PENDING
    incarnation: int = 0
    node_id: bytes = b""
    is_sent: bool = False
    address: Address | None = None
    pid: int = 0
    num_restarts: int = 0
    death: DeathInfo | None = None
    cause: str = ""  # why it is DEAD or RESTARTING, or what it is waiting for
    error_kind: str = ""
    has_error: bool = False
    can_be_remade: bool = True  # definition and arguments are known
    is_restart_asked: bool = False
    rejected_by: set[bytes] = field(default_factory=set)
    backoff: RestartBackoff = field(
        default_factory=lambda: RestartBackoff(HEALTHY_S, FIRST_BACKOFF_S, MAX_BACKOFF_S)
    )
    past: list[str] = field(default_factory=list)

    @property
    def actor_id(self) -> bytes:
        return self.spec.actor_id

    @property
    def has_restarts_left(self) -> bool:
        limit = self.spec.max_restarts
        return self.can_be_remade and (limit < 0 or self.num_restarts < limit)

    def move(self, event: str) -> None:
        """Take the step that the table has for `event`. Raises InvalidTransitionError if it has none."""
        target = TRANSITIONS.get((self.state, event))
        if target is None:
            past = ", ".join(self.past)
            raise InvalidTransitionError(f"actor {self.actor_id.hex()} is {self.state}: no {event} ({past})")
        self.past.append(f"{self.state} -{event}-> {target}")
        del self.past[:-PAST_LENGTH]
        self.state = target

    def info(self, *, with_spec: bool = False) -> ActorInfo:
        is_alive = self.state == ALIVE
        return ActorInfo(
            actor_id=self.actor_id,
            state=self.state,
            incarnation=self.incarnation,
            address=self.address if is_alive else None,
            node_id=self.node_id,
            pid=self.pid,
            num_restarts=self.num_restarts,
            death=self.death,
            death_cause=self.cause,
            spec=self.spec if with_spec else None,
            has_error=self.has_error,
            error_kind=self.error_kind,
        )


class ActorTable:
    """All actors of the cluster. `nodes` is the same table that the shell feeds."""

    def __init__(self, nodes: NodeTable, *, rng: random.Random) -> None:
        self._nodes = nodes
        self._rng = rng
        self._actors: dict[bytes, Actor] = {}
        self._dead: dict[bytes, None] = {}  # oldest first
        self._names: dict[tuple[str, str], bytes] = {}  # (namespace, name) of actors that are not DEAD
        self._owned: dict[bytes, set[bytes]] = {}  # worker id -> the actors that end with it
        self._waiting: dict[bytes, None] = {}  # to be placed, oldest first
        self._delayed: dict[bytes, float] = {}  # to be placed, but not before
        self._spread_after = b""  # the node that was the last one's turn
        self._rejected: set[bytes] = set()  # that some node has refused since its last report
        # Actors that a registering agent did not list. What became of them may be in the messages it has
        # kept for us, which come before its first report.
        self._unlisted: dict[bytes, list[tuple[bytes, int]]] = {}
        self.is_recovering = False

    # what clients ask

    def create(self, spec: ActorSpec, *, get_if_exists: bool, now: float) -> tuple[Actor, list[Decision]]:
        """The new actor, or the one that the request means. Raises ActorAlreadyExistsError."""
        known = self._actors.get(spec.actor_id)
        if known is not None:
            return known, []
        holder = self.by_name(spec.namespace, spec.name) if spec.name else None
        if holder is not None:
            if get_if_exists:
                return holder, []
            raise ActorAlreadyExistsError(
                f"an actor named {spec.name!r} lives in namespace {spec.namespace!r} already; "
                "get it by get_actor() or get_if_exists=True"
            )
        actor = Actor(spec)
        self._add(actor)
        decisions: list[Decision] = [Saved(actor.actor_id)]
        self._waiting[actor.actor_id] = None
        if not self.is_recovering:
            decisions += self._place(actor, now)[0]
        return actor, decisions

    def kill(self, actor_id: bytes, *, no_restart: bool) -> list[Decision]:
        actor = self._live(actor_id)
        if actor is None:
            return []
        if no_restart:
            return self._end(actor, "it was killed by retinue.kill()", force=True)
        if not actor.is_sent:
            return []  # it is about to be started anyway
        actor.is_restart_asked = True
        return [Stop(actor_id, actor.node_id, actor.incarnation, True, "retinue.kill(no_restart=False)")]

    def release(self, actor_id: bytes) -> list[Decision]:
        """No handle is left. Detached actors do not mind."""
        actor = self._live(actor_id)
        if actor is None or actor.spec.detached:
            return []
        return self._end(actor, "all handles to it are gone", force=False)

    # what agents say

    def progress(
        self,
        node_id: bytes,
        actor_id: bytes,
        incarnation: int,
        state: str,
        *,
        address: Address | None,
        pid: int,
        death: DeathInfo | None,
        now: float,
    ) -> list[Decision]:
        """An agent says ALIVE, REJECTED, FAILED or DIED. What an older incarnation does is its own affair."""
        actor = self._live(actor_id)
        if actor is None or not actor.is_sent or (actor.node_id, actor.incarnation) != (node_id, incarnation):
            return [Stop(actor_id, node_id, incarnation, True, "replaced")] if state == ALIVE else []
        self._nodes.settle(node_id, actor_id, is_placed=state == ALIVE)
        if state == ALIVE:
            # Its node may have registered before it had come so far.
            self._unlisted[node_id] = [u for u in self._unlisted.get(node_id, ()) if u[0] != actor_id]
            return self._started(actor, address, pid, now)
        if state == REJECTED:
            actor.rejected_by.add(node_id)
            self._rejected.add(actor_id)
            return self._wait(actor) + self._place_now(actor, now)
        if state == FAILED:
            actor.has_error = True
            actor.is_sent = False  # its agent has ended the worker
            return self._end(actor, "its constructor raised", death=death)
        cause = death.describe() if death is not None else "its worker process ended"
        return self._lost(actor, cause, death, now) + self._place_now(actor, now)

    def node_registered(
        self,
        node_id: bytes,
        infos: Iterable[ActorInfo],
        *,
        live_processes: Iterable[bytes] | None,
        now: float,
    ) -> list[Decision]:
        """An agent is here and lists the actors it hosts (and, if it can, its live processes)."""
        decisions: list[Decision] = []
        listed: set[bytes] = set()
        for info in infos:
            listed.add(info.actor_id)
            decisions += self._listed(node_id, info, now)
        unlisted = [a for a in self._on_node(node_id) if a.actor_id not in listed]
        self._unlisted[node_id] = [(a.actor_id, a.incarnation) for a in unlisted]
        if live_processes is not None:
            decisions += self._keep_owners(node_id, set(live_processes))
        return decisions + self.place_waiting(now=now)

    def node_reported(self, node_id: bytes, *, now: float) -> list[Decision]:
        """There may be room now; and an agent that has just registered has said all that it had to."""
        decisions: list[Decision] = []
        for actor_id, incarnation in self._unlisted.pop(node_id, ()):
            actor = self._live(actor_id)
            if actor is not None and actor.is_sent and actor.incarnation == incarnation:
                decisions += self._missing(actor, "it was gone when its node registered again", now)
        for actor_id in list(self._rejected):
            rejected_by = self._actors[actor_id].rejected_by
            rejected_by.discard(node_id)
            if not rejected_by:
                self._rejected.discard(actor_id)
        return decisions + self.place_waiting(now=now)

    def node_died(self, node_id: bytes, reason: str, *, now: float) -> list[Decision]:
        decisions: list[Decision] = []
        self._unlisted.pop(node_id, None)
        for actor in self._on_node(node_id):
            decisions += self._lost(actor, f"its node {node_id.hex()[:12]} died: {reason}", None, now)
        owners = {actor.spec.owner.worker_id for actor in self if actor.spec.owner.node_id == node_id}
        for owner in owners:
            decisions += self.owner_gone(owner)
        return decisions + self.place_waiting(now=now)

    def owner_gone(self, worker_id: bytes) -> list[Decision]:
        decisions: list[Decision] = []
        for actor_id in list(self._owned.get(worker_id, ())):
            decisions += self._end(self._actors[actor_id], "the process that owned it ended", force=True)
        return decisions

    def job_ended(self, job_id: bytes) -> list[Decision]:
        decisions: list[Decision] = []
        for actor in list(self._actors.values()):
            spec = actor.spec
            if spec.job_id == job_id and not spec.detached and actor.state != DEAD:
                decisions += self._end(actor, "its job ended", force=True)
        return decisions

    # recovery

    def load(self, actor: Actor) -> None:
        """An actor that an earlier head knew. Where it runs, its node will say."""
        self._add(actor)
        if not actor.is_sent:
            self._waiting[actor.actor_id] = None

    def recovery_over(self, *, now: float) -> list[Decision]:
        """All known nodes have registered, or are given up: what nobody has is lost."""
        self.is_recovering = False
        decisions: list[Decision] = []
        for actor in list(self._actors.values()):
            if actor.is_sent and not self._nodes.is_alive(actor.node_id):
                decisions += self._missing(actor, f"its node {actor.node_id.hex()[:12]} is gone", now)
        return decisions + self.place_waiting(now=now)

    # time

    def tick(self, *, now: float) -> list[Decision]:
        return self.place_waiting(now=now)

    def next_deadline(self) -> float | None:
        return min(self._delayed.values(), default=None)

    # placement

    def place_waiting(self, *, now: float) -> list[Decision]:
        """Place every waiting actor that fits somewhere, the oldest first."""
        if self.is_recovering:
            return []
        for actor_id in [a for a, not_before in self._delayed.items() if not_before <= now]:
            del self._delayed[actor_id]
            self._waiting[actor_id] = None
        decisions: list[Decision] = []
        full: set[tuple[object, ...]] = set()  # shapes for which there was no room in this round
        for actor_id in list(self._waiting):
            actor = self._actors[actor_id]
            shape = _shape_key(actor)
            if shape in full and not actor.rejected_by:
                continue
            more, choice = self._place(actor, now)
            decisions += more
            if not isinstance(choice, Fits) and not actor.rejected_by:
                full.add(shape)
        return decisions

    def _place_now(self, actor: Actor, now: float) -> list[Decision]:
        if self.is_recovering or actor.actor_id not in self._waiting:
            return []
        return self._place(actor, now)[0]

    def _place(self, actor: Actor, now: float) -> tuple[list[Decision], Choice | None]:
        try:
            held, request = _requests(actor)
        except ResourceError as error:
            actor.error_kind = "ActorUnschedulableError"
            return self._end(actor, str(error)), None
        choice = self._choose(actor, request, self._nodes.views())
        if isinstance(choice, Wait):
            # Tasks give way: the agent recalls their leases, and rejects the actor if they take too long.
            choice = self._choose(actor, request, self._nodes.views_after_recall())
        if isinstance(choice, Infeasible):
            if choice.is_final:
                actor.error_kind = "ActorUnschedulableError"
                return self._end(actor, choice.message), choice
            actor.cause = f"it waits for a node: {choice.message}"
        if not isinstance(choice, Fits):
            return [], choice
        del self._waiting[actor.actor_id]
        if actor.spec.shape.strategy == SPREAD:
            self._spread_after = choice.node_id
        actor.node_id = choice.node_id
        actor.is_sent = True
        actor.backoff.started(now)
        self._nodes.take(choice.node_id, actor.actor_id, held)
        return [Saved(actor.actor_id), Start(actor.actor_id, choice.node_id, actor.incarnation)], choice

    def _choose(self, actor: Actor, request: Units, views: Iterable[NodeView]) -> Choice:
        return choose_node(
            request,
            views,
            local_node_id=actor.spec.owner.node_id,
            strategy=actor.spec.shape.strategy,
            rng=self._rng,
            exclude=actor.rejected_by,
            after=self._spread_after,
        )

    # steps

    def _started(self, actor: Actor, address: Address | None, pid: int, now: float) -> list[Decision]:
        if actor.state == ALIVE:
            return []
        actor.move(STARTED)
        actor.address, actor.pid = address, pid
        actor.cause = ""
        actor.death = None
        self._rejected.discard(actor.actor_id)
        actor.rejected_by.clear()
        actor.backoff.started(now)
        return [Updated(actor.actor_id)]

    def _lost(self, actor: Actor, cause: str, death: DeathInfo | None, now: float) -> list[Decision]:
        """Its process is gone: start it again, if it may be."""
        is_intended = death is not None and death.intended and not actor.is_restart_asked
        actor.is_restart_asked = False
        if is_intended or not actor.has_restarts_left:
            actor.is_sent = False  # there is nothing left to stop
            if not is_intended and actor.num_restarts:
                cause += f" (it had been restarted {actor.num_restarts} times, as often as it may)"
            return self._end(actor, cause, death=death)
        actor.move(RESTART)
        actor.num_restarts += 1
        actor.death = death
        actor.cause = cause
        delay = actor.backoff.ended(now)
        decisions = self._again(actor)
        if delay > 0:
            del self._waiting[actor.actor_id]
            self._delayed[actor.actor_id] = now + delay
        return [*decisions, Updated(actor.actor_id)]

    def _missing(self, actor: Actor, cause: str, now: float) -> list[Decision]:
        """Its node does not have it. If the constructor never returned, the request was lost: ask anew."""
        if actor.state == ALIVE:
            return self._lost(actor, cause, None, now)
        return [*self._again(actor), Saved(actor.actor_id)]

    def _again(self, actor: Actor) -> list[Decision]:
        """A new incarnation, to be placed."""
        self._nodes.settle(actor.node_id, actor.actor_id, is_placed=False)
        actor.incarnation += 1
        return self._wait(actor)

    def _wait(self, actor: Actor) -> list[Decision]:
        actor.node_id = b""
        actor.is_sent = False
        actor.address, actor.pid = None, 0
        self._waiting[actor.actor_id] = None
        return []

    def _end(
        self, actor: Actor, cause: str, *, death: DeathInfo | None = None, force: bool = True
    ) -> list[Decision]:
        actor_id = actor.actor_id
        actor.move(END)
        actor.cause = cause
        actor.death = death or actor.death
        self._waiting.pop(actor_id, None)
        self._delayed.pop(actor_id, None)
        self._rejected.discard(actor_id)
        name = (actor.spec.namespace, actor.spec.name)
        if self._names.get(name) == actor_id:
            del self._names[name]
        self._disown(actor)
        decisions: list[Decision] = []
        if actor.is_sent:
            actor.is_sent = False
            self._nodes.settle(actor.node_id, actor_id, is_placed=False)
            decisions.append(Stop(actor_id, actor.node_id, actor.incarnation, force, cause))
        self._dead[actor_id] = None
        return [*decisions, Updated(actor_id), *self._forget_old()]

    def _listed(self, node_id: bytes, info: ActorInfo, now: float) -> list[Decision]:
        """One actor of a registering node's list."""
        actor = self._actors.get(info.actor_id)
        if info.state == DEAD:
            return self.progress(
                node_id,
                info.actor_id,
                info.incarnation,
                DIED,
                address=None,
                pid=info.pid,
                death=info.death or DeathInfo(),
                now=now,
            )
        if actor is None:
            actor = self._adopt(info)
        if actor is None or actor.state == DEAD or not self._may_be_on(actor, node_id, info.incarnation):
            return [Stop(info.actor_id, node_id, info.incarnation, True, "replaced")]
        if info.incarnation > actor.incarnation:
            # The storage had not yet heard of this one when the earlier head died.
            actor.incarnation = info.incarnation
            actor.num_restarts = max(actor.num_restarts, info.num_restarts)
        self._waiting.pop(info.actor_id, None)
        self._delayed.pop(info.actor_id, None)
        actor.node_id = node_id
        actor.is_sent = True
        if info.state == ALIVE and actor.state != ALIVE:
            return self._started(actor, info.address, info.pid, now)
        if info.state == ALIVE:
            actor.address, actor.pid = info.address, info.pid
            actor.backoff.started(now)
        return [Saved(info.actor_id)]

    def _may_be_on(self, actor: Actor, node_id: bytes, incarnation: int) -> bool:
        if incarnation != actor.incarnation:
            return incarnation > actor.incarnation
        return not actor.is_sent or actor.node_id == node_id

    def _adopt(self, info: ActorInfo) -> Actor | None:
        """An actor that only its node knows: the storage was lost, or behind."""
        spec = info.spec
        if spec is None or (spec.name and (spec.namespace, spec.name) in self._names):
            return None
        actor = Actor(spec, incarnation=info.incarnation, num_restarts=info.num_restarts, can_be_remade=False)
        self._add(actor)
        return actor

    def payload_known(self, actor_id: bytes) -> None:
        """The shell has learnt the definition and arguments of an adopted actor."""
        actor = self._actors.get(actor_id)
        if actor is not None:
            actor.can_be_remade = True

    def _keep_owners(self, node_id: bytes, live: set[bytes]) -> list[Decision]:
        gone = {
            worker_id
            for worker_id, actor_ids in self._owned.items()
            if worker_id not in live and any(self._actors[a].spec.owner.node_id == node_id for a in actor_ids)
        }
        return [decision for worker_id in gone for decision in self.owner_gone(worker_id)]

    def _forget_old(self) -> list[Decision]:
        forgotten: list[Decision] = []
        while len(self._dead) > MAX_DEAD_ACTORS:
            actor_id = next(iter(self._dead))
            del self._dead[actor_id], self._actors[actor_id]
            forgotten.append(Forgotten(actor_id))
        return forgotten

    def _add(self, actor: Actor) -> None:
        spec = actor.spec
        self._actors[spec.actor_id] = actor
        if spec.name:
            self._names[spec.namespace, spec.name] = spec.actor_id
        if not spec.detached:
            self._owned.setdefault(spec.owner.worker_id, set()).add(spec.actor_id)

    def _disown(self, actor: Actor) -> None:
        owner = actor.spec.owner.worker_id
        owned = self._owned.get(owner)
        if owned is not None:
            owned.discard(actor.actor_id)
            if not owned:
                del self._owned[owner]

    # views

    def get(self, actor_id: bytes) -> Actor | None:
        return self._actors.get(actor_id)

    def by_name(self, namespace: str, name: str) -> Actor | None:
        actor_id = self._names.get((namespace, name))
        return None if actor_id is None else self._actors[actor_id]

    def __iter__(self) -> Iterator[Actor]:
        return iter(self._actors.values())

    def _live(self, actor_id: bytes) -> Actor | None:
        actor = self._actors.get(actor_id)
        return None if actor is None or actor.state == DEAD else actor

    def _on_node(self, node_id: bytes) -> list[Actor]:
        return [actor for actor in self._actors.values() if actor.is_sent and actor.node_id == node_id]

    def check_invariants(self) -> None:
        for actor_id, actor in self._actors.items():
            is_queued = actor_id in self._waiting or actor_id in self._delayed
            if actor.state == DEAD:
                assert actor_id in self._dead
                assert not is_queued
                assert not actor.is_sent
            else:
                assert actor_id not in self._dead
                assert is_queued != actor.is_sent, (actor.state, actor.past)
            if actor.state == ALIVE:
                assert actor.is_sent
                assert actor.node_id
            limit = actor.spec.max_restarts
            assert limit < 0 or actor.num_restarts <= limit
        assert not (self._waiting.keys() & self._delayed.keys())
        for (namespace, name), actor_id in self._names.items():
            actor = self._actors[actor_id]
            assert actor.state != DEAD
            assert (actor.spec.namespace, actor.spec.name) == (namespace, name)
        assert all(self._actors[actor_id].state != DEAD for actor_id in self._rejected)


def _requests(actor: Actor) -> tuple[Units, Units]:
    """What it holds while it lives, and what must be free where it is placed."""
    held = to_units(actor.spec.shape.resources)
    return held, largest_of(held, to_units(actor.spec.placement))


def _shape_key(actor: Actor) -> tuple[object, ...]:
    spec = actor.spec
    return (
        tuple(sorted(spec.shape.resources.items())),
        tuple(sorted(spec.placement.items())),
        spec.shape.strategy,
    )
