"""A worker process, from its first line to its last: register, run calls, become an actor, end.

Lives here: wiring the runtime to an executor, and every way in which the process ends. Does not: how it
was forked (`node.zygote`), how calls run.
"""

from __future__ import annotations

import atexit
import faulthandler
import io
import logging
import os
import select
import signal
import sys
import tempfile
import threading
import traceback
from typing import Any, NoReturn

from retinue.core import current
from retinue.core.client.runtime import Runtime
from retinue.core.transport import endpoints
from retinue.core.transport.threads import Connection, Watcher
from retinue.core.wire.messages import (
    Address,
    BecomeActor,
    ExitWorker,
    Hello,
    Query,
    RegisterProcess,
    SlabRecall,
    WorkerStart,
)
from retinue.core.worker import context
from retinue.core.worker.actors import SyncActorExecutor, ThreadedActorExecutor, make_instance
from retinue.core.worker.running import CallRunner
from retinue.core.worker.sync import EXIT, SyncExecutor

logger = logging.getLogger(__name__)

DRAINED = "drained"
_NO_HEAD = Address(b"", b"", "")


class Worker:
    """The process. `run` returns when it should end."""

    def __init__(self, start: WorkerStart) -> None:
        self.start = start
        listener = endpoints.listen_unix(start.socket_path)
        host, port = start.tcp_host, 0
        listeners = [listener]
        if host:
            tcp = endpoints.listen_tcp(host)
            port = tcp.getsockname()[1]
            listeners.append(tcp)
        self.address = Address(start.worker_id, start.node_id, start.socket_path, host, port)
        self.runtime = Runtime(
            address=self.address,
            node_id=start.node_id,
            job_id=start.env.job_id,
            token=start.token,
            head=_NO_HEAD,
        )
        self.runtime.worker_env = start.env
        self.facts = context.WorkerFacts(start.env)
        context.set_facts(self.facts)
        self.runner = CallRunner(self.runtime)
        self.executor: Any = SyncExecutor(self.runtime, self.runner, self.facts)
        self._use(self.executor)
        self.runtime.tickers.append(lambda now: self.executor.tick(now))
        self.runtime.start()
        for sock in listeners:
            self.runtime.peers.listen(sock)
        self.runtime.ownership.queries.update(
            {
                "tasks": self._describe_tasks,
                "stack": lambda _: dump_stacks(),
                "objects": lambda _: describe_objects(self.runtime),
            }
        )

    def _use(self, executor: Any) -> None:
        self.executor = executor
        self.runtime.peers.adopt_calls = executor.adopt
        self.runtime.ownership.cancel_hook = executor.cancel
        self.runtime.ownership.credit_hook = executor.credit

    def register(self) -> None:
        """Tell the agent who and where we are, and learn the node's facts."""
        start = self.start
        runtime = self.runtime
        sock, rest = endpoints.connect(start.agent, start.node_id, start.token)
        agent = Connection(runtime.io, sock, self._on_agent_message, self._agent_lost)
        runtime.agent = agent
        runtime.tasks.use_agent(start.agent, agent)
        agent.send(Hello("agent", self.address, start.env.job_id))
        runtime.io.watch_reads(agent)
        request = RegisterProcess(0, self.address, os.getpid(), "worker", start.env.job_id, start.start_token)
        registered, _ = agent.call(request)
        runtime.head.address = registered.head
        runtime.store.attach(registered.arena_path)
        self.facts.node_ip = registered.node_ip
        runtime.node_labels = registered.labels
        runtime.node_ip = registered.node_ip
        runtime.session_dir = registered.session_dir

    def run(self) -> None:
        context_ = self.runtime.context
        context_.hook = self.executor
        self.executor.install_interrupts()
        reason = self.executor.run()
        if isinstance(reason, tuple):
            self._host_actor(*reason)

    def _host_actor(self, message: BecomeActor, payload: bytes) -> None:
        self.facts.actor_spec = message.spec
        self.runtime.context.hook = None
        executor: Any
        if message.spec.is_async:
            from retinue.core.worker.aio import AsyncActorExecutor

            executor = AsyncActorExecutor(self.runtime, self.runner, self.facts)
        elif message.spec.max_concurrency > 1 or message.spec.concurrency_groups:
            executor = ThreadedActorExecutor(self.runtime, self.runner, self.facts)
        else:
            executor = SyncActorExecutor(self.runtime, self.runner, self.facts)
            self.runtime.context.hook = executor
        self._use(executor)
        if make_instance(self.runner, self.facts, message, payload):
            executor.run()

    # --- the agent's messages, on the I/O thread

    def _on_agent_message(self, connection: Connection, message: Any, payload: bytes) -> None:
        if self.runtime.tasks.on_agent_message(connection, message, payload):
            return
        kind = type(message)
        if kind is BecomeActor:
            self.executor.stop((message, payload))
        elif kind is ExitWorker:
            if message.force:
                end_now()
            self.executor.stop(DRAINED)
        elif kind is SlabRecall:
            self.runtime.store.recalled(message)
        elif kind is Query:
            self.runtime.ownership.on_query(connection, message, payload)
        else:
            handler = self.runtime.peers.handlers.get(kind)
            if handler is None:
                raise ConnectionError(f"unexpected {kind.__name__} from the agent")
            handler(connection, message, payload)

    def _agent_lost(self, connection: Connection) -> None:
        end_now()

    def _describe_tasks(self, arguments: dict[str, str]) -> list[dict[str, Any]]:
        return describe_tasks(self.runtime, getattr(self.executor, "running", None))


