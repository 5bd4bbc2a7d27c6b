from __future__ import annotations

from typing import Any

import pytest

from retinue.core.ids import return_id
from retinue.core.serialization import deserialize, dump_definition, serialize_error
from retinue.core.wire.framing import FrameDecoder
from retinue.core.wire.messages import ActorSpec, Define, Reply, Shape, WorkerEnv
from retinue.core.worker import context
from retinue.core.worker.actors import creation_error
from retinue.core.worker.running import INLINE_TOTAL_BYTES, CallRunner, forget_frames, remote_traceback
from tests.core.worker.fakes import CALLER, NODE, Caller, FakeRuntime, make_call


def _reply(runner: CallRunner, caller: Caller, value: Any, num_returns: int) -> tuple[Reply, bytes]:
    frames: list[bytes] = []
    call = make_call(num_returns=num_returns)
    runner.reply(caller.connection, call, value, 5, frames.append)
    decoder = FrameDecoder()
    decoder.feed(frames[0])
    ((reply, payload),) = decoder.frames()
    assert isinstance(reply, Reply)
    return reply, payload


def test_a_definition_that_is_loaded_stays_when_another_caller_sends_it(runner: CallRunner) -> None:
    def function() -> int:
        return 1

    blob, _ = dump_definition(function)
    runner.define(Define(b"key"), blob)
    loaded = runner.function(b"key")
    runner.define(Define(b"key"), blob)
    assert runner.function(b"key") is loaded, "its globals hold what it cached"


def test_many_returns_travel_inline_up_to_a_limit_and_the_rest_by_the_store(
    runner: CallRunner, caller: Caller, runtime: FakeRuntime
) -> None:
    reply, payload = _reply(runner, caller, [bytes(90_000)] * 20, 20)
    assert len(payload) <= INLINE_TOTAL_BYTES
    assert reply.returns is not None
    inline = [info for info in reply.returns if not info.node_id]
    assert sum(info.size for info in inline) == len(payload)
    assert len(inline) == 11
    call = make_call()
    assert set(runtime.store.written) == {return_id(call.task_id, i) for i in range(11, 20)}
    assert all(info.node_id == NODE for info in reply.returns[11:])


def test_an_answer_waits_until_owners_count_what_the_call_kept(
    runner: CallRunner, runtime: FakeRuntime
) -> None:
    running = runner.started(make_call())
    running.borrow([b"kept", b"dropped"])
    runtime.ownership.held = [b"kept"]
    sent: list[bytes] = []
    runner.conclude(running, b"frame", sent.append)
    ((ids, then),) = runtime.ownership.registered
    assert ids == [b"kept"]
    assert sent == []
    assert runner.has_unanswered(), "the process must not end now"
    then()
    assert sent == [b"frame"]
    assert not runner.has_unanswered()


def test_references_that_a_get_brings_belong_to_the_running_call(
    runner: CallRunner, runtime: FakeRuntime, facts: context.WorkerFacts
) -> None:
    running = runner.started(make_call())
    context.running.set(running)
    runtime.ownership.note_borrowed([b"inside"])
    assert running.borrowed == [b"inside"]
    context.running.set(None)
    runtime.ownership.note_borrowed([b"of no call"])
    assert running.borrowed == [b"inside"]


class Shy:
    def __init__(self) -> None:
        raise ValueError("not made")

    def __repr__(self) -> str:
        return f"Shy({self.missing})"  # type: ignore[attr-defined]


def test_an_error_is_told_whatever_the_actors_repr_does(
    runner: CallRunner, facts: context.WorkerFacts
) -> None:
    facts.actor = Shy.__new__(Shy)

    class Odd(Exception):
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    blob, _ = runner.error_blob(make_call(method="call"), Odd())
    error = deserialize(blob)
    assert "Shy" in error.actor_repr
    assert "RuntimeError" in error.cause_repr


def test_frames_are_forgotten_also_where_causes_go_round_in_a_circle() -> None:
    error = ValueError("mine")
    try:
        try:
            raise KeyError("first")
        except KeyError:
            raise error from error
    except ValueError:
        pass
    assert error.__context__ is not None
    error.__context__.__context__ = error
    forget_frames(error)
    assert error.__traceback__ is None
    assert error.__context__.__traceback__ is None


def test_a_traceback_begins_in_user_code() -> None:
    def raises() -> None:
        raise LookupError("here")

    namespace: dict[str, Any] = {"__name__": "retinue.core.worker.sync", "raises": raises}
    exec("def call():\n    raises()\ndef execute():\n    call()", namespace)
    with pytest.raises(LookupError) as caught:
        namespace["execute"]()
    error = caught.value
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next  # this test's own frame
    text = remote_traceback(error)
    assert "in raises" in text
    assert "in call" not in text


def test_a_constructors_error_is_the_actors_death(facts: context.WorkerFacts) -> None:
    shape = Shape({}, WorkerEnv(b"j" * 4))
    facts.actor_spec = ActorSpec(b"a" * 16, b"j" * 4, CALLER, "Shy", b"key", shape, {})
    facts.actor = Shy.__new__(Shy)
    with pytest.raises(ValueError, match="not made") as caught:
        Shy()
    error = creation_error(facts, caught.value)
    assert deserialize(serialize_error(error)).actor_id == (b"a" * 16).hex()
    assert "in __init__" in str(error)
    assert "ValueError: not made" in str(error)
    assert "Shy.__init__()" in str(error)


def test_a_function_that_was_never_called_has_its_name_already(runner: CallRunner) -> None:
    def greet() -> None: ...

    runner.define(Define(b"key"), dump_definition(greet)[0])
    assert runner.started(make_call()).name.endswith("greet")
