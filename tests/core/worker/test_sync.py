from __future__ import annotations

import itertools
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from retinue.core.client.waiting import Wait
from retinue.core.serialization import Serialized, deserialize, dump_definition, serialize
from retinue.core.wire.messages import (
    REPLY_CANCELLED,
    REPLY_ERROR,
    CallOptions,
    CancelCall,
    Define,
    Reply,
    StreamCredit,
    StreamItem,
)
from retinue.core.worker import context
from retinue.core.worker import sync as sync_module
from retinue.core.worker.running import CallRunner
from retinue.core.worker.sync import SyncExecutor, is_user_code
from tests.core.worker.fakes import CALLER, Caller, FakeRuntime, make_call

steps: list[Any] = []  # what the functions below did; they are loaded by name


@pytest.fixture
def executor(runtime: FakeRuntime, runner: CallRunner, facts: context.WorkerFacts) -> Iterator[SyncExecutor]:
    steps.clear()
    while ticks.acquire(blocking=False):
        pass
    before = signal.getsignal(signal.SIGINT)
    executor = SyncExecutor(runtime, runner, facts)  # type: ignore[arg-type]
    executor.install_interrupts()
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.001):
            executor.tick(time.monotonic())
            ticks.release()

    io_thread = threading.Thread(target=tick)
    io_thread.start()
    yield executor
    stop.set()
    io_thread.join()
    signal.signal(signal.SIGINT, before)
    executor.epoll.close()
    os.close(executor._event)


def define(runner: CallRunner, function: Any) -> None:
    runner._definitions[b"key"] = function


def answer(executor: SyncExecutor, caller: Caller) -> tuple[Reply, bytes]:
    executor.flush()
    ((reply, payload),) = caller.answers()
    return reply, payload


def cancel(executor: SyncExecutor, number: int = 1) -> None:
    executor.cancel(CancelCall(number.to_bytes(24, "little"), recursive=False))


def wait_for_ticks(count: int) -> None:
    """Bytecode of user code's own, for as long as the I/O thread takes for some ticks."""
    done = threading.Event()
    threading.Thread(target=lambda: ([ticks.acquire() for _ in range(count)], done.set())).start()
    while not done.is_set():
        pass


ticks = threading.Semaphore(0)


# --- interrupts


def test_a_running_task_that_is_cancelled_is_interrupted_in_its_own_code(
    executor: SyncExecutor, runner: CallRunner, caller: Caller
) -> None:
    def function() -> None:
        try:
            cancel(executor)
            while True:
                pass
        except KeyboardInterrupt:
            steps.append("interrupted")
            raise

    define(runner, function)
    executor.execute(caller.connection, make_call(), b"")
    reply, _ = answer(executor, caller)
    assert reply.status == REPLY_CANCELLED
    assert steps == ["interrupted"]


def test_no_interrupt_is_raised_inside_the_runtimes_own_code(
    executor: SyncExecutor, runner: CallRunner, caller: Caller
) -> None:
    class Value:
        def __reduce__(self) -> Any:
            # The runtime pickles: half of its work is done, whoever's frame this is.
            cancel(executor)
            wait_for_ticks(10)
            steps.append("pickled")
            return str, ("value",)

    def function() -> None:
        steps.append(serialize(Value()).to_bytes())
        while True:
            pass  # the next tick's signal ends it

    define(runner, function)
    executor.execute(caller.connection, make_call(), b"")
    reply, _ = answer(executor, caller)
    assert reply.status == REPLY_CANCELLED
    assert steps[0] == "pickled"
    assert isinstance(steps[-1], bytes), "what the runtime had begun was finished"


def test_a_wait_of_the_runtime_is_left_between_two_looks(
    executor: SyncExecutor, runner: CallRunner, caller: Caller
) -> None:
    def function() -> None:
        wait = Wait(executor, None)
        try:
            wait.limit()
            executor._cancelled[make_call().task_id] = None
            assert executor.running is not None
            executor.running.is_cancelled = True
            wait.limit()
        finally:
            wait.over()

    define(runner, function)
    executor.execute(caller.connection, make_call(), b"")
    reply, _ = answer(executor, caller)
    assert reply.status == REPLY_CANCELLED
    assert executor._blocked == 0


