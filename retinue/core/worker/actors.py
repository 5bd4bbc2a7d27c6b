"""Hosting an actor: making the instance, finding its methods, and the executors of synchronous and threaded ones.

Lives here: those. Does not: async actors (`aio`), the loop that reads sockets (`sync`).
"""

from __future__ import annotations

import concurrent.futures
import logging
import time
from typing import Any

from retinue.core.client.runtime import Runtime
from retinue.core.serialization import load_definition
from retinue.core.transport.threads import Connection
from retinue.core.wire.framing import encode
from retinue.core.wire.messages import REPLY_REFUSED, ActorStarted, BecomeActor, Call, CancelCall, Reply
from retinue.core.worker import context
from retinue.core.worker.running import ActorExit, CallRunner
from retinue.core.worker.sync import EXIT, SyncExecutor

logger = logging.getLogger(__name__)

DEFAULT_GROUP = "_default"


def make_instance(
    runner: CallRunner, facts: context.WorkerFacts, message: BecomeActor, payload: bytes
) -> bool:
    """Run the constructor and tell the agent. Returns whether there is an actor now."""
    runtime = runner.runtime
    spec = message.spec
    facts.actor_spec = spec
    facts.incarnation = message.incarnation
    context.apply_lease(facts, message.resources, message.instances)
    options = None
    if spec.args_object is not None:
        from retinue.core.wire.messages import CallOptions

        options = CallOptions(args_object=spec.args_object)
    args = payload[message.class_size :]
    call = Call(spec.actor_id + b"\\0" * 8, spec.class_key, "__init__", 1, spec.args_size, 0, 0, options)
    runtime.context.task_id = runtime.ids.task_id()
    context.running.set(runner.started(call))
    agent = runtime.agent
    assert agent is not None
    new: list[bytes] = []
    try:
        cls = load_definition(payload[: message.class_size])
        instance = cls.__new__(cls)
        facts.actor = instance
        new = _construct(runner, instance, call, args)
    except BaseException as error:
        blob = runner.error_blob(call, error)
        facts.actor = None
        agent.send(ActorStarted(spec.actor_id, message.incarnation, is_error=True), blob)
        return False
    finally:
        context.running.set(None)
    runner.settle(new, lambda: agent.send(ActorStarted(spec.actor_id, message.incarnation)))
    return True


def _construct(runner: CallRunner, instance: Any, call: Call, payload: bytes) -> list[bytes]:
    args, kwargs, new = runner.load_args(call, payload)
    instance.__init__(*args, **kwargs)
    return new


def method_of(facts: context.WorkerFacts, name: str) -> Any:
    """The bound method, or one of those that every actor has."""
    special = _SPECIAL.get(name)
    if special is not None:
        return special(facts.actor)
    return getattr(facts.actor, name)


def _terminate() -> None:
    raise ActorExit("__ray_terminate__ was called")


_SPECIAL = {
    name: make
    for prefix in ("ray", "retinue")
    for name, make in (
        (f"__{prefix}_ready__", lambda actor: lambda: True),
        (
            f"__{prefix}_call__",
            lambda actor: lambda function, *args, **kwargs: function(actor, *args, **kwargs),
        ),
        (f"__{prefix}_terminate__", lambda actor: _terminate),
    )
}


class SyncActorExecutor(SyncExecutor):
    """One call at a time, in each caller's order."""

    def target(self, call: Call) -> Any:
        return method_of(self.facts, call.method)


class ThreadedActorExecutor(SyncActorExecutor):
    """Several calls at a time: a pool of threads for each concurrency group."""

    def __init__(self, runtime: Runtime, runner: CallRunner, facts: context.WorkerFacts) -> None:
        super().__init__(runtime, runner, facts)
        spec = facts.actor_spec
        assert spec is not None
        sizes = {DEFAULT_GROUP: max(1, spec.max_concurrency), **spec.concurrency_groups}
        self._pools = {
            name: concurrent.futures.ThreadPoolExecutor(size, thread_name_prefix=f"retinue-{name}")
            for name, size in sizes.items()
        }
        self._running_calls: dict[bytes, context.RunningCall] = {}

    def running_calls(self) -> list[context.RunningCall]:
        return list(self._running_calls.values())

    def execute(self, connection: Connection, call: Call, payload: bytes) -> None:
        group = call.options.concurrency_group if call.options is not None else ""
        pool = self._pools.get(group or DEFAULT_GROUP)
        if pool is None:
            error = ValueError(f"the actor has no concurrency group {group!r}; it has {sorted(self._pools)}")
            connection.send_frame(self.runner.error_reply(call, error))
            return
        pool.submit(self._run_one, connection, call, payload)

    def _run_one(self, connection: Connection, call: Call, payload: bytes) -> None:
        task_id = call.task_id
        if task_id in self._cancelled:
            connection.send_frame(self.runner.cancelled_reply(call))
            return
        if call.incarnation != self.facts.incarnation:
            connection.send_frame(encode(Reply(task_id, REPLY_REFUSED)))
            return
        begin = time.monotonic()
        self.runtime.io.wake_if_sleeping()
        ctx = self.runtime.context
        ctx.task_id = task_id
        ctx.puts = 0
        failed = ""
        running = self._running_calls[task_id] = self.runner.started(call, begin)
        context.running.set(running)
        try:
            value, new = self._call_threaded(connection, call, payload)
            self._answer(connection, call, value, int((time.monotonic() - begin) * 1e6), new)
        except ActorExit as error:
            self._leave(str(error))
            self.wake()
        except BaseException as error:
            failed = type(error).__name__
            connection.send_frame(self.runner.error_reply(call, error, int((time.monotonic() - begin) * 1e6)))
        finally:
            self._running_calls.pop(task_id, None)
            context.running.set(None)
            self.runner.finished(task_id, running.name, begin, time.monotonic(), failed)

    def _call_threaded(self, connection: Connection, call: Call, payload: bytes) -> tuple[Any, list[bytes]]:
        function = self.target(call)
        args, kwargs, new = self.runner.load_args(call, payload)
        value = function(*args, **kwargs)
        if call.options is not None and call.options.streaming:
            self._stream(connection, call, value)
            value = None
        return value, new

    def cancel(self, message: CancelCall) -> None:
        running = self._running_calls.get(message.task_id)
        if running is not None:
            running.is_cancelled = True
        super().cancel(message)

    def run(self) -> Any:
        reason = super().run()
        # What was accepted finishes, unless the actor leaves by its own wish.
        for pool in self._pools.values():
            pool.shutdown(wait=reason != EXIT, cancel_futures=reason == EXIT)
        return reason
