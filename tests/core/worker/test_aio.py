from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from retinue.core.ids import ACTOR_ID_SIZE
from retinue.core.serialization import Serialized, deserialize, serialize
from retinue.core.wire.messages import (
    REPLY_CANCELLED,
    ActorSpec,
    CallOptions,
    CancelCall,
    Reply,
    Shape,
    StreamItem,
    WorkerEnv,
)
from retinue.core.worker import context
from retinue.core.worker.aio import DEFAULT_MAX_CONCURRENCY, AsyncActorExecutor
from retinue.core.worker.running import CallRunner
from tests.core.worker.fakes import CALLER, Caller, FakeRuntime, make_call


class Actor:
    def __init__(self, runtime: FakeRuntime) -> None:
        self.runtime = runtime
        self.began: list[str] = []
        self.parents: list[bytes] = []
        self.go = asyncio.Event()

    async def wait(self) -> str:
        self.began.append("wait")
        await self.go.wait()
        return "waited"

    async def ask_parent(self) -> None:
        self.parents.append(self.runtime.context.task_id)
        await asyncio.sleep(0)
        self.parents.append(self.runtime.context.task_id)

    async def count(self) -> AsyncIterator[int]:
        try:
            for i in range(1000):
                yield i
        finally:
            self.began.append("closed")

    async def endless(self) -> AsyncIterator[int]:
        try:
            yield 0
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.began.append("told")
            raise

    async def references(self) -> AsyncIterator[Serialized]:
        yield Serialized(serialize("late").data, (), [(b"o" * 28, CALLER)])
        for _ in range(3):
            yield serialize("plain")


def serve(
    runtime: FakeRuntime,
    runner: CallRunner,
    facts: context.WorkerFacts,
    test: Callable[[AsyncActorExecutor, Actor], Awaitable[None]],
    *,
    max_concurrency: int = 0,
) -> None:
    """Run the executor's loop, and the test beside it."""
    facts.actor_spec = ActorSpec(
        bytes(ACTOR_ID_SIZE),
        b"j" * 4,
        CALLER,
        "Actor",
        b"key",
        Shape({}, WorkerEnv(b"j" * 4)),
        {},
        max_concurrency=max_concurrency,
    )

    async def run() -> None:
        actor = facts.actor = Actor(runtime)
        executor = AsyncActorExecutor(runtime, runner, facts)  # type: ignore[arg-type]
        serving = asyncio.create_task(executor._serve())
        await asyncio.sleep(0)
        try:
            await test(executor, actor)
        finally:
            executor._leave("the test is over")
            await serving

    asyncio.run(run())


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_call_that_is_cancelled_before_its_first_step_is_answered(
    runtime: FakeRuntime, runner: CallRunner, facts: context.WorkerFacts, caller: Caller
) -> None:
    async def test(executor: AsyncActorExecutor, actor: Actor) -> None:
        call = make_call(method="wait")
        executor._on_message(caller.connection, call, b"")
        executor.cancel(CancelCall(call.task_id, recursive=False))
        await turns()
        ((reply, _),) = caller.answers()
        assert reply.status == REPLY_CANCELLED
        assert actor.began == []
        assert executor._tasks == {}
        assert executor._groups["_default"].running == 0

    serve(runtime, runner, facts, test)


def test_a_running_call_that_is_cancelled_is_told_and_answered(
    runtime: FakeRuntime, runner: CallRunner, facts: context.WorkerFacts, caller: Caller
) -> None:
    async def test(executor: AsyncActorExecutor, actor: Actor) -> None:
        call = make_call(method="wait")
        executor._on_message(caller.connection, call, b"")
        await turns()
        executor.cancel(CancelCall(call.task_id, recursive=False))
        await turns()
        ((reply, _),) = caller.answers()
        assert reply.status == REPLY_CANCELLED

    serve(runtime, runner, facts, test)