def describe_tasks(runtime: Runtime, running: context.RunningCall | None = None) -> list[dict[str, Any]]:
    """The calls that this process made and that are not answered, and the one that it runs."""
    found = []
    with runtime.lock:
        tasks = {e.task.task_id: e.task for e in runtime.table.entries.values() if e.task is not None}
    for task in tasks.values():
        if task.is_done:
            continue
        name = task.options.name if task.options is not None and task.options.name else ""
        found.append(
            {
                "task_id": task.task_id.hex(),
                "name": name or (task.function.name if task.function is not None else task.method),
                "state": "SUBMITTED_TO_WORKER"
                if task.conn is not None
                else ("PENDING_ARGS_AVAIL" if task.unready else "PENDING_NODE_ASSIGNMENT"),
                "attempt_number": task.attempt,
                "parent_task_id": task.parent.hex(),
                "type": "NORMAL_TASK" if task.function is not None else "ACTOR_TASK",
            }
        )
    if running is not None:
        found.append(
            {
                "task_id": running.task_id.hex(),
                "name": running.name,
                "state": "RUNNING",
                "attempt_number": running.attempt,
                "worker_id": runtime.address.worker_id.hex(),
                "pid": os.getpid(),
            }
        )
    return found


def describe_objects(runtime: Runtime) -> list[dict[str, Any]]:
    """The objects in this process's table: who holds what."""
    from retinue.core.ownership.table import STATE_NAMES

    found = []
    with runtime.lock:
        for object_id, entry in runtime.table.entries.items():
            found.append(
                {
                    "object_id": object_id.hex(),
                    "state": STATE_NAMES[entry.state],
                    "size": entry.size,
                    "local_references": entry.refs,
                    "uses": entry.uses,
                    "borrowers": len(entry.borrowers or ()),
                    "owned": entry.owner is None,
                    "nodes": [n.hex() for n in entry.nodes],
                    "pid": os.getpid(),
                    "worker_id": runtime.address.worker_id.hex(),
                }
            )
    return found


def dump_stacks() -> str:
    """What every thread of this process is doing now."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def end_now() -> NoReturn:
    """End this process and what user code started in its process group, at once."""
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def watch_lifeline(runtime: Runtime, fd: int) -> None:
    """End with the agent: the lifeline's end of file means that it is gone."""
    watcher = Watcher(fd, end_now)
    runtime.io.watch(watcher, select.EPOLLIN | select.EPOLLHUP)


def main(start: WorkerStart) -> NoReturn:
    """Run a worker until it ends; never returns."""
    code = 0
    try:
        worker = Worker(start)
        if start.lifeline_fd >= 0:
            watch_lifeline(worker.runtime, start.lifeline_fd)
        worker.register()
        current.set_runtime(worker.runtime)
        worker.run()
        worker.runner.flush_events(float("inf"))
    except (ConnectionError, OSError) as error:
        logger.warning("worker %s ends: %s", start.worker_id.hex()[:12], error)
        code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finish(code)


def finish(code: int) -> NoReturn:
    """Run exit handlers, flush, and leave without waiting for user threads."""
    try:
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, io.UnsupportedOperation):
            pass  # closed by user code
    os._exit(code)


__all__ = ["EXIT", "main", "threading"]
