"""Leases of workers as the calling process has them: asked for, used, given back, lost with their worker.

Carries out what `leases.ShapePool` decides. Lives here: messages with node agents, connections to leased
workers. Does not: pushing tasks to them and their answers (`submission`), the decisions themselves.
"""

from __future__ import annotations

import itertools
import select
import time
from typing import TYPE_CHECKING, Any

from retinue.core.client.leases import LeasedWorker, ShapePool
from retinue.core.client.peers import open_connection
from retinue.core.client.replies import task_name
from retinue.core.client.tasks import TaskRecord
from retinue.core.errors import NodeDiedError, OutOfMemoryError, RetinueError, WorkerCrashedError
from retinue.core.scheduling.policies import SPREAD
from retinue.core.serialization import serialize_error
from retinue.core.transport.threads import Connection
from retinue.core.wire.failures import to_exception
from retinue.core.wire.messages import (
    Address,
    DeathInfo,
    Failure,
    LeaseBegin,
    LeaseDemand,
    LeaseGrant,
    LeaseLost,
    LeaseRecall,
    LeaseRedirect,
    LeaseRefused,
    LeaseReturn,
    Shape,
)

if TYPE_CHECKING:
    from retinue.core.client.runtime import Runtime

# How long after a call connection broke the agent may take to say how the worker died.
LEASE_LOST_GRACE_S = 1.0


class Agent:
    """A node agent that grants us leases: our own node's, or one that we were redirected to."""

    __slots__ = ("address", "connection", "known_shapes")

    def __init__(self, address: Address, connection: Connection | None) -> None:
        self.address = address
        self.connection = connection
        self.known_shapes: set[int] = set()


class Lease:
    """What a call connection is used for now."""

    __slots__ = ("address", "agent", "is_reusable", "lease_id", "pool", "worker")

    def __init__(
        self, pool: ShapePool, worker: LeasedWorker, agent: bytes, lease_id: int, address: Address
    ) -> None:
        self.pool = pool
        self.worker = worker
        self.agent = agent  # node id of a remote agent, b"" for our own
        self.lease_id = lease_id
        self.address = address
        self.is_reusable = True  # False once the worker has said that it leaves

    def is_busy(self) -> bool:
        return bool(self.worker.tasks)


def lease_of(connection: Connection) -> Lease:
    lease: Lease = connection.context
    return lease