@pytest.mark.parametrize(("said", "at_once"), [(0, 5), (1, 1), (3, 3)])
def test_as_many_calls_run_at_once_as_were_asked_for(
    said: int,
    at_once: int,
    runtime: FakeRuntime,
    runner: CallRunner,
    facts: context.WorkerFacts,
    caller: Caller,
) -> None:
    async def test(executor: AsyncActorExecutor, actor: Actor) -> None:
        assert executor._groups["_default"].limit == (said or DEFAULT_MAX_CONCURRENCY)
        for number in range(5):
            executor._on_message(caller.connection, make_call(number, method="wait"), b"")
        await turns()
        assert len(actor.began) == at_once
        actor.go.set()
        await turns(30)
        assert len(caller.answers()) == 5

    serve(runtime, runner, facts, test, max_concurrency=said)


def test_each_call_is_the_parent_of_what_it_calls(
    runtime: FakeRuntime, runner: CallRunner, facts: context.WorkerFacts, caller: Caller
) -> None:
    async def test(executor: AsyncActorExecutor, actor: Actor) -> None:
        calls = [make_call(number, method="ask_parent") for number in (1, 2)]
        for call in calls:
            executor._on_message(caller.connection, call, b"")
        await turns()
        assert actor.parents == [c.task_id for c in calls] * 2

    serve(runtime, runner, facts, test)


def test_what_came_before_the_loop_is_handled_in_its_order(
    runtime: FakeRuntime, runner: CallRunner, facts: context.WorkerFacts, caller: Caller
) -> None:
    facts.actor_spec = ActorSpec(
        bytes(ACTOR_ID_SIZE), b"j" * 4, CALLER, "A", b"key", Shape({}, WorkerEnv(b"j" * 4)), {}
    )
    executor = AsyncActorExecutor(runtime, runner, facts)  # type: ignore[arg-type]
    seen: list[int] = []
    for number in range(5):
        executor._on_loop(seen.append, number)
    executor.stop("drained")
    assert asyncio.run(executor._serve()) == "drained"
    assert seen == [0, 1, 2, 3, 4]


def test_a_generator_is_told_when_its_consumer_has_died(
    runtime: FakeRuntime, runner: CallRunner, facts: context.WorkerFacts, caller: Caller
) -> None:
    async def test(executor: AsyncActorExecutor, actor: Actor) -> None:
        options = CallOptions(streaming=True)
        executor._connections[caller.connection.fd] = caller.connection
        caller.connection.on_close = executor._closed
        executor._on_message(caller.connection, make_call(1, method="endless", options=options), b"")
        paused = CallOptions(streaming=True, stream_backpressure=2)
        executor._on_message(caller.connection, make_call(2, method="count", options=paused), b"")
        await turns()
        assert len(executor._tasks) == 2
        caller.connection.lost()
        await turns(30)
        assert sorted(actor.began) == ["closed", "told"]
        assert executor._tasks == {}
        assert executor.connections() == []

    serve(runtime, runner, facts, test)


def test_items_that_wait_for_an_owner_are_not_overtaken(
    runtime: FakeRuntime,
    runner: CallRunner,
    facts: context.WorkerFacts,
    caller: Caller,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def as_it_is(value: Any) -> Serialized:
        return value if isinstance(value, Serialized) else serialize(value)

    monkeypatch.setattr("retinue.core.worker.running.serialize", as_it_is)

    async def test(executor: AsyncActorExecutor, actor: Actor) -> None:
        options = CallOptions(streaming=True)
        executor._on_message(caller.connection, make_call(method="references", options=options), b"")
        await turns()
        assert caller.answers() == []
        (answered,) = runtime.ownership.handed
        await asyncio.to_thread(answered)  # on the I/O thread
        await turns()
        messages = caller.answers()
        assert [m.index for m, _ in messages if isinstance(m, StreamItem)] == [0, 1, 2, 3]
        assert isinstance(messages[-1][0], Reply)
        assert deserialize(messages[0][1]) == "late"

    serve(runtime, runner, facts, test)
