"""The node agent: puts its rooms together, and says which message is whose.

Lives here: the listeners, the table of messages, deaths told to every room, starting and stopping in
order. Does not: anything that a room does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
from collections.abc import Callable, Collection
from typing import Any

from retinue.core.config import AgentConfig
from retinue.core.errors import RetinueSystemError
from retinue.core.node import memory
from retinue.core.node.accelerators import GpuSource, NvmlGpus, device_ids
from retinue.core.node.actors import ActorRoom
from retinue.core.node.cluster import Cluster
from retinue.core.node.leasing import Leasing
from retinue.core.node.leaving import REASON, Leaving
from retinue.core.node.limits import cpu_count, node_resources, store_bytes
from retinue.core.node.listeners import ListenerRoom
from retinue.core.node.logs import LogFollower
from retinue.core.node.owners import OwnerRoom
from retinue.core.node.pool import WorkerPool
from retinue.core.node.processes import DRIVER, WORKER, Process, Processes
from retinue.core.node.pulling import Pulling
from retinue.core.node.queries import QueryRoom
from retinue.core.node.spawner import Spawner
from retinue.core.node.store import StoreRoom
from retinue.core.node.zygote import WORKER_MODULE
from retinue.core.node.zygote_start import ZygoteProcess, home_of
from retinue.core.objects.spill import MIN_FREE_SHARE
from retinue.core.scheduling.leases import LeaseTable
from retinue.core.scheduling.policies import NodeView
from retinue.core.scheduling.resources import CPU, GPU, MEMORY, UNIT, NodeResources, to_floats
from retinue.core.transport.loop import LoopConnection, serve
from retinue.core.wire import messages as m

logger = logging.getLogger(__name__)

LOG_INTERVAL_S = 0.1
# A driver that leaves waits so long for the last lines of other nodes.
LAST_LINES_TIMEOUT_S = 0.5
MAX_PRESTART = 4
# An idle connection that has not said Hello is nobody's; TCP ones are cut by their handshake's limit.
KNOWN_KINDS = ("agent", "node", "pull", "head", "peer")

Handler = Callable[[LoopConnection, Any, bytes], None]
OfProcess = Callable[[Process, Any, bytes], None]


class Agent:
    """`start` it on a running loop; `stopped` is set when it is asked to end; then `stop`."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        lifeline_fd: int,
        first_zygote: ZygoteProcess | None = None,
        rng: random.Random | None = None,
        gpus: GpuSource | None = None,
    ) -> None:
        rng = rng or random.Random()
        self.config = config
        self.stopped = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._start_time = time.time()
        knobs = config.system_config
        gpus = gpus or NvmlGpus()
        total = node_resources(config, gpus)
        names = device_ids(gpus.gpus(), os.environ) if GPU in total else []
        self._short_share = memory.threshold(os.environ)
        self._memory_limit = int(knobs.get("memory_limit", 0))  # of all workers together; 0 = the machine's
        self._accelerator_ids = {GPU: names} if names else {}
        cpus = int(total.get(CPU, 0)) or 1
        self._prestart = min(cpus, int(knobs.get("prestart", MAX_PRESTART)))
        table = LeaseTable(node_id=config.node_id, resources=NodeResources(total), rng=rng)
        pool = WorkerPool(
            keep_idle=cpus, max_starting=max(8, 4 * cpu_count()), new_worker_id=lambda: os.urandom(16)
        )
        self.spawner = Spawner(
            lifeline_fd=lifeline_fd,
            worker_module=knobs.get("worker_module", WORKER_MODULE),
            first=first_zygote,
            home=home_of(config),
        )
        self.processes = Processes(config, self.spawner, lifeline_fd=lifeline_fd)
        self.leasing = Leasing(table, pool, self.processes)
        self.cluster = Cluster(config, make_registration=self._registration, make_report=self._node_report)
        self.leaving = Leaving(self.leasing, self.processes, self.stopped.set)
        self.actors = ActorRoom(self.leasing, self.processes, self.cluster.tell_head)
        self.store = StoreRoom(
            budget_bytes=store_bytes(config),
            node_dir=config.node_dir,
            spill_dir=config.spill_dir,
            disk_reserve=float(knobs.get("disk_reserve", MIN_FREE_SHARE)),
        )
        self.owners = OwnerRoom(config)
        self.listeners = ListenerRoom(config.node_dir)
        self.pulling = Pulling(config, self.store, self.owners, rng=rng)
        self.logs = LogFollower(self._show_lines)
        self.queries = QueryRoom(
            config,
            processes=self.processes,
            leasing=self.leasing,
            actors=self.actors,
            store=self.store,
            spawner=self.spawner,
        )
        self._servers: list[asyncio.Server] = []
        self._connections: set[LoopConnection] = set()
        self._cluster_task: asyncio.Task[None] | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._log_readers: dict[bytes, set[LoopConnection]] = {}  # by job: drivers, and agents that have some
        self._told: set[tuple[bytes, bytes]] = set()  # jobs whose output we want, and nodes that know it
        self._finished_jobs: set[bytes] = set()
        self._connect_rooms()
        self._handlers = self._handler_table()
        self._of_process = self._process_table()

    def _connect_rooms(self) -> None:
        self.processes.on_ready = self._process_ready
        self.processes.on_dead = self._process_dead
        self.leasing.on_change = self._leases_changed
        self.leasing.address_of_node = self.cluster.address_of
        self.pulling.address_of_node = self.cluster.address_of
        self.owners.on_orphans = self._free_here
        self.owners.is_alive_here = lambda worker_id: self.processes.get(worker_id) is not None
        self.actors.on_named = self._follow
        self.cluster.on_head_message = self._from_head
        self.cluster.on_node_message = self._message
        self.cluster.on_nodes = self._nodes_changed
        self.cluster.on_node_died = self._node_died
        self.store.name_of = self._name_of

    # --- life

    async def start(self, listeners: list[socket.socket]) -> None:
        """Answer on these sockets; Unix ones trust their folder, others ask for the token."""
        os.makedirs(os.path.join(self.config.node_dir, "logs"), mode=0o700, exist_ok=True)
        self.spawner.run(self._loop)
        self.store.run()
        self.listeners.run()
        self.leasing.run()
        for listener in listeners:
            token = None if listener.family == socket.AF_UNIX else self.config.token
            self._servers.append(await serve(listener, self._message, self._closed, token=token))
        self._cluster_task = self._loop.create_task(self.cluster.run())
        self._every("logs", LOG_INTERVAL_S, self._poll_logs)
        self._every("memory", memory.LOOK_INTERVAL_S, self._look_at_memory)
        total = to_floats(self.leasing.table.resources.total)
        logger.info("node %s: %s", self.config.node_id.hex()[:12], total)

    def _every(self, name: str, interval_s: float, do: Callable[[], None]) -> None:
        def again() -> None:
            self._timers[name] = self._loop.call_later(interval_s, again)
            do()

        self._timers[name] = self._loop.call_later(interval_s, again)

    async def stop(self, *, keep: Collection[int] = ()) -> None:
        """End every process of the node but those to `keep`, then the rest. Nothing is left but its log."""
        for timer in self._timers.values():
            timer.cancel()
        self.leaving.close()
        for task in self._tasks:
            task.cancel()
        for server in self._servers:
            server.close()
        self.cluster.tell_head(m.OwnerGone(self.config.address.worker_id))
        self.processes.close()
        self.leasing.close()
        self.actors.close()
        self.queries.close()
        self.spawner.close(keep=keep)
        await self.pulling.close()
        self.owners.close()
        if self._cluster_task is not None:
            self._cluster_task.cancel()
            await asyncio.wait([self._cluster_task])
        self.cluster.close()
        self.listeners.close()
        for connection in list(self._connections):
            connection.on_close = None
            connection.close()
        await self.store.close()

    # --- messages

    def _handler_table(self) -> dict[type, Handler]:
        """What any connection may say."""
        return {
            m.Ping: lambda connection, message, payload: connection.send(m.Ok(message.rid)),
            m.RegisterProcess: self._register,
            m.LeaseDemand: self.leasing.demand,
            m.LeaseReturn: self.leasing.returned,
            m.FreeObjects: self._free_objects,
            m.KeepObjects: self._keep_objects,
            m.NodeCall: self.queries.called,
            m.WantLogs: self._logs_wanted,
            m.LogLines: self._lines_of_node,
            m.ShowLogs: self._show_logs,
            m.Shutdown: self._shutdown,
        }

    def _process_table(self) -> dict[type, OfProcess]:
        """What only a registered process of this node may say."""
        store = self.store
        return {
            m.Blocked: lambda process, message, payload: self.leasing.blocked(process.worker_id),
            m.Unblocked: lambda process, message, payload: self.leasing.unblocked(process.worker_id),
            m.SlabRequest: lambda process, message, payload: store.slab_requested(process.worker_id, message),
            m.CreateObject: lambda process, message, payload: store.object_created(
                process.worker_id, message
            ),
            m.Sealed: self._sealed,
            m.SlabClosed: lambda process, message, payload: store.slab_closed(process.worker_id, message),
            m.AbortObject: lambda process, message, payload: store.aborted(process.worker_id, message),
            m.PinObject: lambda process, message, payload: store.pin(process.worker_id, message),
            m.CancelPin: lambda process, message, payload: store.pin_cancelled(process.worker_id, message),
            m.Unpin: lambda process, message, payload: store.unpinned(process.worker_id, message),
            m.ActorStarted: self.actors.started,
            m.ExpectExit: lambda process, message, payload: self.processes.expect_exit(
                process, message.reason
            ),
            m.TaskEvents: self.queries.task_events,
            m.MetricsReport: self._metrics,
        }

    def _message(self, connection: LoopConnection, message: Any, payload: bytes) -> None:
        of_process = self._of_process.get(type(message))
        if of_process is not None:
            process = connection.context
            if not isinstance(process, Process):
                raise RetinueSystemError(f"{type(message).__name__} before RegisterProcess")
            of_process(process, message, payload)
            return
        if type(message) is m.Hello:
            self._greet(connection, message)
            return
        handler = self._handlers.get(type(message))
        if handler is None:
            raise RetinueSystemError(f"an agent does not take {type(message).__name__}")
        handler(connection, message, payload)

    def _greet(self, connection: LoopConnection, hello: m.Hello) -> None:
        if hello.kind == "pull":
            self.pulling.serve(connection)
            return
        self._connections.add(connection)

    def _closed(self, connection: LoopConnection) -> None:
        self._connections.discard(connection)
        for job_id, readers in list(self._log_readers.items()):
            readers.discard(connection)
            if not readers:
                del self._log_readers[job_id]
        if isinstance(connection.context, Process):
            self.processes.connection_closed(connection.context)
        else:
            self.leasing.connection_closed(connection)

    # --- processes

    def _register(self, connection: LoopConnection, message: m.RegisterProcess, payload: bytes) -> None:
        process = self.processes.register(connection, message)
        if process is None:
            connection.send(m.Failure(message.rid, "RetinueSystemError", "this worker was not asked for"))
            connection.close()
            return
        config = self.config
        total = to_floats(self.leasing.table.resources.total)
        registered = m.Registered(
            message.rid,
            config.node_id,
            config.node_ip,
            self.store.arena_path,
            self.store.arena.size_bytes,
            config.head,
            config.session_dir,
            config.labels,
            total,
            accelerator_ids=self._accelerator_ids,
            listeners_path=self.listeners.path,
        )
        if process.kind == WORKER:
            connection.send(registered)
            if not self.leasing.worker_ready(process):
                self.processes.end(process.worker_id, process.reason or "it is not needed", is_forced=True)
            return
        # A driver's init() ends with a cluster that knows this node.
        self.cluster.when_registered(lambda: connection.send(registered))
        if message.log_to_driver:
            self._log_readers.setdefault(process.job_id, set()).add(connection)
            self._want_logs()
        if message.env is not None and self._prestart:
            self.leasing.prestart(message.env, self._prestart)

    def _process_ready(self, process: Process) -> None:
        assert process.connection is not None
        self.store.joined(process.worker_id, process.connection)
        if process.kind == WORKER:
            self._follow(process)

    def _leases_changed(self) -> None:
        self.cluster.report_soon()
        self.leaving.look()

    def _process_dead(self, process: Process, death: m.DeathInfo) -> None:
        self.store.died(process.worker_id)
        self.owners.process_died(process.worker_id)
        self.actors.process_died(process, death)
        self.leasing.process_died(process, death)
        self.cluster.tell_head(m.OwnerGone(process.worker_id))
        if process.kind == DRIVER:
            self._told = {(job_id, node_id) for job_id, node_id in self._told if job_id != process.job_id}
        else:
            self.logs.forget(process.worker_id, now=self._loop.time())
        self.leaving.look()

    def _name_of(self, worker_id: bytes) -> str:
        process = self.processes.get(worker_id)
        if process is None:
            return worker_id.hex()[:12]
        return f"{process.label or process.kind} (pid {process.pid})"

    def _metrics(self, process: Process, message: m.MetricsReport, payload: bytes) -> None:
        process.metrics = payload

    # --- the store's connections to the rest

    def _free_objects(self, connection: LoopConnection, message: m.FreeObjects, payload: bytes) -> None:
        self._free_here(message.object_ids)
        for node_id in message.nodes:
            if node_id != self.config.node_id:
                self.cluster.send_to_node(node_id, m.FreeObjects(message.object_ids))

    def _free_here(self, object_ids: list[bytes]) -> None:
        self.owners.forget(object_ids)
        self.pulling.freed(object_ids)
        self.store.freed(object_ids)

    def _sealed(self, process: Process, message: m.Sealed, payload: bytes) -> None:
        self.store.sealed(process.worker_id, message)
        owner = message.owner or process.address
        assert owner is not None
        books = self.store.books
        self.owners.holds([object_id for object_id, *_ in message.objects if object_id in books], owner)

    def _keep_objects(self, connection: LoopConnection, message: m.KeepObjects, payload: bytes) -> None:
        for node_id in message.nodes or [self.config.node_id]:
            if node_id == self.config.node_id:
                self.store.kept(message.object_ids)
            else:
                self.cluster.send_to_node(node_id, m.KeepObjects(message.object_ids))

    # --- the head

    def _from_head(self, connection: LoopConnection, message: Any, payload: bytes) -> None:
        match message:
            case m.StartActor():
                self.actors.start(connection, message, payload)
            case m.StopActor():
                self.actors.stop(connection, message, payload)
            case m.JobFinished(job_id):
                self._job_finished(job_id)
            case m.FreeObjects(object_ids):
                self._free_here(object_ids)
            case m.Shutdown():
                self._shutdown(connection, message, payload)
            case m.Ping(rid):
                connection.send(m.Ok(rid))
            case _:
                raise RetinueSystemError(f"an agent does not take {type(message).__name__} from the head")

    def _job_finished(self, job_id: bytes) -> None:
        self.listeners.job_finished(job_id)
        keep_clients, keep_workers = self.actors.job_of_detached(job_id)
        self.leasing.job_finished(job_id, keep_clients, keep_workers)

    def _shutdown(self, connection: LoopConnection, message: m.Shutdown, payload: bytes) -> None:
        connection.send(m.Ok(message.rid))
        if message.grace_period_s <= 0:
            self.stopped.set()
            return
        self.cluster.ask_head(
            m.DrainNode(0, self.config.node_id, REASON)
        )  # actors start elsewhere from now on
        self.leaving.begin(message.grace_period_s)

    def _nodes_changed(self) -> None:
        own = self.cluster.nodes.get(self.config.node_id)
        if own is not None and own.draining:
            self.leasing.drain()
        self._want_logs()
        self.leasing.cluster_changed(NodeView.of(node) for node in self.cluster.nodes.values())

    def _node_died(self, node_id: bytes) -> None:
        if node_id == self.config.node_id:
            return
        for process in self.processes:
            if process.connection is not None:
                process.connection.send(m.NodeGone(node_id))

    def _registration(self) -> tuple[m.RegisterNode, bytes]:
        self.actors.connection_replaced()
        config = self.config
        table = self.leasing.table
        node = m.NodeInfo(
            config.node_id,
            config.address,
            to_floats(table.resources.total),
            table.available(),
            labels=config.labels,
            pid=os.getpid(),
            hostname=socket.gethostname(),
            session_dir=config.session_dir,
            is_head=config.is_head_node,
            start_time=self._start_time,
        )
        infos, payload = self.actors.infos()
        live = [process.worker_id for process in self.processes]
        return m.RegisterNode(0, node, infos, live), payload

    def _node_report(self) -> m.NodeReport:
        table = self.leasing.table
        shapes = table.waiting_shapes()
        waiting = sum(count for _, count in shapes)
        return m.NodeReport(
            table.available(), waiting, shapes, self.actors.starts_counted(), table.recallable()
        )

    # --- logs

    def _follow(self, process: Process) -> None:
        source = f"{process.label or 'worker'} pid={process.pid}"
        self.logs.follow(process.worker_id, process.job_id, source, self.processes.log_paths(process))

    def _poll_logs(self) -> None:
        self.logs.poll(now=self._loop.time())

    def _show_lines(self, job_id: bytes, source: str, is_stderr: bool, text: str) -> None:
        message = m.LogLines(source, is_stderr, job_id)
        for reader in self._log_readers.get(job_id, ()):
            reader.send(message, text.encode())

    def _want_logs(self) -> None:
        """Have the other nodes send what drivers of ours want to show."""
        nodes = self.cluster.nodes.keys() - {self.config.node_id}
        self._told = {(job_id, node_id) for job_id, node_id in self._told if node_id in nodes}
        for job_id, readers in self._log_readers.items():
            if any(isinstance(reader.context, Process) for reader in readers):
                for node_id in nodes:
                    if (job_id, node_id) not in self._told:
                        self._told.add((job_id, node_id))
                        self.cluster.send_to_node(node_id, m.WantLogs(job_id))

    def _logs_wanted(self, connection: LoopConnection, message: m.WantLogs, payload: bytes) -> None:
        self._log_readers.setdefault(message.job_id, set()).add(connection)

    def _lines_of_node(self, connection: LoopConnection, message: m.LogLines, payload: bytes) -> None:
        for reader in self._log_readers.get(message.job_id, ()):
            if isinstance(reader.context, Process):
                reader.send(message, payload)

    def _show_logs(self, connection: LoopConnection, message: m.ShowLogs, payload: bytes) -> None:
        """What the job's workers have printed, on all nodes, goes to its driver before the answer does."""
        self.logs.finish_job(message.job_id, now=self._loop.time())
        nodes = [node_id for job_id, node_id in self._told if job_id == message.job_id]
        if not nodes or not isinstance(connection.context, Process):
            connection.send(m.Ok(message.rid))
            return
        task = self._loop.create_task(self._show_logs_of(nodes, message.job_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda done: connection.send(m.Ok(message.rid)))

    async def _show_logs_of(self, nodes: list[bytes], job_id: bytes) -> None:
        async def ask(node_id: bytes) -> None:
            peer = await self.cluster.peer(node_id)
            await peer.request(m.ShowLogs(0, job_id))

        asked = [self._loop.create_task(ask(node_id)) for node_id in nodes]
        _, late = await asyncio.wait(asked, timeout=LAST_LINES_TIMEOUT_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    # --- memory

    def _look_at_memory(self) -> None:
        table = self.leasing.table
        leased = [
            (p, table.lease_of(p.worker_id)) for p in self.processes if p.kind == WORKER and p.is_registered
        ]
        has_limits = any(lease is not None and MEMORY in lease.allocation.units for _, lease in leased)
        if not leased:
            return
        machine = memory.machine_usage()
        watched = self._memory_limit or machine.share >= self._short_share - memory.UNWATCHED_SHARE
        if not watched and not has_limits:
            return
        usages = []
        for process, lease in leased:
            limit = lease.allocation.units.get(MEMORY) if lease is not None else None
            actor = self.actors.actor_of(process.worker_id)
            usages.append(
                memory.WorkerUsage(
                    process.worker_id,
                    process.label,
                    memory.private_bytes(process.pid),
                    limit // UNIT if limit is not None else None,
                    is_retriable=actor is None or actor.spec.max_restarts != 0,
                    since=lease.granted_at if lease is not None else process.started_at,
                    is_idle=lease is None,
                )
            )
        if self._memory_limit:
            machine = max(
                machine, memory.node_usage(usages, self._memory_limit), key=lambda usage: usage.share
            )
        for end in memory.decide(machine, usages, short_share=self._short_share):
            logger.warning("ending worker %s: %s", end.worker_id.hex()[:12], end.reason)
            self.processes.end(end.worker_id, end.reason, is_forced=True, is_intended=False)