class LeaseClient:
    """All leases of this process, by shape and agent."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._pools: dict[int, ShapePool] = {}
        self._shapes: dict[int, Shape] = {}
        self._pool_of_shape: dict[bytes, ShapePool] = {}
        self._shape_ids = itertools.count(1)
        self._lease_keys = itertools.count(1)
        self._leases: dict[tuple[bytes, int], tuple[ShapePool, LeasedWorker]] = {}
        self._connections: dict[bytes, Connection] = {}  # to workers, by worker id
        self._agents: dict[bytes, Agent] = {}  # remote ones, by node id
        self._local: Agent | None = None

    def pool_for(self, shape: Shape, key: bytes) -> ShapePool:
        """The pool of a shape, by its encoding."""
        pool = self._pool_of_shape.get(key)
        if pool is None:
            shape_id = next(self._shape_ids)
            pool = ShapePool(shape_id, is_spread=shape.strategy == SPREAD)
            self._shapes[shape_id] = shape
            self._pool_of_shape[key] = pool
            self._pools[shape_id] = pool
        return pool

    def is_busy(self) -> bool:
        """Whether any task waits or is in flight."""
        return any(p.is_busy() for p in list(self._pools.values()))

    # --- agents

    def use_agent(self, address: Address, connection: Connection) -> None:
        """The connection to this node's agent, made by whoever registered the process."""
        self._local = Agent(address, connection)

    def send_demand(self, pool: ShapePool) -> None:
        """Tell the agent a changed need. With the lock: what was decided last must be sent last."""
        local = self._local
        if local is None or local.connection is None:
            return
        wanted = pool.demand()
        if wanted is not None:
            self._demand(local, pool, wanted, 0)
        if not pool.pending and (pool.take_elsewhere() or wanted == 0):
            for agent in self._agents.values():  # what we were redirected for is not needed any more
                if pool.shape_id in agent.known_shapes and agent.connection is not None:
                    self._demand(agent, pool, 0, 1)

    def _demand(self, agent: Agent, pool: ShapePool, wanted: int, hops: int) -> None:
        assert agent.connection is not None
        shape = None
        if pool.shape_id not in agent.known_shapes:
            agent.known_shapes.add(pool.shape_id)
            shape = self._shapes[pool.shape_id]
        agent.connection.send(LeaseDemand(pool.shape_id, wanted, shape, hops))

    def on_agent_message(self, connection: Connection, message: Any, payload: bytes) -> bool:
        """Lease messages of any agent; False if the message is not one."""
        kind = type(message)
        if kind is LeaseGrant:
            self._granted(connection, message)
        elif kind is LeaseRecall:
            self._recalled(connection, message)
        elif kind is LeaseLost:
            self._lease_lost(self._agent_key(connection), message.lease_id, message.death)
        elif kind is LeaseRedirect:
            self._redirect(connection, message)
        elif kind is LeaseRefused:
            self._refused(message)
        else:
            return False
        return True

    def _agent_key(self, connection: Connection) -> bytes:
        return connection.context if isinstance(connection.context, bytes) else b""

    def _agent_of(self, key: bytes) -> Connection | None:
        agent = self._local if not key else self._agents.get(key)
        return agent.connection if agent is not None else None

    # --- leases

    def _granted(self, agent_connection: Connection, grant: LeaseGrant) -> None:
        pool = self._pools[grant.shape_id]
        key = self._agent_key(agent_connection)
        with self._runtime.lock:
            pool.grant_seen(node_id=key)
            needed = bool(pool.pending)
        if not needed:
            agent_connection.send(LeaseReturn(grant.lease_id))
            return
        existing = self._connections.get(grant.worker.worker_id)
        if existing is not None and not existing.is_closed:
            self._begin(pool, key, grant, existing)
            return
        open_connection(
            self._runtime,
            grant.worker,
            "calls",
            self._runtime.tasks.on_call_message,
            self._call_connection_lost,
            lambda c: self._begin(pool, key, grant, c),
        )

    def _begin(self, pool: ShapePool, key: bytes, grant: LeaseGrant, connection: Connection | None) -> None:
        runtime = self._runtime
        agent = self._agent_of(key)
        if connection is None:
            # The worker died before we reached it; the agent will say so, or is gone itself.
            if agent is not None:
                agent.send(LeaseReturn(grant.lease_id, reusable=False))
            return
        if self._connections.get(grant.worker.worker_id) is not connection:
            self._connections[grant.worker.worker_id] = connection
            runtime.add_direct(connection)
        connection.send(LeaseBegin(grant.lease_id, self._shapes[pool.shape_id].resources, grant.instances))
        worker = LeasedWorker(next(self._lease_keys), connection, time.monotonic())
        context = Lease(pool, worker, key, grant.lease_id, grant.worker)
        connection.context = context
        with runtime.lock:
            self._leases[(key, grant.lease_id)] = (pool, worker)
            pool.granted(worker)
            tasks = pool.refill(worker)
            pool.one_task_only(worker)
            if tasks:
                runtime.tasks.send(worker, tasks)
            # With several workers whoever waits on one must not let another run dry.
            share = len(pool.workers) > 1 and bool(pool.pending)
        if share:
            for other in list(pool.workers.values()):
                runtime.watch_for_a_while(other.conn)
        runtime.submitted(connection)

    def _recalled(self, agent_connection: Connection, recall: LeaseRecall) -> None:
        found = self._leases.get((self._agent_key(agent_connection), recall.lease_id))
        if found is None:
            return
        pool, worker = found
        with self._runtime.lock:
            pool.recalled(worker.lease_id)
            done = not worker.tasks
        if done:
            self.give_back(pool, worker)

    def give_back(self, pool: ShapePool, worker: LeasedWorker) -> None:
        lease: Lease = worker.conn.context
        with self._runtime.lock:
            if pool.removed(worker.lease_id) is None:
                return
        self._leases.pop((lease.agent, lease.lease_id), None)
        agent = self._agent_of(lease.agent)
        if agent is not None:
            agent.send(LeaseReturn(lease.lease_id, lease.is_reusable))

    def return_idle_leases(self, now: float) -> None:
        for pool in list(self._pools.values()):
            if not pool.workers:
                continue
            with self._runtime.lock:
                self._runtime.tasks.feed(pool)
                idle = pool.returnable(now)
            for worker in idle:
                self.give_back(pool, worker)

    def has_leases(self) -> bool:
        return bool(self._leases)

    def tick(self, now: float) -> None:
        """Tell the agent where the need for workers has changed."""
        if self._is_cut_off():
            self._fail_waiting(NodeDiedError("this process's node agent died: nobody can place tasks"))
            return
        for pool in list(self._pools.values()):
            if pool.pending or pool.has_asked():
                with self._runtime.lock:
                    pool.lose_patience(now)
                    self.send_demand(pool)

    def _is_cut_off(self) -> bool:
        local = self._local
        return local is not None and local.connection is not None and local.connection.is_closed

    def _fail_waiting(self, error: RetinueError) -> None:
        for pool in list(self._pools.values()):
            with self._runtime.lock:
                tasks = list(pool.pending)
                pool.pending.clear()
            for task in tasks:
                self._runtime.replies.fail(task, error)

    def agent_lost(self, error: RetinueError) -> None:
        """Our own node's agent is gone, and with it its workers. What waits can go nowhere any more."""
        death = DeathInfo(reason="its node died", node_id=self._runtime.node_id)
        for key in [k for k in self._leases if not k[0]]:
            self._lease_lost(b"", key[1], death, node_died=True)
        self._fail_waiting(error)

    def _redirect(self, connection: Connection, message: LeaseRedirect) -> None:
        pool = self._pools[message.shape_id]
        node_id = message.node.node_id
        agent = self._agents.get(node_id)
        with self._runtime.lock:
            if node_id == self._runtime.node_id:
                pool.grant_seen(message.count, self._agent_key(connection))
                # Another node knows of room at home. There our whole need is known already, and is a level:
                # to ask for `count` would be to take the rest of it back.
                self.send_demand(pool)
                return
            source = self._agent_key(connection)
            wanted = pool.redirected(message.count, node_id, source, time.monotonic())
        if agent is not None and agent.connection is not None and not agent.connection.is_closed:
            self._demand(agent, pool, wanted, 1)
            return

        def opened(new: Connection | None) -> None:
            if new is None:
                return  # that node is gone: the next tick asks our own agent again
            known = self._agents.get(node_id)
            if known is not None and known.connection is not None and not known.connection.is_closed:
                new.on_close = _ignore  # two redirections at once: one connection is enough
                new.lost()
            else:
                new.context = node_id
                known = self._agents[node_id] = Agent(message.node, new)
                self._runtime.io.watch(new, add=select.EPOLLIN)
                new.process()
            self._demand(known, pool, wanted, 1)

        open_connection(
            self._runtime, message.node, "agent", self._on_remote_agent, self._remote_agent_lost, opened
        )

    def _on_remote_agent(self, connection: Connection, message: Any, payload: bytes) -> None:
        if not self.on_agent_message(connection, message, payload):
            raise ConnectionError(f"unexpected {type(message).__name__} from a remote agent")

    def close(self) -> None:
        """Close the connections to other nodes' agents, after the I/O thread's end."""
        for agent in self._agents.values():
            if agent.connection is not None:
                agent.connection.on_close = _ignore
                agent.connection.lost()

    def _remote_agent_lost(self, connection: Connection) -> None:
        node_id = connection.context
        self._agents.pop(node_id, None)
        death = DeathInfo(reason="its node died", node_id=node_id)
        for key in [k for k in self._leases if k[0] == node_id]:
            self._lease_lost(node_id, key[1], death, node_died=True)

    def _refused(self, message: LeaseRefused) -> None:
        pool = self._pools[message.shape_id]
        error = to_exception(Failure(0, message.kind, message.message))
        with self._runtime.lock:
            for agent in (self._local, *self._agents.values()):
                if agent is not None:
                    agent.known_shapes.discard(message.shape_id)
            pool.forget_demand()
            tasks = list(pool.pending)
            pool.pending.clear()
        blob = serialize_error(error)
        for task in tasks:
            self._runtime.replies.finish_with_blob(task, blob)

    # --- workers that die

    def _call_connection_lost(self, connection: Connection) -> None:
        lease: Lease | None = connection.context
        if lease is None:
            return
        if self._connections.get(lease.address.worker_id) is connection:
            del self._connections[lease.address.worker_id]
        with self._runtime.lock:
            # The agent says how it died (LeaseLost); until then nothing is decided about its tasks.
            lease.pool.recalled(lease.worker.lease_id)
        self._runtime.io.call_later(LEASE_LOST_GRACE_S, lambda: self._broken(lease))

    def _broken(self, lease: Lease) -> None:
        """Nobody said that the worker died: it lives, and only the connection to it broke."""
        if (lease.agent, lease.lease_id) not in self._leases or self._runtime.is_stopping:
            return
        agent = self._agent_of(lease.agent)
        if agent is not None:
            agent.send(LeaseReturn(lease.lease_id, reusable=False))
        death = DeathInfo(worker_id=lease.address.worker_id, reason="the connection to it broke")
        self._lease_lost(lease.agent, lease.lease_id, death)

    def _lease_lost(self, agent: bytes, lease_id: int, death: DeathInfo, *, node_died: bool = False) -> None:
        found = self._leases.pop((agent, lease_id), None)
        if found is None:
            # A grant that never reached us: the agent counts it as served, so ask anew.
            with self._runtime.lock:
                for pool in self._pools.values():
                    pool.forget_demand()
                    self.send_demand(pool)
            return
        pool, worker = found
        connection: Connection = worker.conn
        # What it had answered before it died may still be unread.
        if not connection.is_closed:
            with connection.read_lock:
                while not connection.is_closed and connection.receive(wait=False):
                    pass
        again: list[TaskRecord] = []
        failed: list[TaskRecord] = []
        with self._runtime.lock:
            pool.removed(worker.lease_id)
            for index, task in enumerate(worker.tasks.values()):
                task.conn = None
                if task.is_cancelled:
                    failed.append(task)
                elif not lease_of(connection).is_reusable or (index > 0 and task.retries_left != 0):
                    again.append(task)  # not started: costs no retry
                elif task.retries_left != 0:
                    self._runtime.replies.count_attempt(task)
                    again.append(task)
                else:
                    failed.append(task)
            worker.tasks.clear()
            pool.resubmit(again)
            self._runtime.tasks.feed(pool)
        for task in failed:
            self._runtime.replies.fail(task, self._death_error(task, death, node_died=node_died))
        self._runtime.submitted(None)

    def _death_error(self, task: TaskRecord, death: DeathInfo, *, node_died: bool) -> RetinueError:
        name = task_name(task)
        if task.is_cancelled:
            return self._runtime.cancelled_error(task.task_id, name)
        if node_died:
            return NodeDiedError(f"task {name}: the node that ran it died")
        if death.reason.startswith("out of memory"):
            return OutOfMemoryError(f"task {name}: {death.describe()}")
        return WorkerCrashedError(f"task {name}: {death.describe()}")


def _ignore(connection: Connection) -> None:
    """Nobody is left to tell."""
