"""The actors of this node: from the head's request to a worker that hosts it, to its end.

    WAITING (for room and a worker) -> STARTING (the constructor runs) -> ALIVE -> gone

Lives here: that, and what the head must know of it. Does not: deciding where actors live or whether they
are started again (the head), resources and workers (`leasing`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator

import msgspec
from msgspec import Struct

from retinue.core.node.leasing import Leasing
from retinue.core.node.processes import Process, Processes
from retinue.core.scheduling.leases import ClientId, Grant
from retinue.core.transport.loop import LoopConnection
from retinue.core.wire.messages import (
    ActorInfo,
    ActorProgress,
    ActorSpec,
    ActorStarted,
    BecomeActor,
    DeathInfo,
    Message,
    StartActor,
    StopActor,
)

logger = logging.getLogger(__name__)

# Room may come from a lease that is being recalled. After this long the head looks for another node.
WAIT_FOR_ROOM_S = 2.0
MAX_LAST_WORDS = 256
WAITING, STARTING, ALIVE = "WAITING", "STARTING", "ALIVE"
REJECTED, FAILED, DIED = "REJECTED", "FAILED", "DIED"  # in ActorProgress


class HostedActor(Struct, eq=False):
    spec: ActorSpec
    incarnation: int
    class_size: int
    payload: bytes  # class definition, then arguments
    start_number: int
    state: str = WAITING
    process: Process | None = None
    timer: asyncio.TimerHandle | None = None
    has_failed: bool = False

    @property
    def client_id(self) -> ClientId:
        return ("actor", self.spec.actor_id, self.incarnation)

    @property
    def name(self) -> str:
        return self.spec.name or self.spec.class_name


class ActorRoom:
    """`tell_head` sends, or keeps until the head is back."""

    def __init__(
        self, leasing: Leasing, processes: Processes, tell_head: Callable[[Message, bytes], None]
    ) -> None:
        self.on_named: Callable[[Process], None] = lambda process: None
        self._leasing = leasing
        self._processes = processes
        self._tell_head = tell_head
        self._actors: dict[bytes, HostedActor] = {}  # the newest incarnation of each
        self._by_client: dict[ClientId, HostedActor] = {}
        self._by_worker: dict[bytes, HostedActor] = {}
        self._starts = 0
        # What a head that died may not have read. Repeated to a new one, for which it makes no difference.
        self._last_words: deque[tuple[ActorProgress, bytes]] = deque(maxlen=MAX_LAST_WORDS)
        leasing.actors = self

    def __iter__(self) -> Iterator[HostedActor]:
        return iter(self._by_client.values())

    # --- the head

    def start(self, connection: LoopConnection, message: StartActor, payload: bytes) -> None:
        self._starts += 1
        spec = message.spec
        known = self._actors.get(spec.actor_id)
        if known is not None and known.incarnation >= message.incarnation:
            if known.state == ALIVE:
                self._report_alive(known)
            return
        if known is not None:
            self._end_older(known)
        actor = HostedActor(spec, message.incarnation, message.class_size, payload, self._starts)
        self._actors[spec.actor_id] = actor
        self._by_client[actor.client_id] = actor
        actor.timer = asyncio.get_running_loop().call_later(WAIT_FOR_ROOM_S, self._reject, actor)
        self._leasing.place_actor(actor.client_id, spec.shape, spec.placement)

    def _end_older(self, actor: HostedActor) -> None:
        """A newer incarnation comes, and the head's word to stop this one would name it no more."""
        if actor.process is None:
            self._leasing.withdraw_actor(actor.client_id)
            self._forget(actor)
        else:
            self._processes.end(actor.process.worker_id, "replaced by a newer incarnation", is_forced=True)

    def stop(self, connection: LoopConnection, message: StopActor, payload: bytes) -> None:
        actor = self._actors.get(message.actor_id)
        if actor is None or actor.incarnation > message.incarnation:
            return
        if actor.process is None:
            self._leasing.withdraw_actor(actor.client_id)
            self._forget(actor)
            death = DeathInfo(reason=message.reason, intended=True)
            self._report(actor, DIED, death=death)
            return
        # An actor that has not begun has no accepted calls to finish.
        is_forced = message.force or actor.state != ALIVE
        self._processes.end(actor.process.worker_id, message.reason, is_forced=is_forced)

    def connection_replaced(self) -> None:
        """A head is there, maybe a new one. It counts starts by connection."""
        self._starts = 0
        for actor in self._by_client.values():
            actor.start_number = 0
        for message, payload in self._last_words:
            self._tell_head(message, payload)

    def starts_counted(self) -> int:
        """Up to which StartActor of this connection the resources say what became of it."""
        waiting = [a.start_number for a in self if a.state == WAITING and a.start_number]
        return min(waiting) - 1 if waiting else self._starts

    def infos(self) -> tuple[list[ActorInfo], bytes]:
        """For a new head: actors that live here, or wait to, and the payloads of those that may restart."""
        infos: list[ActorInfo] = []
        payloads: list[tuple[bytes, bytes, bytes]] = []
        for actor in self._actors.values():
            spec = actor.spec
            process = actor.process
            if actor.has_failed:
                continue
            infos.append(
                ActorInfo(
                    spec.actor_id,
                    "ALIVE" if actor.state == ALIVE else "PENDING",
                    actor.incarnation,
                    process.address if process is not None else None,
                    node_id=spec.owner.node_id,
                    pid=process.pid if process is not None else 0,
                    num_restarts=actor.incarnation,
                    spec=spec,
                )
            )
            if spec.max_restarts or spec.detached:
                size = actor.class_size
                payloads.append((spec.actor_id, actor.payload[:size], actor.payload[size:]))
        return infos, msgspec.msgpack.encode(payloads) if payloads else b""

    # --- leases

    def granted(self, client_id: ClientId, grant: Grant) -> None:
        actor = self._by_client.get(client_id)
        process = self._processes.get(grant.worker_id)
        if actor is None or process is None or process.connection is None:
            return  # its worker's death is on its way, and will be reported
        self._cancel_timer(actor)
        actor.state = STARTING
        actor.process = process
        process.label = actor.name
        self._by_worker[process.worker_id] = actor
        self.on_named(process)
        message = BecomeActor(
            actor.spec, actor.incarnation, actor.spec.shape.resources, grant.instances, actor.class_size
        )
        process.connection.send(message, actor.payload)

    def refused(self, client_id: ClientId, message: str) -> None:
        actor = self._by_client.get(client_id)
        if actor is not None:
            logger.warning("actor %s cannot start: %s", actor.name, message)
            self._forget(actor)
            self._report(actor, DIED, death=DeathInfo(reason=message, node_id=b""))

    def _reject(self, actor: HostedActor) -> None:
        """No room here; the head knows other nodes, or waits for a report that there is some."""
        if actor.state == WAITING and actor.client_id in self._by_client:
            self._leasing.withdraw_actor(actor.client_id)
            self._forget(actor)
            self._report(actor, REJECTED)

    # --- the worker

    def started(self, process: Process, message: ActorStarted, payload: bytes) -> None:
        actor = self._by_worker.get(process.worker_id)
        if actor is None:
            return
        if message.is_error:
            actor.has_failed = True
            self._report(actor, FAILED, payload=payload)
            self._processes.end(process.worker_id, "the actor's constructor raised", is_forced=False)
            return
        actor.state = ALIVE
        if not (actor.spec.max_restarts or actor.spec.detached):
            actor.payload = b""  # it will not be made again
        self._report_alive(actor)

    def process_died(self, process: Process, death: DeathInfo) -> None:
        actor = self._by_worker.pop(process.worker_id, None)
        if actor is None:
            return
        self._forget(actor)
        if not actor.has_failed:
            self._report(actor, DIED, death=death)

    def job_of_detached(self, job_id: bytes) -> tuple[set[ClientId], set[bytes]]:
        """Clients and workers that outlive the job: its detached actors."""
        detached = [a for a in self if a.spec.detached and a.spec.job_id == job_id]
        workers = {a.process.worker_id for a in detached if a.process is not None}
        return {a.client_id for a in detached} | workers, workers

    def actor_of(self, worker_id: bytes) -> HostedActor | None:
        return self._by_worker.get(worker_id)

    def find(self, actor_id: bytes) -> HostedActor | None:
        return self._actors.get(actor_id)

    def close(self) -> None:
        for actor in self:
            self._cancel_timer(actor)

    # --- inside

    def _forget(self, actor: HostedActor) -> None:
        self._cancel_timer(actor)
        self._by_client.pop(actor.client_id, None)
        if self._actors.get(actor.spec.actor_id) is actor:
            del self._actors[actor.spec.actor_id]

    @staticmethod
    def _cancel_timer(actor: HostedActor) -> None:
        if actor.timer is not None:
            actor.timer.cancel()
            actor.timer = None

    def _report_alive(self, actor: HostedActor) -> None:
        assert actor.process is not None
        message = ActorProgress(
            actor.spec.actor_id, actor.incarnation, "ALIVE", actor.process.address, actor.process.pid
        )
        self._tell_head(message, b"")

    def _report(
        self, actor: HostedActor, state: str, *, death: DeathInfo | None = None, payload: bytes = b""
    ) -> None:
        pid = actor.process.pid if actor.process is not None else 0
        message = ActorProgress(actor.spec.actor_id, actor.incarnation, state, pid=pid, death=death)
        if state != REJECTED:
            self._last_words.append((message, payload))
        self._tell_head(message, payload)
