"""The head's shell: connections and timers in, what the tables decide out.

Lives here: the loop, one handler per message, who is subscribed to what. Does not: decide. Every answer
waits until all that was written before it is durable, so nobody ever sees what a killed head would forget.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from retinue.core import strays
from retinue.core.config import HeadConfig
from retinue.core.errors import RetinueError, RetinueSystemError
from retinue.core.head import records as rec
from retinue.core.head.actors import (
    ALIVE,
    DEAD,
    FAILED,
    PENDING,
    Actor,
    ActorTable,
    Decision,
    Forgotten,
    Saved,
    Start,
    Stop,
)
from retinue.core.head.events import ERROR, INFO, WARNING, EventLog
from retinue.core.head.jobs import JobDecision, JobEnded, JobTable
from retinue.core.head.kv import Changed, KeyValueTable
from retinue.core.head.nodes import NodeDied, NodeTable
from retinue.core.head.storage import CommitLog, Storage
from retinue.core.transport.loop import LoopConnection, serve
from retinue.core.wire import messages as m
from retinue.core.wire.failures import to_failure
from retinue.core.wire.framing import encode

logger = logging.getLogger(__name__)

# A peer that reads so slowly has lost the thread: it connects again and gets the whole view.
MAX_UNSENT_BYTES = 64 * 1024 * 1024
VIEW_INTERVAL_S = 0.01
VIEW_INTERVAL_PER_WATCHER_S = 0.001  # a thousand agents get the view once a second
# Time that a driver has to find the new head, beyond its usual grace.
NEW_HEAD_GRACE_S = 5.0
# Beyond what its work was given, an agent may take so long to end.
AGENTS_END_S = 5.0

Handler = Callable[[Any, Any, bytes], None]


@dataclass(slots=True)
class Peer:
    """What the head remembers about a connection."""

    node_id: bytes = b""  # of the agent that it is
    job_id: bytes = b""  # of the driver that it is
    subscribed: set[bytes] = field(default_factory=set)


class HeadServer:
    """`start()` it on a running loop; `stopped` is set when somebody has asked it to end."""

    def __init__(self, config: HeadConfig, storage: Storage, *, rng: random.Random | None = None) -> None:
        self._config = config
        self._log = CommitLog(storage)
        loaded = rec.load(storage.load())
        self.epoch = loaded.epoch + 1
        self.records = rec.Records(self._log, loaded)
        self.nodes = NodeTable(grace_s=config.node_grace_s)
        self.actors = ActorTable(self.nodes, rng=rng or random.Random())
        self.jobs = JobTable(driver_grace_s=config.driver_grace_s, next_number=loaded.next_job)
        self.kv = KeyValueTable()
        self.events = EventLog()
        self.stopped = asyncio.Event()
        self._is_ending = False
        self._errors: dict[bytes, bytes] = {}  # actor id -> what its constructor raised
        self._agents: dict[bytes, LoopConnection] = {}
        self._drivers: dict[bytes, LoopConnection] = {}
        self._agent_pidfds: dict[bytes, int] = {}
        self._subscribers: dict[bytes, set[LoopConnection]] = {}  # actor id -> who gets ActorUpdate
        self._watchers: set[LoopConnection] = set()  # who gets ClusterView
        self._connections: set[LoopConnection] = set()
        self._view_timer: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._servers: list[asyncio.Server] = []
        self._handlers = self._handler_table()
        self._restore(loaded)

    def _restore(self, loaded: rec.Loaded) -> None:
        now = time.monotonic()
        for job in loaded.jobs:
            self.jobs.load(job, now=now, grace_s=self._config.driver_grace_s + NEW_HEAD_GRACE_S)
        for actor in loaded.actors:
            self.actors.load(actor)
        for namespace, key, value in loaded.values:
            self.kv.load(namespace, key, value)
        if loaded.node_ids:
            self.actors.is_recovering = True
            self.nodes.await_nodes(loaded.node_ids, until=now + self._config.register_grace_s)

    async def start(self, listeners: list[socket.socket]) -> None:
        """Answer on these sockets; Unix ones trust their folder, others ask for the token."""
        loop = asyncio.get_running_loop()
        self._log.start(loop)
        self.records.meta(rec.EPOCH, self.epoch)
        durable = loop.create_future()
        self._log.when_durable(lambda: durable.set_result(None))
        await durable  # or a head that dies now would hand out the same epoch twice
        for listener in listeners:
            token = None if listener.family == socket.AF_UNIX else self._config.token
            self._servers.append(await serve(listener, self._connected_message, self._closed, token=token))
        self._arm()
        logger.info("head of cluster %s: epoch %d", self._config.cluster_id, self.epoch)

    async def stop(self) -> None:
        """Close all connections, and return when the storage has everything."""
        for server in self._servers:
            server.close()
        for timer in (self._timer, self._view_timer):
            if timer is not None:
                timer.cancel()
        for connection in list(self._connections):
            connection.on_close = None
            connection.close()
        for node_id in list(self._agent_pidfds):
            self._forget_agent_process(node_id)
        await asyncio.get_running_loop().run_in_executor(None, self._log.stop)

    # messages

    def _handler_table(self) -> dict[type, Handler]:
        return {
            m.Hello: lambda connection, message, payload: None,
            m.Ping: lambda connection, message, payload: self._reply(connection, m.Ok(message.rid)),
            m.RegisterNode: self._register_node,
            m.NodeReport: self._node_report,
            m.WatchNodes: self._watch_nodes,
            m.ListNodes: self._list_nodes,
            m.DrainNode: self._drain_node,
            m.RegisterJob: self._register_job,
            m.NewJobId: self._new_job_id,
            m.FinishJob: self._finish_job,
            m.ListJobs: self._list_jobs,
            m.CreateActor: self._create_actor,
            m.FindActor: self._find_actor,
            m.KillActor: self._kill_actor,
            m.ReleaseActor: self._release_actor,
            m.ListActors: self._list_actors,
            m.ActorProgress: self._actor_progress,
            m.OwnerGone: self._owner_gone,
            m.KvPut: self._kv_put,
            m.KvGet: self._kv_get,
            m.KvDelete: self._kv_delete,
            m.KvKeys: self._kv_keys,
            m.KvWatch: self._kv_watch,
            m.KvUnwatch: lambda c, message, payload: self.kv.unwatch(c, message.namespace, message.prefix),
            m.Query: self._query,
            m.Shutdown: self._shutdown,
        }

    def _connected_message(self, connection: LoopConnection, message: Any, payload: bytes) -> None:
        if connection.context is None:
            connection.context = Peer()
            self._connections.add(connection)
        handler = self._handlers.get(type(message))
        if handler is None:
            raise RetinueSystemError(f"the head does not take {type(message).__name__}")
        try:
            handler(connection, message, payload)
        except (RetinueError, ValueError) as error:
            rid = getattr(message, "rid", 0)
            if not rid:
                raise
            connection.send(to_failure(rid, error))
        self._arm()

    def _reply(self, connection: LoopConnection, message: m.Message, payload: bytes = b"") -> None:
        self._log.when_durable(lambda: connection.send(message, payload))

    def _closed(self, connection: LoopConnection) -> None:
        self._connections.discard(connection)
        self._watchers.discard(connection)
        self.kv.watcher_gone(connection)
        peer: Peer | None = connection.context
        if peer is None:
            return
        for actor_id in peer.subscribed:
            self._subscribers.get(actor_id, set()).discard(connection)
        now = time.monotonic()
        if peer.node_id and self._agents.get(peer.node_id) is connection:
            del self._agents[peer.node_id]
            self._end_with_last_agent()
            self.nodes.connection_lost(peer.node_id, now=now)
        if peer.job_id and self._drivers.get(peer.job_id) is connection:
            del self._drivers[peer.job_id]
            self.jobs.driver_lost(peer.job_id, now=now)
        self._arm()

    # nodes

    def _register_node(self, connection: LoopConnection, message: m.RegisterNode, payload: bytes) -> None:
        info = message.node
        node_id = info.node_id
        self._learn_payloads(message.actors, payload)
        connection.context.node_id = node_id
        self._agents[node_id] = connection
        self.nodes.registered(info)
        self.records.save_node(node_id)
        self._watch_agent_process(info)
        logger.info("node %s registered with %d actors", node_id.hex()[:12], len(message.actors))
        self._happened(INFO, "NODE", f"node {node_id.hex()} registered", node_id=node_id.hex())
        connection.send(m.NodeAccepted(message.rid, self.epoch, self._config.cluster_id))
        self._carry_out(
            self.actors.node_registered(
                node_id, message.actors, live_processes=message.processes, now=time.monotonic()
            )
        )
        for actor_id, _, _ in self._payloads(payload):
            self.actors.payload_known(actor_id)
        self._tell_ended_jobs(connection)
        self._start_watching(connection)
        self._check_recovery()

    @staticmethod
    def _payloads(payload: bytes) -> list[tuple[bytes, bytes, bytes]]:
        if not payload:
            return []
        return msgspec.msgpack.decode(payload, type=list[tuple[bytes, bytes, bytes]])

    def _learn_payloads(self, infos: list[m.ActorInfo], payload: bytes) -> None:
        specs = {info.actor_id: info.spec for info in infos if info.spec is not None}
        for actor_id, definition, arguments in self._payloads(payload):
            if actor_id in specs and self.actors.get(actor_id) is None:
                self.records.add_actor(specs[actor_id], definition, arguments)

    def _tell_ended_jobs(self, connection: LoopConnection) -> None:
        """The agent may have been away when they ended."""
        for job in self.jobs:
            if self.jobs.has_ended(job.job_id):
                connection.send(m.JobFinished(job.job_id))

    def _node_report(self, connection: LoopConnection, message: m.NodeReport, payload: bytes) -> None:
        node_id = connection.context.node_id
        is_new = self.nodes.reported(
            node_id,
            message.available,
            waiting=message.waiting,
            demand=message.shapes,
            starts=message.starts,
            recallable=message.recallable,
        )
        self._carry_out(self.actors.node_reported(node_id, now=time.monotonic()))
        if is_new:
            self._push_views()

    def _watch_nodes(self, connection: LoopConnection, message: m.WatchNodes, payload: bytes) -> None:
        connection.send(m.Ok(message.rid))
        self._start_watching(connection)

    def _list_nodes(self, connection: LoopConnection, message: m.ListNodes, payload: bytes) -> None:
        self._reply(connection, m.NodeList(message.rid, self.nodes.infos()))

    def _drain_node(self, connection: LoopConnection, message: m.DrainNode, payload: bytes) -> None:
        if not self.nodes.drain(message.node_id):
            raise ValueError(f"there is no node {message.node_id.hex()}")
        logger.info("node %s drains: %s", message.node_id.hex()[:12], message.reason or "asked for")
        self._reply(connection, m.Ok(message.rid))
        self._push_views()

    def _node_died(self, died: NodeDied) -> None:
        logger.warning("node %s is dead: %s", died.node_id.hex()[:12], died.reason)
        node_id = died.node_id.hex()
        self._happened(ERROR, "NODE", f"node {node_id} is dead: {died.reason}", node_id=node_id)
        self._forget_agent_process(died.node_id)
        connection = self._agents.pop(died.node_id, None)
        if connection is not None:
            connection.close()
        self._end_with_last_agent()
        self.records.forget_node(died.node_id)
        now = time.monotonic()
        # The actors first: those whose driver was on the node as well are told of the node, not of their job.
        self._carry_out(self.actors.node_died(died.node_id, died.reason, now=now))
        self._carry_out_jobs(self.jobs.node_lost(died.node_id, wall_time=time.time()))
        self._push_views()

    def _watch_agent_process(self, info: m.NodeInfo) -> None:
        """An agent on this machine is dead when its process is, without any grace."""
        self._forget_agent_process(info.node_id)
        is_here = info.hostname == socket.gethostname() and os.path.exists(info.address.path)
        if not is_here or not info.pid:
            return
        try:
            pidfd = os.pidfd_open(info.pid)
        except OSError:
            return
        self._agent_pidfds[info.node_id] = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._agent_process_died, info.node_id)

    def _agent_process_died(self, node_id: bytes) -> None:
        self._forget_agent_process(node_id)
        # Its zygote does so as well, if it lives.
        asyncio.get_running_loop().run_in_executor(None, strays.end_strays, node_id)
        for died in self.nodes.died(node_id, "its agent process ended", wall_time=time.time()):
            self._node_died(died)
        self._arm()

    def _forget_agent_process(self, node_id: bytes) -> None:
        pidfd = self._agent_pidfds.pop(node_id, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)

    def _check_recovery(self) -> None:
        if not self.actors.is_recovering or self.nodes.is_recovering(now=time.monotonic()):
            return
        for node_id in self.nodes.give_up_awaited():
            logger.warning("node %s has not come back", node_id.hex()[:12])
            self.records.forget_node(node_id)
            self._carry_out_jobs(self.jobs.node_lost(node_id, wall_time=time.time()))
            self._carry_out(self.actors.node_died(node_id, "it did not come back", now=time.monotonic()))
        self._carry_out(self.actors.recovery_over(now=time.monotonic()))
        view = encode(m.ClusterView(self.nodes.infos(), True, self.epoch))
        for connection in list(self._watchers):
            connection.send_frame(view)

    # the cluster view

    def _start_watching(self, connection: LoopConnection) -> None:
        self._watchers.add(connection)
        connection.send(m.ClusterView(self.nodes.infos(), True, self.epoch, self.actors.is_recovering))
        self._push_views()

    def _push_views(self) -> None:
        if self._view_timer is None and self.nodes.has_changes():
            delay = max(VIEW_INTERVAL_S, VIEW_INTERVAL_PER_WATCHER_S * len(self._watchers))
            self._view_timer = asyncio.get_running_loop().call_later(delay, self._push_views_now)

    def _push_views_now(self) -> None:
        self._view_timer = None
        changes = self.nodes.take_changes()
        if changes:
            frame = encode(m.ClusterView(changes, False, self.epoch, self.actors.is_recovering))
            for connection in list(self._watchers):
                connection.send_frame(frame)
                self._drop_if_slow(connection)

    @staticmethod
    def _drop_if_slow(connection: LoopConnection) -> None:
        if not connection.is_closed and connection.unsent_bytes() > MAX_UNSENT_BYTES:
            logger.warning("closing the connection of %s: it does not read", connection.peer_name())
            connection.close()

    # jobs

    def _register_job(self, connection: LoopConnection, message: m.RegisterJob, payload: bytes) -> None:
        job = self.jobs.registered(message.job)
        connection.context.job_id = job.job_id
        self._drivers[job.job_id] = connection
        self.records.save_job(job)
        self.records.meta(rec.NEXT_JOB, self.jobs.next_number)
        self._reply(connection, m.JobAccepted(message.rid, job.job_id, self.epoch))

    def _new_job_id(self, connection: LoopConnection, message: m.NewJobId, payload: bytes) -> None:
        number = self.jobs.new_number()
        self.records.meta(rec.NEXT_JOB, self.jobs.next_number)
        self._reply(connection, m.Ok(message.rid, number))

    def _finish_job(self, connection: LoopConnection, message: m.FinishJob, payload: bytes) -> None:
        self._carry_out_jobs(
            self.jobs.finish(
                message.job_id, status=message.status, message=message.message, wall_time=time.time()
            )
        )

    def _list_jobs(self, connection: LoopConnection, message: m.ListJobs, payload: bytes) -> None:
        self._reply(connection, m.JobList(message.rid, list(self.jobs)))

    def _carry_out_jobs(self, decisions: list[JobDecision]) -> None:
        for decision in decisions:
            if not isinstance(decision, JobEnded):
                self.records.forget_job(decision.job_id)
                continue
            job = decision.job
            logger.info("job %s %s %s", job.job_id.hex(), job.status, job.message)
            text = f"job {job.job_id.hex()} {job.status} {job.message}".rstrip()
            self._happened(INFO, "JOB", text, job_id=job.job_id.hex())
            self.records.save_job(job)
            self._carry_out(self.actors.job_ended(job.job_id))
            for agent in self._agents.values():
                agent.send(m.JobFinished(job.job_id))

    # actors

    def _create_actor(self, connection: LoopConnection, message: m.CreateActor, payload: bytes) -> None:
        spec = message.spec
        if self.jobs.has_ended(spec.job_id) and not spec.detached:
            raise RetinueSystemError(f"job {spec.job_id.hex()} has ended")
        is_new = self.actors.get(spec.actor_id) is None
        actor, decisions = self.actors.create(spec, get_if_exists=message.get_if_exists, now=time.monotonic())
        if is_new and actor.actor_id == spec.actor_id:
            self.records.add_actor(spec, payload[: message.class_size], payload[message.class_size :])
        self._carry_out(decisions)
        self._answer_actor(connection, message.rid, actor)

    def _find_actor(self, connection: LoopConnection, message: m.FindActor, payload: bytes) -> None:
        if message.actor_id:
            actor = self.actors.get(message.actor_id)
            if actor is None:
                raise ValueError(f"there is no actor {message.actor_id.hex()} (it may have ended long ago)")
        else:
            actor = self.actors.by_name(message.namespace, message.name)
            if actor is None:
                raise ValueError(
                    f"there is no actor named {message.name!r} in namespace {message.namespace!r}; "
                    "it was not created, or has ended"
                )
        self._answer_actor(connection, message.rid, actor)

    def _answer_actor(self, connection: LoopConnection, rid: int, actor: Actor) -> None:
        if actor.state != DEAD:
            self._subscribers.setdefault(actor.actor_id, set()).add(connection)
            connection.context.subscribed.add(actor.actor_id)
        answer = m.ActorAnswer(rid, actor.info(with_spec=True))
        self._reply(connection, answer, self._errors.get(actor.actor_id, b""))

    def _kill_actor(self, connection: LoopConnection, message: m.KillActor, payload: bytes) -> None:
        self._carry_out(self.actors.kill(message.actor_id, no_restart=message.no_restart))
        self._reply(connection, m.Ok(message.rid))

    def _release_actor(self, connection: LoopConnection, message: m.ReleaseActor, payload: bytes) -> None:
        self._carry_out(self.actors.release(message.actor_id))

    def _list_actors(self, connection: LoopConnection, message: m.ListActors, payload: bytes) -> None:
        found = []
        for actor in self.actors:
            spec = actor.spec
            if message.named_only and (not spec.name or actor.state == DEAD):
                continue
            if message.namespace is not None and spec.namespace != message.namespace:
                continue
            found.append(actor.info(with_spec=True))
            if len(found) >= message.limit:
                break
        self._reply(connection, m.ActorList(message.rid, found))

    def _actor_progress(self, connection: LoopConnection, message: m.ActorProgress, payload: bytes) -> None:
        if message.state == FAILED:
            self._errors[message.actor_id] = payload
        self._carry_out(
            self.actors.progress(
                connection.context.node_id,
                message.actor_id,
                message.incarnation,
                message.state,
                address=message.address,
                pid=message.pid,
                death=message.death,
                now=time.monotonic(),
            )
        )

    def _owner_gone(self, connection: LoopConnection, message: m.OwnerGone, payload: bytes) -> None:
        """A process, or (an agent's own goodbye) a node."""
        node = self.nodes.get(connection.context.node_id)
        if node is not None and node.address.worker_id == message.worker_id:
            for died in self.nodes.died(node.node_id, "it was shut down", wall_time=time.time()):
                self._node_died(died)
            return
        self._carry_out_jobs(self.jobs.owner_gone(message.worker_id, wall_time=time.time()))
        self._carry_out(self.actors.owner_gone(message.worker_id))

    def _carry_out(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Start):
                self._start_actor(decision)
            elif isinstance(decision, Stop):
                self._stop_actor(decision)
            elif isinstance(decision, Forgotten):
                self._errors.pop(decision.actor_id, None)
                self._subscribers.pop(decision.actor_id, None)
            else:
                actor = self.actors.get(decision.actor_id)
                if actor is not None:
                    self._actor_changed(actor, is_published=not isinstance(decision, Saved))

    def _start_actor(self, start: Start) -> None:
        actor = self.actors.get(start.actor_id)
        agent = self._agents.get(start.node_id)
        if actor is None or agent is None:
            return  # the node's registration will say that it does not have the actor
        definition, arguments = self.records.payload(actor.spec)
        message = m.StartActor(actor.spec, start.incarnation, len(definition))
        agent.send(message, definition + arguments)

    def _stop_actor(self, stop: Stop) -> None:
        agent = self._agents.get(stop.node_id)
        if agent is not None:
            agent.send(m.StopActor(stop.actor_id, stop.incarnation, stop.force, stop.reason))

    def _actor_changed(self, actor: Actor, *, is_published: bool) -> None:
        if actor.state == DEAD:
            self.records.remove_actor(actor.spec)
            self._free_arguments(actor.spec)
        else:
            self.records.save_actor(actor)
        if is_published:
            self._publish(actor)  # once that is durable

    def _free_arguments(self, spec: m.ActorSpec) -> None:
        """Those of a detached actor outlive the process that made them, which frees the others'."""
        if spec.detached and spec.args_object is not None:
            for agent in self._agents.values():
                agent.send(m.FreeObjects([spec.args_object.object_id]))

    def _publish(self, actor: Actor) -> None:
        name = actor.spec.name or actor.actor_id.hex()[:12]
        if actor.state != ALIVE:
            logger.info("actor %s (%s) is %s: %s", name, actor.spec.class_name, actor.state, actor.cause)
            if actor.state != PENDING:
                text = f"actor {name} ({actor.spec.class_name}) is {actor.state}: {actor.cause}"
                severity = INFO if actor.death is not None and actor.death.intended else WARNING
                self._happened(severity, "ACTOR", text, actor_id=actor.actor_id.hex())
        update = m.ActorUpdate(actor.info())
        error = self._errors.get(actor.actor_id, b"") if actor.has_error else b""
        for connection in self._subscribers.get(actor.actor_id, ()):
            self._reply(connection, update, error)
        if actor.state == DEAD:
            for connection in self._subscribers.pop(actor.actor_id, set()):
                connection.context.subscribed.discard(actor.actor_id)

    # key-value

    def _kv_put(self, connection: LoopConnection, message: m.KvPut, payload: bytes) -> None:
        changed = self.kv.put(message.namespace, message.key, payload, overwrite=message.overwrite)
        if changed is not None:
            self._kv_changed(changed)
        self._reply(connection, m.Ok(message.rid, int(changed is not None)))

    def _kv_get(self, connection: LoopConnection, message: m.KvGet, payload: bytes) -> None:
        value = self.kv.get(message.namespace, message.key)
        self._reply(connection, m.KvValue(message.rid, value is not None), value or b"")

    def _kv_delete(self, connection: LoopConnection, message: m.KvDelete, payload: bytes) -> None:
        changes = self.kv.delete(message.namespace, message.key, by_prefix=message.by_prefix)
        for changed in changes:
            self._kv_changed(changed)
        self._reply(connection, m.Ok(message.rid, len(changes)))

    def _kv_keys(self, connection: LoopConnection, message: m.KvKeys, payload: bytes) -> None:
        self._reply(connection, m.KvKeyList(message.rid, self.kv.keys(message.namespace, message.prefix)))

    def _kv_watch(self, connection: LoopConnection, message: m.KvWatch, payload: bytes) -> None:
        self._reply(connection, m.Ok(message.rid))
        for changed in self.kv.watch(connection, message.namespace, message.prefix):
            self._kv_tell(changed)

    def _kv_changed(self, changed: Changed) -> None:
        self.records.put_value(changed.namespace, changed.key, changed.value)
        if changed.watchers:
            self._kv_tell(changed)

    def _kv_tell(self, changed: Changed) -> None:
        message = m.KvChanged(changed.namespace, changed.key, changed.value is None)
        for connection in changed.watchers:
            assert isinstance(connection, LoopConnection)
            self._reply(connection, message, changed.value or b"")
            self._drop_if_slow(connection)

    # people and tools

    def _happened(self, severity: str, source: str, text: str, **fields: str) -> None:
        self.events.add(severity, source, text, wall_time=time.time(), **fields)

    def _query(self, connection: LoopConnection, message: m.Query, payload: bytes) -> None:
        document: Any
        if message.what == "demand":
            document = [
                {"node_id": node_id.hex(), "shapes": shapes} for node_id, shapes in self.nodes.demand()
            ]
        elif message.what == "summary":
            document = {
                "cluster_id": self._config.cluster_id,
                "epoch": self.epoch,
                "pid": os.getpid(),
                "is_recovering": self.actors.is_recovering,
                "nodes": sum(info.alive for info in self.nodes.infos()),
                "actors": sum(actor.state != DEAD for actor in self.actors),
                "jobs": sum(self.jobs.is_running(job.job_id) for job in self.jobs),
                "values": self.kv.size(),
            }
        elif message.what == "events":
            document = self.events.document()
        else:
            known = "'demand', 'events' and 'summary'"
            raise ValueError(f"the head knows {known}, not {message.what!r}")
        self._reply(connection, m.Document(message.rid), msgspec.msgpack.encode(document))

    def _shutdown(self, connection: LoopConnection, message: m.Shutdown, payload: bytes) -> None:
        """All agents end, then the head: agents that serve on would register with nobody."""
        logger.info("the cluster is shut down")
        for agent in self._agents.values():
            agent.start_request(m.Shutdown(0, message.grace_period_s)).add_done_callback(_ignore)
        self._reply(connection, m.Ok(message.rid))
        self._is_ending = True
        if message.grace_period_s <= 0 or not self._agents:
            self._log.when_durable(self.stopped.set)
        else:
            asyncio.get_running_loop().call_later(
                message.grace_period_s + AGENTS_END_S, self._log.when_durable, self.stopped.set
            )

    def _end_with_last_agent(self) -> None:
        if self._is_ending and not self._agents:
            self._log.when_durable(self.stopped.set)

    # time

    def _arm(self) -> None:
        """See that `_tick` runs at the earliest deadline of any table."""
        times = [t.next_deadline() for t in (self.nodes, self.jobs, self.actors)]
        deadline = min((t for t in times if t is not None), default=None)
        if deadline is None:
            return
        if self._timer is not None and self._timer_at <= deadline:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        delay = max(0.0, deadline - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay + 0.001, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = time.monotonic()
        for died in self.nodes.tick(now=now, wall_time=time.time()):
            self._node_died(died)
        self._check_recovery()
        self._carry_out_jobs(self.jobs.tick(now=now, wall_time=time.time()))
        self._carry_out(self.actors.tick(now=now))
        self._arm()


def _ignore(future: asyncio.Future[Any]) -> None:
    """The answer does not matter, nor that none came."""
    if not future.cancelled():
        future.exception()
