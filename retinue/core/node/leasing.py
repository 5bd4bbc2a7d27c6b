"""Leases, carried out: what the lease table and the worker pool decide, said to clients and processes.

Lives here: connections of clients, and the timers of the two machines. Does not: decide
(`scheduling.leases`, `pool`), start processes (`processes`), or know what an actor is (`actors`).
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterable
from typing import Protocol

from retinue.core.node import pool as pools
from retinue.core.node.pool import WorkerPool
from retinue.core.node.processes import Process, Processes
from retinue.core.scheduling import leases
from retinue.core.scheduling.leases import ACTOR_SHAPE_ID, ClientId, Grant, LeaseTable
from retinue.core.scheduling.policies import NodeView
from retinue.core.transport.loop import LoopConnection
from retinue.core.wire.messages import (
    Address,
    DeathInfo,
    LeaseDemand,
    LeaseGrant,
    LeaseLost,
    LeaseRecall,
    LeaseRedirect,
    LeaseRefused,
    LeaseReturn,
    LogLines,
    Message,
    Shape,
    WorkerEnv,
)

logger = logging.getLogger(__name__)

WAITING_TICK_S = 0.02
POOL_TICK_S = 1.0


class ActorHost(Protocol):
    """Who hears of leases that were asked for actors."""

    def granted(self, client_id: ClientId, grant: Grant) -> None: ...
    def refused(self, client_id: ClientId, message: str) -> None: ...


class Leasing:
    def __init__(self, table: LeaseTable, pool: WorkerPool, processes: Processes) -> None:
        self.table = table
        self.pool = pool
        self.actors: ActorHost | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.address_of_node: Callable[[bytes], Address | None] = lambda node_id: None
        self._processes = processes
        self._clients: dict[ClientId, LoopConnection] = {}
        self._loop = asyncio.get_running_loop()
        self._tick_timer: asyncio.TimerHandle | None = None
        self._pool_timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._is_leaving = False

    def run(self) -> None:
        self._pool_timer = self._loop.call_later(POOL_TICK_S, self._tick_pool)

    def close(self) -> None:
        self._is_closed = True
        for timer in (self._tick_timer, self._pool_timer):
            if timer is not None:
                timer.cancel()

    # --- messages

    def demand(self, connection: LoopConnection, message: LeaseDemand, payload: bytes) -> None:
        client_id = client_of(connection)
        self._clients[client_id] = connection
        decisions = self.table.demand(
            client_id,
            message.shape_id,
            message.wanted,
            now=self._loop.time(),
            shape=message.shape,
            hops=message.hops,
        )
        self._carry_out(decisions)

    def returned(self, connection: LoopConnection, message: LeaseReturn, payload: bytes) -> None:
        self._carry_out(
            self.table.returned(
                client_of(connection), message.lease_id, is_reusable=message.reusable, now=self._loop.time()
            )
        )

    def blocked(self, worker_id: bytes) -> None:
        self._carry_out(self.table.blocked(worker_id, now=self._loop.time()))

    def unblocked(self, worker_id: bytes) -> None:
        self._carry_out(self.table.unblocked(worker_id))

    # --- facts from other rooms

    def place_actor(self, client_id: ClientId, shape: Shape, placement: dict[str, float]) -> None:
        self._carry_out(self.table.place_actor(client_id, shape, placement, now=self._loop.time()))

    def withdraw_actor(self, client_id: ClientId) -> None:
        self._carry_out(self.table.withdraw_actor(client_id, now=self._loop.time()))

    def worker_ready(self, process: Process) -> bool:
        decisions = self.pool.registered(process.worker_id, now=self._loop.time())
        if decisions is None:
            return False
        self._carry_out_pool(decisions)
        return True

    def process_died(self, process: Process, death: DeathInfo) -> None:
        """Its leases as a client, its lease as a worker, its place in the pool."""
        now = self._loop.time()
        was_killed = death.signal == signal.SIGKILL
        self._carry_out_pool(
            self.pool.died(process.worker_id, death.describe(), now=now, was_killed=was_killed)
        )
        self._carry_out(self.table.worker_died(process.worker_id, now=now))
        self.client_gone(process.worker_id)

    def client_gone(self, client_id: ClientId) -> None:
        self._clients.pop(client_id, None)
        self._carry_out(self.table.client_gone(client_id, now=self._loop.time()))

    def connection_closed(self, connection: LoopConnection) -> None:
        """A client of another node has left (ours are followed as processes)."""
        if connection.hello is not None:
            client_id = client_of(connection)
            if self._clients.get(client_id) is connection:
                self.client_gone(client_id)

    def job_finished(self, job_id: bytes, keep_clients: set[ClientId], keep_workers: set[bytes]) -> None:
        now = self._loop.time()
        self._carry_out(self.table.job_finished(job_id, now=now, keep=keep_clients))
        self._carry_out_pool(self.pool.job_finished(job_id, keep=keep_workers))

    def prestart(self, env: WorkerEnv, count: int) -> None:
        self._carry_out_pool(self.pool.prestart(env, count, now=self._loop.time()))

    def cluster_changed(self, nodes: Iterable[NodeView]) -> None:
        self._carry_out(self.table.cluster_changed(nodes, now=self._loop.time()))

    def drain(self) -> None:
        self._carry_out(self.table.drain(now=self._loop.time()))

    def leave(self) -> None:
        """Begin nothing new, and have every task's lease back when the task is over."""
        self._is_leaving = True
        self.drain()
        for lease in self.table.leases():
            if not lease.party.is_actor:
                self._tell(lease.party.client.client_id, LeaseRecall(lease.lease_id))

    def has_tasks(self) -> bool:
        """Whether any lease is out that is not an actor's."""
        return any(not lease.party.is_actor for lease in self.table.leases())

    # --- carrying out

    def _carry_out(self, decisions: list[leases.Decision]) -> None:
        for decision in decisions:
            self._carry_out_one(decision)
        self._arm()
        self.on_change()

    def _carry_out_one(self, decision: leases.Decision) -> None:
        now = self._loop.time()
        match decision:
            case leases.NeedWorker(lease_id, env, is_for_good):
                self._carry_out_pool(self.pool.need(lease_id, env, now=now, is_for_good=is_for_good))
            case leases.DropNeed(lease_id):
                self.pool.drop(lease_id)
            case leases.Grant():
                self._grant(decision)
            case leases.Redirect(client_id, shape_id, count, node_id):
                address = self.address_of_node(node_id)
                if address is not None:
                    self._tell(client_id, LeaseRedirect(shape_id, count, address))
            case leases.Refuse(client_id, shape_id, kind, text):
                if shape_id == ACTOR_SHAPE_ID and self.actors is not None:
                    self.actors.refused(client_id, text)
                else:
                    self._tell(client_id, LeaseRefused(shape_id, kind, text))
            case leases.Recall(client_id, lease_id):
                self._tell(client_id, LeaseRecall(lease_id))
            case leases.Lost(client_id, lease_id, worker_id):
                self._tell(client_id, LeaseLost(lease_id, self._processes.death_of(worker_id)))
            case leases.FreeWorker(worker_id, is_reusable):
                self._carry_out_pool(self.pool.freed(worker_id, is_reusable=is_reusable, now=now))
            case leases.EndWorker(worker_id, reason):
                self._processes.end(worker_id, reason, is_forced=True)
            case leases.Warn(client_id, _, text):
                logger.warning("a demand waits: %s", text)
                warning = f"tasks wait and cannot be scheduled now: {text}\n"
                self._tell(client_id, LogLines("scheduler", True), warning.encode())

    def _grant(self, grant: Grant) -> None:
        if grant.shape_id == ACTOR_SHAPE_ID:
            assert self.actors is not None
            self.actors.granted(grant.client_id, grant)
            return
        process = self._processes.get(grant.worker_id)
        if process is None or process.address is None:
            return  # it died just now: LeaseLost follows
        message = LeaseGrant(grant.shape_id, grant.lease_id, process.address, grant.instances)
        self._tell(grant.client_id, message)
        if self._is_leaving:  # it was on its way already
            self._tell(grant.client_id, LeaseRecall(grant.lease_id))

    def _tell(self, client_id: ClientId, message: Message, payload: bytes = b"") -> None:
        connection = self._clients.get(client_id)
        if connection is not None:
            connection.send(message, payload)

    def _carry_out_pool(self, decisions: list[pools.Decision]) -> None:
        now = self._loop.time()
        for decision in decisions:
            match decision:
                case pools.Start(worker_id, env):
                    self._processes.start_worker(worker_id, env)
                case pools.Use(lease_id, worker_id):
                    self._carry_out(self.table.worker_ready(lease_id, worker_id, now=now))
                case pools.Fail(lease_id, reason):
                    text = f"no worker could be started: {reason}"
                    self._carry_out(self.table.worker_failed(lease_id, "RuntimeEnvSetupError", text, now=now))
                case pools.End(worker_id, reason, is_forced):
                    self._processes.end(worker_id, reason, is_forced=is_forced)

    # --- time

    def _arm(self) -> None:
        if self._tick_timer is None and self.table.is_waiting() and not self._is_closed:
            self._tick_timer = self._loop.call_later(WAITING_TICK_S, self._tick)

    def _tick(self) -> None:
        self._tick_timer = None
        self._carry_out(self.table.tick(now=self._loop.time()))

    def _tick_pool(self) -> None:
        self._pool_timer = self._loop.call_later(POOL_TICK_S, self._tick_pool)
        self._carry_out_pool(self.pool.tick(now=self._loop.time()))


def client_of(connection: LoopConnection) -> ClientId:
    assert connection.hello is not None, "a client speaks after its Hello"
    return connection.hello.sender.worker_id
