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
import threading
import time
import traceback
from typing import Any, NoReturn

from retinue.core import current
from retinue.core.client.describe import DEFAULT_LIMIT, describe_tasks, process_queries, running_task
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
from retinue.core.worker.actors import (
    ConstructorWait,
    SyncActorExecutor,
    ThreadedActorExecutor,
    make_instance,
)
from retinue.core.worker.running import ANSWERS_S, CallRunner
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
        queries = process_queries(self.runtime)
        self.runtime.ownership.queries.update({**queries, "tasks": self._describe_tasks})

    def _use(self, executor: Any) -> None:
        self.executor = executor
        self.runtime.peers.adopt_calls = executor.adopt
        self.runtime.ownership.cancel_hook = executor.cancel
        self.runtime.ownership.credit_hook = executor.credit

    def register(self) -> None:
        """Tell the agent who and where we are, and learn the node's facts."""
        start = self.start
        runtime = self.runtime
        sock, _ = endpoints.connect(start.agent, start.node_id, start.token)
        agent = Connection(runtime.io, sock, self._on_agent_message, self._agent_lost)
        runtime.agent = agent
        runtime.leases.use_agent(start.agent, agent)
        agent.send(Hello("agent", self.address, start.env.job_id))
        runtime.io.watch(agent, add=select.EPOLLIN)
        request = RegisterProcess(0, self.address, os.getpid(), "worker", start.env.job_id, start.start_token)
        registered, _ = agent.call(request)
        runtime.head.address = registered.head
        runtime.store.attach(registered.arena_path)
        self.facts.node_ip = registered.node_ip
        self.facts.node_accelerators = registered.accelerator_ids
        runtime.node_labels = registered.labels
        runtime.node_ip = registered.node_ip
        runtime.listeners_path = registered.listeners_path
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
        self.runtime.context.hook = ConstructorWait(self.runtime)
        executor: Any
        if message.spec.is_async:
            from retinue.core.worker.aio import AsyncActorExecutor

            executor = AsyncActorExecutor(self.runtime, self.runner, self.facts)
        elif message.spec.max_concurrency > 1 or message.spec.concurrency_groups:
            executor = ThreadedActorExecutor(self.runtime, self.runner, self.facts)
        else:
            executor = SyncActorExecutor(self.runtime, self.runner, self.facts)
        self._use(executor)
        if make_instance(self.runner, self.facts, message, payload):
            self.runtime.context.hook = executor if type(executor) is SyncActorExecutor else None
            executor.run()

    def answers_leave(self) -> None:
        """Wait until what was answered is with the kernel: what is only in this process ends with it."""
        deadline = time.monotonic() + ANSWERS_S
        while self._has_answers() and time.monotonic() < deadline:
            time.sleep(0.002)  # once in a process's life; the I/O thread does the work

    def _has_answers(self) -> bool:
        connections = [*self.executor.connections(), *self.runtime.io.connections()]
        return self.runner.has_unanswered() or any(c.out and not c.is_closed for c in connections)

    # --- the agent's messages, on the I/O thread

    def _on_agent_message(self, connection: Connection, message: Any, payload: bytes) -> None:
        if self.runtime.leases.on_agent_message(connection, message, payload):
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

    def _describe_tasks(self, arguments: dict[str, str]) -> dict[str, Any]:
        spec = self.facts.actor_spec
        constructing = self.facts.constructing
        calls = self.executor.running_calls() if constructing is None else [constructing]
        running = [
            running_task(
                self.runtime,
                call.task_id,
                call.name,
                function=f"{spec.class_name}.{call.function_name}"
                if spec is not None
                else call.function_name,
                attempt=call.attempt,
                started=call.started,
                actor_id=spec.actor_id if spec is not None else b"",
            )
            for call in calls
        ]
        return describe_tasks(self.runtime, running, limit=int(arguments.get("limit", DEFAULT_LIMIT)))


def end_now() -> NoReturn:
    """End this process and what user code started in its process group, at once."""
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def watch_lifeline(runtime: Runtime, fd: int) -> None:
    """End with the agent: the lifeline's end of file means that it is gone."""
    watcher = Watcher(fd, end_now)
    runtime.io.watch(watcher, add=select.EPOLLIN | select.EPOLLHUP)


def main(start: WorkerStart) -> NoReturn:
    """Run a worker until it ends; never returns."""
    code = 0
    faulthandler.enable(2, all_threads=False)  # a crash in native code tells the line that led there
    try:
        worker = Worker(start)
        if start.lifeline_fd >= 0:
            watch_lifeline(worker.runtime, start.lifeline_fd)
        worker.register()
        current.set_runtime(worker.runtime)
        worker.run()
        worker.runner.flush_events(float("inf"))
        worker.answers_leave()
        worker.runtime.metrics.report()
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
