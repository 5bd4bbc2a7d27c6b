"""Hosting an actor: making the instance, finding its methods, the executors of synchronous and threaded ones.

Lives here: those. Does not: async actors (`aio`), the loop that reads sockets (`sync`).
"""

from __future__ import annotations

import concurrent.futures
import functools
import logging
import os
import time
from typing import Any

from retinue.core.client.runtime import Runtime, WaitHook
from retinue.core.errors import ActorDiedError, safe_repr
from retinue.core.ids import creation_task_id
from retinue.core.serialization import load_definition, serialize_error
from retinue.core.transport.threads import Connection
from retinue.core.wire.framing import encode
from retinue.core.wire.messages import (
    REPLY_REFUSED,
    ActorStarted,
    BecomeActor,
    Blocked,
    Call,
    CallOptions,
    CancelCall,
    Reply,
    Unblocked,
)
from retinue.core.worker import context
from retinue.core.worker.running import ActorExit, CallRunner, reason_to_leave, remote_traceback
from retinue.core.worker.sync import EXIT, SyncExecutor

logger = logging.getLogger(__name__)

DEFAULT_GROUP = "_default"


CREATION_FAILED = "The actor died because of an error raised in its creation task, {where}\n{traceback}"


def make_instance(
    runner: CallRunner, facts: context.WorkerFacts, message: BecomeActor, payload: bytes
) -> bool:
    """Run the constructor and tell the agent. Returns whether there is an actor now."""
    runtime = runner.runtime
    spec = message.spec
    facts.actor_spec = spec
    facts.incarnation = message.incarnation
    context.apply_lease(facts, message.resources, message.instances)
    options = CallOptions(args_object=spec.args_object, attempt=message.incarnation)
    args = payload[message.class_size :]
    task_id = creation_task_id(spec.actor_id)
    call = Call(task_id, spec.class_key, "__init__", 1, spec.args_size, 0, 0, options)
    runtime.context.task_id = task_id
    runtime.context.put_task_id = runtime.ids.task_id()  # of this incarnation alone
    begin = time.monotonic()
    running = facts.constructing = runner.started(call, begin)
    context.running.set(running)
    agent = runtime.agent
    assert agent is not None
    try:
        _construct(runner, running, facts, payload[: message.class_size], args)
    except BaseException as error:
        blob = serialize_error(creation_error(facts, error))
        facts.actor = None
        runner.finished(running, begin, time.monotonic(), type(error).__name__)
        runner.flush_events(float("inf"))  # while the agent knows whose process this is
        agent.send(ActorStarted(spec.actor_id, message.incarnation, is_error=True), blob)
        return False
    finally:
        context.running.set(None)
        facts.constructing = None
    runner.finished(running, begin, time.monotonic(), "")
    started = encode(ActorStarted(spec.actor_id, message.incarnation))
    runner.conclude(running, started, agent.send_frame)
    return True


def _construct(
    runner: CallRunner, running: context.RunningCall, facts: context.WorkerFacts, blob: bytes, payload: bytes
) -> None:
    """As calling the class does, but the instance is known while its `__init__` runs."""
    assert running.call is not None
    cls = load_definition(blob)
    args, kwargs = runner.load_args(running, running.call, payload, is_creation=True)
    facts.actor = cls.__new__(cls, *args, **kwargs)
    if isinstance(facts.actor, cls):
        facts.actor.__init__(*args, **kwargs)


def creation_error(facts: context.WorkerFacts, error: BaseException) -> ActorDiedError:
    """What calls of an actor get whose constructor raised: as in Ray, not an instance of the user's type."""
    spec = facts.actor_spec
    assert spec is not None
    where = (
        f"{spec.class_name}.__init__() (pid={os.getpid()}, ip={facts.node_ip}, "
        f"actor_id={spec.actor_id.hex()}, repr={safe_repr(facts.actor)})"
    )
    text = CREATION_FAILED.format(where=where, traceback=remote_traceback(error))
    return ActorDiedError(text, spec.actor_id.hex())


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


class ConstructorWait(WaitHook):
    """Lends the CPUs of an actor to others while its constructor waits for them."""

    def __init__(self, runtime: Runtime) -> None:
        self._agent = runtime.agent

    def blocked(self) -> None:
        if self._agent is not None:
            self._agent.send(Blocked())

    def unblocked(self) -> None:
        if self._agent is not None:
            self._agent.send(Unblocked())


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
            send = functools.partial(self._send_now, connection)
            self.runner.reply_error(connection, call, error, 0, send)
            return
        pool.submit(self._run_one, connection, call, payload)

    def _run_one(self, connection: Connection, call: Call, payload: bytes) -> None:
        task_id = call.task_id
        if call.incarnation != self.facts.incarnation:
            self._send_now(connection, encode(Reply(task_id, REPLY_REFUSED)))
            return
        begin = time.monotonic()
        self.runtime.io.wake_if_sleeping()
        failed = ""
        running = self._running_calls[task_id] = self.runner.started(call, begin)
        self._enter(running)
        try:
            value = self._call(connection, running, call, payload)
            self._answer(connection, running, call, value, int((time.monotonic() - begin) * 1e6))
        except SystemExit as error:
            self._leave(reason_to_leave(error))
            self.wake()
        except BaseException as error:
            failed = type(error).__name__
            self._fail(connection, running, call, error, int((time.monotonic() - begin) * 1e6))
        finally:
            self._running_calls.pop(task_id, None)
            context.running.set(None)
            self.runner.finished(running, begin, time.monotonic(), failed)

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
