from types import SimpleNamespace
from typing import Any

from retinue.core.client.actors import ActorQueue
from retinue.core.client.describe import describe_objects, describe_tasks, dump_stacks
from retinue.core.client.tasks import FunctionDef, TaskRecord
from retinue.core.ids import IdFactory, return_id
from retinue.core.ownership.table import ACTOR, INLINE, PENDING, Entry
from retinue.core.wire.messages import Address, CallOptions

FUNCTION = FunctionDef(b"k", b"", "module.work", [])


def runtime(entries: dict[bytes, Entry], being_made: list[tuple[ActorQueue, bool]] | None = None) -> Any:
    actors = SimpleNamespace(being_made=lambda: being_made or [])
    return SimpleNamespace(table=SimpleNamespace(entries=entries), actors=actors, call_sites=None)


def task(number: int, **more: Any) -> TaskRecord:
    return TaskRecord(number.to_bytes(24, "big"), FUNCTION, **more)


def pending(tasks: list[TaskRecord]) -> dict[bytes, Entry]:
    return {return_id(t.task_id, 0): Entry(PENDING, 1, task=t) for t in tasks}


def test_pending_calls_say_what_they_wait_for() -> None:
    waiting = task(1, unready=1, options=CallOptions(name="mine"), parent=b"p" * 24)
    sent = task(2, conn=object(), attempt=1)
    answered = task(3, is_done=True)
    found = describe_tasks(runtime(pending([waiting, sent, answered])))
    assert found["omitted"] == 0
    first, second = found["tasks"]
    assert (first["name"], first["function"], first["state"]) == ("mine", "module.work", "PENDING_ARGS_AVAIL")
    assert first["parent_task_id"] == (b"p" * 24).hex()
    assert (second["name"], second["state"], second["attempt_number"]) == (
        "module.work",
        "SUBMITTED_TO_WORKER",
        1,
    )


def test_what_runs_is_told_first_and_the_rest_only_counted() -> None:
    found = describe_tasks(runtime(pending([task(n) for n in range(10)])), [{"task_id": "r"}], limit=3)
    assert found["tasks"][0] == {"task_id": "r"}
    assert (len(found["tasks"]), found["omitted"]) == (4, 7)


def test_a_call_with_several_returns_is_told_once() -> None:
    one = task(1)
    entries = {return_id(one.task_id, index): Entry(PENDING, 1, task=one) for index in range(3)}
    assert len(describe_tasks(runtime(entries))["tasks"]) == 1


def test_actors_that_wait_for_a_node_are_constructors_to_run() -> None:
    queue = ActorQueue(b"a" * 12 + b"jobs", class_name="Counter")
    found = describe_tasks(runtime({}, [(queue, True), (queue, False)]), limit=1)
    (creation,) = found["tasks"]
    assert (creation["name"], creation["type"]) == ("Counter.__init__", "ACTOR_CREATION_TASK")
    assert creation["state"] == "PENDING_NODE_ASSIGNMENT"
    assert bytes.fromhex(creation["task_id"]).endswith(b"jobs")
    assert found["omitted"] == 1


def test_objects_say_what_made_them() -> None:
    one = task(1)
    owner = Address(b"o" * 16, b"n" * 16, "")
    entries = {
        return_id(one.task_id, 0): Entry(INLINE, 1, blob=b"12345", task=one),
        IdFactory(b"jobs").put_id(one.task_id, 1): Entry(INLINE, 2, blob=b"1"),
        return_id(task(2).task_id, 0): Entry(PENDING, 1, owner=owner),
        b"a" * 16: Entry(ACTOR, 1),
    }
    found = describe_objects(runtime(entries))["objects"]
    sites = [held["call_site"] for held in found]
    assert sites == [
        "call of module.work",
        "put",
        f"borrowed from {owner.worker_id.hex()[:12]}",
        "actor handle",
    ]
    assert [held["size"] for held in found] == [5, 1, 0, 0]
    assert [held["owned"] for held in found] == [True, True, False, True]
    assert describe_objects(runtime(entries), limit=1)["omitted"] == 3


def test_stacks_name_this_function() -> None:
    assert "test_stacks_name_this_function" in dump_stacks()