def test_a_task_that_catches_its_interrupt_is_left_in_peace(
    executor: SyncExecutor, runner: CallRunner, caller: Caller
) -> None:
    def function() -> str:
        try:
            cancel(executor)
            while True:
                pass
        except KeyboardInterrupt:
            wait_for_ticks(10)
            return "went on"

    define(runner, function)
    executor.execute(caller.connection, make_call(), b"")
    reply, payload = answer(executor, caller)
    assert reply.status == 0
    assert deserialize(payload) == "went on"


def test_a_cancel_between_the_look_and_the_start_is_not_lost(
    executor: SyncExecutor, runner: CallRunner, caller: Caller
) -> None:
    """While the arguments are loaded, which may take long, there is no user code to interrupt."""

    class Argument:
        def __reduce__(self) -> Any:
            return _cancel_first, ()

    cancels.append(lambda: cancel(executor))
    define(runner, lambda argument: steps.append("started"))
    payload = pickle.dumps(((Argument(),), {}), 5)
    call = make_call()
    call.args_size = len(payload)
    executor.execute(caller.connection, call, payload)
    reply, _ = answer(executor, caller)
    assert reply.status == REPLY_CANCELLED
    assert steps == []


cancels: list[Any] = []


def _cancel_first() -> str:
    cancels.pop()()
    return "argument"


def test_a_call_that_was_cancelled_while_it_waited_is_not_run(
    executor: SyncExecutor, runner: CallRunner, caller: Caller
) -> None:
    cancel(executor)
    define(runner, lambda: steps.append("started"))
    executor.execute(caller.connection, make_call(), b"")
    reply, _ = answer(executor, caller)
    assert reply.status == REPLY_CANCELLED
    assert steps == []


def test_an_interrupt_for_one_task_does_not_meet_the_next(
    executor: SyncExecutor, runner: CallRunner, caller: Caller
) -> None:
    def function() -> str:
        signal.raise_signal(signal.SIGINT)
        return "done"

    define(runner, function)
    executor.execute(caller.connection, make_call(), b"")
    reply, _ = answer(executor, caller)
    assert reply.status == 0


def test_what_user_code_calls_is_user_code_and_what_the_runtime_calls_is_not() -> None:
    def frame_under(*modules: str) -> bool:
        def innermost() -> bool:
            return is_user_code(sys._getframe())

        function = innermost
        for module in modules:
            namespace: dict[str, Any] = {"__name__": module, "inner": function}
            exec("def function():\n    return inner()", namespace)
            function = namespace["function"]
        return function()

    assert not frame_under("retinue.core.client.runtime")
    assert not frame_under("json", "retinue.core.serialization", "model")
    assert not frame_under("model")  # not under a call site at all: no task's code


# --- puts


def test_another_attempts_puts_have_ids_of_their_own(
    executor: SyncExecutor, runner: CallRunner, caller: Caller, runtime: FakeRuntime
) -> None:
    def function() -> None:
        steps.append((runtime.context.task_id, runtime.context.put_task_id))

    define(runner, function)
    for attempt in range(3):
        executor.execute(caller.connection, make_call(options=CallOptions(attempt=attempt)), b"")
    task_id = make_call().task_id
    assert steps[0] == (task_id, task_id)
    assert {task for task, _ in steps} == {task_id}, "children know their parent"
    assert len({put for _, put in steps}) == 3


# --- connections


def test_a_connection_that_ends_leaves_the_epoll_and_not_its_successor(
    executor: SyncExecutor, caller: Caller, runtime: FakeRuntime
) -> None:
    executor.adopt(caller.connection)
    copy = os.dup(caller.connection.fd)  # as a child of user code would hold it
    caller.sock.close()
    number = caller.connection.fd
    caller.connection.lost()
    executor.epoll.modify(executor._event, 0)
    assert executor.epoll.poll(0) == [], "it would be readable for ever"
    os.close(copy)
    successor = Caller(runtime.io)
    successor.connection.fd = number
    executor._connections[number] = successor.connection
    executor._closing(caller.connection)
    assert executor.connections() == [successor.connection]
    del executor._connections[number]
    successor.sock.close()
    successor.connection.sock.close()


