"""Calls on their way out: arguments, leases, pushing tasks to workers, and what comes back.

Carries out what `leases.ShapePool` decides. Lives here: preparing arguments, lease messages with the
agents, replies of tasks, retries. Does not: actors' order (`actor_calls`), the decisions themselves.
"""

from __future__ import annotations

import functools
import itertools
import logging
import select
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retinue.core.client.leases import LeasedWorker, ShapePool
from retinue.core.client.peers import open_connection
from retinue.core.client.tasks import FunctionDef, TaskRecord, call_frame, definition_frames
from retinue.core.errors import (
    NodeDiedError,
    ObjectLostError,
    RetinueError,
    RetinueTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from retinue.core.ids import FIRST_RETURN, return_id
from retinue.core.ownership.table import ERROR, INLINE, PENDING, SHARD_BYTE, STORED
from retinue.core.references import ObjectRef
from retinue.core.serialization import deserialize, serialize, serialize_error
from retinue.core.transport.threads import Connection
from retinue.core.wire.failures import to_exception
from retinue.core.wire.messages import (
    REPLY_ARGUMENT_LOST,
    REPLY_CANCELLED,
    REPLY_ERROR,
    REPLY_RETURNS,
    Address,
    CallOptions,
    DeathInfo,
    Dependency,
    Failure,
    HandBack,
    LeaseBegin,
    LeaseDemand,
    LeaseGrant,
    LeaseLost,
    LeaseRecall,
    LeaseRedirect,
    LeaseRefused,
    LeaseReturn,
    Reply,
    Shape,
    StoredObject,
    StreamItem,
    WorkerExit,
)

if TYPE_CHECKING:
    from retinue.core.client.runtime import Runtime

logger = logging.getLogger(__name__)

INLINE_ARGS_LIMIT_BYTES = 100 * 1024
# Of a call: small objects among its arguments that travel in its frame.
INLINE_TOTAL_BYTES = 1024 * 1024
# How long after a call connection broke the agent may take to say how the worker died.
LEASE_LOST_GRACE_S = 1.0


class ArgSlot:
    """Stands for a top-level ObjectRef argument within pickled arguments."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> tuple[type[ArgSlot], tuple[int]]:
        return ArgSlot, (self.index,)


class Prepared:
    """Arguments ready to travel: bytes, what they hold, what is not there yet."""

    __slots__ = ("args", "args_object", "deps", "slots")

    def __init__(
        self,
        args: bytes = b"",
        deps: tuple[bytes, ...] = (),
        slots: tuple[bytes, ...] = (),
        args_object: StoredObject | None = None,
    ) -> None:
        self.args = args
        self.deps = deps
        self.slots = slots
        self.args_object = args_object


NO_ARGUMENTS = Prepared()


class Agent:
    """A node agent that grants us leases: our own node's, or one that we were redirected to."""

    __slots__ = ("address", "connection", "known_shapes")

    def __init__(self, address: Address, connection: Connection | None) -> None:
        self.address = address
        self.connection = connection
        self.known_shapes: set[int] = set()


class TaskSubmitter:
    """All tasks of this process that are not actors' calls."""

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

    # --- arguments

    def prepare(self, args: Sequence[Any], kwargs: Mapping[str, Any], *, outlives: bool = False) -> Prepared:
        """Pickle a call's arguments now (they may change later) and hold the objects in them.

        `outlives`: the pickle is needed after this process's end, by a detached actor that starts again.
        """
        if not args and not kwargs:
            return NO_ARGUMENTS
        slots: list[ObjectRef[Any]] = []
        for value in args:
            if type(value) is ObjectRef:
                args = [self._slot(slots, v) for v in args]
                break
        for value in kwargs.values():
            if type(value) is ObjectRef:
                kwargs = {k: self._slot(slots, v) for k, v in kwargs.items()}
                break
        serialized = serialize((tuple(args), kwargs))
        runtime = self._runtime
        if not slots and not serialized.found and serialized.size <= INLINE_ARGS_LIMIT_BYTES:
            return Prepared(serialized.to_bytes())
        held = [(ref._id, ref._owner) for ref in slots]
        held.extend(serialized.found)
        with runtime.lock:
            for object_id, owner in held:
                runtime.table.use(object_id, owner)
        deps = [object_id for object_id, _ in held]
        args_object = None
        blob = b""
        if serialized.size > INLINE_ARGS_LIMIT_BYTES:
            object_id = runtime.next_put_id()
            try:
                runtime.put_stored(object_id, serialized, None, refs=0, outlives=outlives)
            except BaseException:
                with runtime.lock:
                    runtime.table.unuse_all(deps)
                raise
            with runtime.lock:
                runtime.table.use(object_id)
            deps.append(object_id)
            args_object = StoredObject(object_id, runtime.address, runtime.node_id, serialized.size)
        else:
            blob = serialized.to_bytes()
        return Prepared(blob, tuple(deps), tuple(ref._id for ref in slots), args_object)

    @staticmethod
    def _slot(slots: list[ObjectRef[Any]], value: Any) -> Any:
        if type(value) is not ObjectRef:
            return value
        slots.append(value)
        return ArgSlot(len(slots) - 1)

    def dependencies(self, task: TaskRecord) -> list[Dependency] | None:
        """What the task's slots have become. Called with the lock, when all are ready.

        Raises the error of a dependency that failed.
        """
        if not task.slots:
            return None
        found = []
        runtime = self._runtime
        room = INLINE_TOTAL_BYTES
        shards = runtime.table.entries.shards
        for object_id in task.slots:
            entry = shards[object_id[SHARD_BYTE]][object_id]
            if entry.state == INLINE:
                room -= entry.size
                if room >= 0:
                    found.append(Dependency(entry.blob))
                else:
                    # The worker asks the owner for it: a frame has its limits.
                    owner = entry.owner or runtime.address
                    found.append(Dependency(None, StoredObject(object_id, owner, b"", entry.size)))
            elif entry.state == STORED:
                node = entry.nodes[0] if entry.nodes else b""
                owner = entry.owner or runtime.address
                found.append(Dependency(None, StoredObject(object_id, owner, node, entry.size)))
            elif entry.blob is not None:
                raise DependencyFailed(entry.blob)
            else:
                raise DependencyPending
        return found

    def await_dependencies(self, task: TaskRecord, then: Callable[[TaskRecord], None]) -> bool:
        """Whether slots are pending: then `then(task)` follows, once, when none is any more.

        `then` runs on any thread, maybe before this returns.
        """
        runtime = self._runtime
        shards = runtime.table.entries.shards
        pending = [i for i in task.slots if shards[i[SHARD_BYTE]][i].state == PENDING]
        if not pending:
            return False
        task.unready = len(pending)
        remaining = itertools.count(len(pending) - 1, -1)

        def ready() -> None:
            if next(remaining) == 0:
                task.unready = 0
                then(task)

        for object_id in pending:
            runtime.when_ready(object_id, ready)
        return True

    # --- submitting

    def pool_for(self, shape: Shape, key: bytes) -> ShapePool:
        """The pool of a shape, by its encoding."""
        pool = self._pool_of_shape.get(key)
        if pool is None:
            shape_id = next(self._shape_ids)
            pool = ShapePool(shape_id)
            self._shapes[shape_id] = shape
            self._pool_of_shape[key] = pool
            self._pools[shape_id] = pool
        return pool

    def submit(self, task: TaskRecord) -> None:
        """A new task, whose entries are in the table already."""
        if not task.slots or not self.await_dependencies(task, self._ready):
            self._ready(task)

    def _ready(self, task: TaskRecord) -> None:
        runtime = self._runtime
        failed: DependencyFailed | None = None
        with runtime.lock:
            if task.is_cancelled:
                return
            pool: ShapePool = task.pool
            try:
                dependencies = self.dependencies(task)
            except DependencyFailed as error:
                failed = error
            except DependencyPending:
                runtime.io.post(lambda: self.submit(task))
                return
            else:
                worker = pool.submit(task)
                if worker is not None:
                    self._send(worker, [task], dependencies, is_busy=len(worker.tasks) > 1)
                    runtime.submitted(worker.conn)
                    return
                if pool.demand_grew():
                    self._send_demand(pool)
        if failed is not None:
            self._finish_with_blob(task, failed.blob)
            return
        runtime.submitted(None)

    def _send(
        self,
        worker: LeasedWorker,
        tasks: list[TaskRecord],
        dependencies: Any = None,
        *,
        is_busy: bool = False,
    ) -> None:
        """Push tasks to a worker in one go. With the lock."""
        connection: Connection = worker.conn
        known = connection.known
        frames = []
        for task in tasks:
            function: FunctionDef = task.function
            if function.key not in known:
                known.add(function.key)
                frames.append(definition_frames(function))
            if task.slots and dependencies is None:
                try:
                    found = self.dependencies(task)
                except (DependencyFailed, DependencyPending):  # lost since it was ready
                    task.conn = None
                    worker.tasks.pop(task.task_id, None)
                    self._runtime.io.post(functools.partial(self._submit_again, worker, task))
                    continue
            else:
                found = dependencies
            frames.append(call_frame(task, found))
        if is_busy and frames:
            connection.gather(b"".join(frames), self._runtime.gathering)
        elif frames:
            connection.send_frame(frames[0] if len(frames) == 1 else b"".join(frames))

    def _submit_again(self, worker: LeasedWorker, task: TaskRecord) -> None:
        with self._runtime.lock:
            task.pool.withdrawn(worker, task.task_id)
            self._feed(task.pool)
        self.submit(task)

    def _feed(self, pool: ShapePool) -> None:
        """Tasks came back: give them to workers that have none, and ask for more. With the lock."""
        for worker, tasks in pool.feed():
            self._send(worker, tasks)
        self._send_demand(pool)

    # --- leases

    def use_agent(self, address: Address, connection: Connection) -> None:
        """The connection to this node's agent, made by whoever registered the process."""
        self._local = Agent(address, connection)

    def _send_demand(self, pool: ShapePool) -> None:
        """Tell the agent a changed need. With the lock: what was decided last must be sent last."""
        local = self._local
        if local is None or local.connection is None:
            return
        wanted = pool.demand()
        if wanted is None:
            return
        self._demand(local, pool, wanted, 0)
        if wanted == 0:
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
            self._redirect(message)
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

    def _granted(self, agent_connection: Connection, grant: LeaseGrant) -> None:
        pool = self._pools[grant.shape_id]
        key = self._agent_key(agent_connection)
        with self._runtime.lock:
            pool.grant_seen()
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
            self._on_call_message,
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
            if tasks:
                self._send(worker, tasks)
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
            self._return(pool, worker)

    def _return(self, pool: ShapePool, worker: LeasedWorker) -> None:
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
                self._feed(pool)
                idle = pool.returnable(now)
            for worker in idle:
                self._return(pool, worker)

    def has_leases(self) -> bool:
        return bool(self._leases)

    def is_busy(self) -> bool:
        """Whether any task waits or is in flight."""
        return any(p.is_busy() for p in list(self._pools.values()))

    def tick(self, now: float) -> None:
        """Tell the agent where the need for workers has changed."""
        if self._is_cut_off():
            self._fail_waiting(NodeDiedError("this process's node agent died: nobody can place tasks"))
            return
        for pool in list(self._pools.values()):
            if pool.pending or pool.has_asked():
                with self._runtime.lock:
                    self._send_demand(pool)

    def _is_cut_off(self) -> bool:
        local = self._local
        return local is not None and local.connection is not None and local.connection.is_closed

    def _fail_waiting(self, error: RetinueError) -> None:
        for pool in list(self._pools.values()):
            with self._runtime.lock:
                tasks = list(pool.pending)
                pool.pending.clear()
            for task in tasks:
                self.fail(task, error)

    def agent_lost(self, error: RetinueError) -> None:
        """Our own node's agent is gone, and with it its workers. What waits can go nowhere any more."""
        death = DeathInfo(reason="its node died", node_id=self._runtime.node_id)
        for key in [k for k in self._leases if not k[0]]:
            self._lease_lost(b"", key[1], death, node_died=True)
        self._fail_waiting(error)

    def _redirect(self, message: LeaseRedirect) -> None:
        pool = self._pools[message.shape_id]
        node_id = message.node.node_id
        agent = self._agents.get(node_id)
        with self._runtime.lock:
            pool.grant_seen(message.count)
        if agent is not None and agent.connection is not None and not agent.connection.is_closed:
            self._demand(agent, pool, message.count, 1)
            return

        def opened(connection: Connection | None) -> None:
            if connection is None:
                return  # that node is gone: the next tick asks our own agent again
            known = self._agents.get(node_id)
            if known is not None and known.connection is not None and not known.connection.is_closed:
                connection.on_close = _ignore  # two redirections at once: one connection is enough
                connection.lost()
                self._demand(known, pool, message.count, 1)
                return
            connection.context = node_id
            new = self._agents[node_id] = Agent(message.node, connection)
            self._runtime.io.watch(connection, add=select.EPOLLIN)
            connection.process()
            self._demand(new, pool, message.count, 1)

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
            self._finish_with_blob(task, blob)

    # --- answers

    def _on_call_message(self, connection: Connection, message: Any, payload: bytes) -> None:
        kind = type(message)
        lease: Lease = connection.context
        runtime = self._runtime
        if kind is Reply:
            now = time.monotonic()
            may_retry = message.status == REPLY_ERROR and self.may_retry(
                lease.worker.tasks.get(message.task_id), payload
            )
            with runtime.lock:
                task = lease.pool.finished(lease.worker, message.task_id, message.exec_us, now)
                if task is not None:
                    waiters = self.complete(task, message, payload, may_retry=may_retry)
                else:
                    waiters = []
                    runtime.ownership.refuse_returns(message)
                tasks = lease.pool.refill(lease.worker)
                if tasks:
                    self._send(lease.worker, tasks)
                leaving = lease.worker.is_leaving and not lease.worker.tasks
                effects = runtime.table.take_effects()
            for wake in waiters:
                wake()
            if effects is not None:
                runtime.ownership.carry_out(effects)
            if leaving:
                self._return(lease.pool, lease.worker)
        elif kind is HandBack:
            with runtime.lock:
                handed = lease.pool.handed_back(lease.worker, message.task_ids)
                cancelled = [t for t in handed if t.is_cancelled]
                lease.pool.resubmit([t for t in handed if not t.is_cancelled])
                self._feed(lease.pool)
                leaving = lease.worker.is_leaving and not lease.worker.tasks
            for task in cancelled:
                self.fail(task, runtime.cancelled_error(task.task_id, task_name(task)))
            if leaving:
                self._return(lease.pool, lease.worker)
        elif kind is StreamItem:
            runtime.ownership.stream_item(
                lease.worker.tasks.get(message.task_id), message, payload, connection
            )
        elif kind is WorkerExit:
            with runtime.lock:
                lease.is_reusable = False
                lease.pool.recalled(lease.worker.lease_id)
                done = not lease.worker.tasks
            if done:
                self._return(lease.pool, lease.worker)

    def complete(
        self, task: TaskRecord, reply: Reply, payload: bytes, *, may_retry: bool
    ) -> list[Callable[[], None]]:
        """Resolve a call's returns. With the lock; returns the waiters to wake.

        `may_retry`: what the method of that name said of the reply, if it is an error.
        """
        runtime = self._runtime
        table = runtime.table
        task.conn = None
        status = reply.status
        if status == REPLY_RETURNS and reply.returns is None:
            if task.num_returns == 1:
                waiters = table.resolve(task.task_id + FIRST_RETURN, INLINE, blob=payload)
            else:
                waiters = []
            if task.stream is not None:
                waiters = [*waiters, *task.stream.finished(None)]
            table.task_done(task, keep_lineage=False)
            return waiters
        if status == REPLY_RETURNS:
            return self._resolve_returns(task, reply, payload)
        if status == REPLY_CANCELLED:
            payload = serialize_error(runtime.cancelled_error(task.task_id, task_name(task)))
        elif may_retry and task.retries_left != 0 and not task.is_cancelled:
            self._retry(task)
            runtime.ownership.refuse_returns(reply)  # the references inside the error
            return []
        elif status == REPLY_ARGUMENT_LOST:
            runtime.io.post(functools.partial(self._argument_lost, task, payload[:-16], payload[-16:]))
            return []
        contained = runtime.ownership.take_contained(reply.returns[0].contained) if reply.returns else None
        return self._resolve_errors(task, payload, contained)

    def _argument_lost(self, task: TaskRecord, object_id: bytes, node_id: bytes) -> None:
        """The call could not begin: have the argument made again, and call again once it is there."""
        runtime = self._runtime
        if task.is_cancelled:
            self.fail(task, runtime.cancelled_error(task.task_id, task_name(task)))
            return
        error = ObjectLostError(
            object_id.hex(), message=f"an argument of {task_name(task)} lay on a node that is gone"
        )
        if task.args_object is not None and task.args_object.object_id == object_id:
            self.fail(task, error)  # its own pickled arguments: nobody can make them again
            return
        runtime.ownership.argument_lost(object_id, node_id, error)
        if task.function is not None:
            self.submit(task)
            return
        self.await_dependencies(task, lambda t: runtime.actors.drain(t.pool))
        with runtime.lock:
            task.pool.retry(task)
        runtime.actors.drain(task.pool)

    def _resolve_returns(self, task: TaskRecord, reply: Reply, payload: bytes) -> list[Callable[[], None]]:
        runtime = self._runtime
        table = runtime.table
        waiters: list[Callable[[], None]] = []
        position = 0
        stored = False
        for index, info in enumerate(reply.returns or ()):
            blob = b""
            if info.node_id:
                stored = True
            else:
                blob = payload[position : position + info.size]
                position += info.size
            waiters += runtime.ownership.take_return(return_id(task.task_id, index), info, blob)
        if task.stream is not None:
            waiters += task.stream.finished(None)
        # Only a task may be run again for a lost result: an actor's state has moved on.
        table.task_done(task, keep_lineage=stored and task.function is not None and task.retries_left != 0)
        return waiters

    def _resolve_errors(
        self, task: TaskRecord, blob: bytes, contained: list[bytes] | None = None
    ) -> list[Callable[[], None]]:
        """`contained`: the references inside the error, held once."""
        table = self._runtime.table
        waiters: list[Callable[[], None]] = []
        for index in range(max(task.num_returns, 0)):
            for held in contained or ():
                table.use(held)
            waiters += table.resolve(return_id(task.task_id, index), ERROR, blob=blob, contained=contained)
        if task.stream is not None:
            waiters += task.stream.finished(blob, contained)
        table.unuse_all(contained)
        table.task_done(task, keep_lineage=False)
        return waiters

    @staticmethod
    def may_retry(task: TaskRecord | None, blob: bytes) -> bool:
        """Whether the user's exception is one to retry the call after.

        Without the lock: unpickling it is the user's code, which may import, or make references.
        """
        wanted = task.retry_exceptions if task is not None and task.retries_left != 0 else None
        if not wanted or wanted is True:
            return bool(wanted)
        error = deserialize(blob)
        return isinstance(error.cause if isinstance(error, RetinueTaskError) else error, wanted)

    def _retry(self, task: TaskRecord) -> None:
        self._count_attempt(task)
        if task.function is None:
            task.pool.retry(task)
            self._runtime.io.post(lambda: self._runtime.actors.drain(task.pool))
        else:
            task.pool.resubmit([task])
            self._feed(task.pool)

    @staticmethod
    def _count_attempt(task: TaskRecord) -> None:
        if task.retries_left > 0:
            task.retries_left -= 1
        task.attempt += 1
        options = task.options or CallOptions()
        options.attempt = task.attempt
        task.options = options

    def _finish_with_blob(self, task: TaskRecord, blob: bytes) -> None:
        with self._runtime.lock:
            waiters = self._resolve_errors(task, blob)
        for wake in waiters:
            wake()
        self._runtime.after_unlock()
        if task.function is None:
            self._runtime.actors.check_idle(task.pool)

    def fail(self, task: TaskRecord, error: BaseException) -> None:
        """The task is over with an error that is not the user's."""
        self._finish_with_blob(task, serialize_error(error))

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
                    self._send_demand(pool)
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
                    self._count_attempt(task)
                    again.append(task)
                else:
                    failed.append(task)
            worker.tasks.clear()
            pool.resubmit(again)
            self._feed(pool)
        for task in failed:
            self.fail(task, self._death_error(task, death, node_died=node_died))
        self._runtime.submitted(None)

    def _death_error(self, task: TaskRecord, death: DeathInfo, *, node_died: bool) -> RetinueError:
        name = task_name(task)
        if task.is_cancelled:
            return self._runtime.cancelled_error(task.task_id, name)
        if node_died:
            return NodeDiedError(f"task {name}: the node that ran it died")
        if death.reason.startswith("out of memory"):
            from retinue.core.errors import OutOfMemoryError

            return OutOfMemoryError(f"task {name}: {death.describe()}")
        return WorkerCrashedError(f"task {name}: {death.describe()}")

    # --- cancelling

    def cancel(self, task: TaskRecord, *, force: bool, recursive: bool) -> None:
        """Cancel a task of this process's: drop it if it is not sent, else tell its worker."""
        runtime = self._runtime
        with runtime.lock:
            if task.is_done or task.is_cancelled:
                return
            task.is_cancelled = True
            task.retries_left = 0
            connection: Connection | None = task.conn
            if connection is None:
                try:
                    task.pool.pending.remove(task)
                except ValueError:
                    pass  # it waits for its arguments, or is on its way back from a worker
        if connection is None:
            self.fail(task, runtime.cancelled_error(task.task_id, task_name(task)))
            return
        lease: Lease = connection.context
        runtime.ownership.send_cancel(lease.address, task.task_id, force=force, recursive=recursive)

    # --- lineage

    def run_again(self, task: TaskRecord) -> None:
        """Make a lost result again: the task as it was, one retry less. Its returns are pending already."""
        with self._runtime.lock:
            task.is_done = False
            self._count_attempt(task)
        self.submit(task)


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


class DependencyPending(Exception):
    """An argument's object was there, was lost, and is being made again."""


class DependencyFailed(Exception):
    """An argument's object is an error; `blob` is that error."""

    def __init__(self, blob: bytes) -> None:
        super().__init__()
        self.blob = blob


def _ignore(connection: Connection) -> None:
    """Nobody is left to tell."""


def task_name(task: TaskRecord) -> str:
    if task.options is not None and task.options.name:
        return task.options.name
    if task.function is not None:
        return str(task.function.name)
    return task.method


__all__ = ["ArgSlot", "Prepared", "TaskCancelledError", "TaskSubmitter", "task_name"]