# --- streams


def _items(n: int) -> Iterator[int]:
    yield from range(n)


def test_a_stream_stops_when_its_consumer_has_died(
    executor: SyncExecutor, runner: CallRunner, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync_module, "CONSUMER_CHECK_S", 0.01)
    define(runner, lambda: _items(1000))
    caller.sock.shutdown(socket.SHUT_RDWR)
    options = CallOptions(streaming=True, stream_backpressure=2)
    executor.execute(caller.connection, make_call(options=options), _no_arguments())
    executor.flush()
    ((_, _, _, _, error),) = runner.events
    assert error == "ConnectionError"


def test_a_stream_goes_on_as_its_consumer_takes_items(
    executor: SyncExecutor, runner: CallRunner, caller: Caller
) -> None:
    define(runner, lambda: _items(20))
    call = make_call(options=CallOptions(streaming=True, stream_backpressure=2))
    taken: list[int] = []

    def consume() -> None:
        while len(taken) < 20:
            select.select([caller.sock], [], [], 5)
            for message, payload in caller.answers():
                if isinstance(message, StreamItem):
                    taken.append(deserialize(payload))
            executor.credit(StreamCredit(call.task_id, len(taken)))

    consumer = threading.Thread(target=consume)
    consumer.start()
    executor.execute(caller.connection, call, _no_arguments())
    consumer.join()
    assert taken == list(range(20))


def test_items_that_wait_for_an_owner_are_not_overtaken_by_plain_ones_or_by_the_reply(
    executor: SyncExecutor, runner: CallRunner, caller: Caller, runtime: FakeRuntime
) -> None:
    foreign = (b"o" * 28, CALLER)
    plain = Serialized(pickle.dumps("plain"))
    with_reference = Serialized(pickle.dumps("reference"), (), [foreign])
    values = itertools.chain([with_reference], [plain] * 3)
    define(runner, lambda: values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retinue.core.worker.running.serialize", lambda v: v if v is not None else plain)
        executor.execute(caller.connection, make_call(options=CallOptions(streaming=True)), _no_arguments())
        executor.flush()
        assert caller.answers() == [], "the first item is not ready"
        for answered in runtime.ownership.handed:
            answered()
    executor.flush()
    messages = [message for message, _ in caller.answers()]
    assert [m.index for m in messages[:-1]] == [0, 1, 2, 3]
    assert isinstance(messages[-1], Reply)


# --- errors


def test_references_that_a_failed_call_kept_are_counted_before_its_error_leaves(
    executor: SyncExecutor, runner: CallRunner, caller: Caller, runtime: FakeRuntime
) -> None:
    def function() -> None:
        runtime.ownership.note_borrowed([b"kept"])
        raise ValueError("no")

    runtime.ownership.held = [b"kept"]
    define(runner, function)
    executor.execute(caller.connection, make_call(), b"")
    executor.flush()
    assert caller.answers() == []
    ((_, counted),) = runtime.ownership.registered
    counted()
    reply, payload = answer(executor, caller)
    assert reply.status == REPLY_ERROR
    assert isinstance(deserialize(payload), ValueError)


def test_a_definition_that_cannot_be_loaded_fails_its_calls_and_not_the_worker(
    executor: SyncExecutor, runner: CallRunner, caller: Caller
) -> None:
    runner.define(Define(b"key"), dump_definition(_exits)[0].replace(b"_exits", b"_exist"))
    executor.execute(caller.connection, make_call(), b"")
    reply, payload = answer(executor, caller)
    assert reply.status == REPLY_ERROR
    assert isinstance(deserialize(payload), AttributeError)


def _exits() -> None: ...


def _no_arguments() -> bytes:
    return b""
