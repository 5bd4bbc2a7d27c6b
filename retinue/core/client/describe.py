"""What a process says of itself when it is asked: its calls, its objects, its threads.

Lives here: the answers to `Query`, as plain values. It reads the tables without the runtime's lock: a
million pending calls must not make the caller wait, and people can live with an answer that is a
microsecond old in one place. Does not: gathering the answers (the node agent).
"""

from __future__ import annotations

import faulthandler
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from retinue.core.client.actors import ActorQueue
from retinue.core.client.tasks import TaskRecord
from retinue.core.ids import PUT_INDEX_BIT, TASK_ID_SIZE, creation_task_id, task_type
from retinue.core.ownership.table import PENDING, STATE_NAMES, Entry

if TYPE_CHECKING:
    from retinue.core.client.runtime import Runtime

DEFAULT_LIMIT = 10_000
Arguments = dict[str, str]


def process_queries(runtime: Runtime) -> dict[str, Callable[[Arguments], Any]]:
    """What every process can be asked."""
    return {
        "tasks": lambda arguments: describe_tasks(runtime, limit=_limit(arguments)),
        "objects": lambda arguments: describe_objects(runtime, limit=_limit(arguments)),
        "stack": lambda arguments: dump_stacks(),
    }


def _limit(arguments: Arguments) -> int:
    return int(arguments.get("limit", DEFAULT_LIMIT))


def describe_tasks(
    runtime: Runtime, running: Iterable[dict[str, Any]] = (), *, limit: int = DEFAULT_LIMIT
) -> dict[str, Any]:
    """The calls that this process runs, and those that it made and that are not answered.

    `omitted`: how many there are beyond the limit, a call for each of its returns. With a million pending
    calls this takes about 0.15 s, most of it to count.
    """
    entries = iter(list(runtime.table.entries.values()))
    found: dict[bytes, TaskRecord] = {}
    for entry in entries:
        task = entry.task
        if task is not None and not task.is_done:
            found[task.task_id] = task
            if len(found) >= limit:
                break
    omitted = sum(1 for entry in entries if entry.state == PENDING and entry.task is not None)
    made = [_creation(queue, is_sent) for queue, is_sent in runtime.actors.being_made()]
    room = max(0, limit - len(found))
    omitted += max(0, len(made) - room)
    return {"tasks": [*running, *map(_pending, found.values()), *made[:room]], "omitted": omitted}


def _pending(task: TaskRecord) -> dict[str, Any]:
    queue = task.pool if isinstance(task.pool, ActorQueue) else None
    given = task.options.name if task.options is not None else ""
    return {
        "task_id": task.task_id.hex(),
        "name": given or function_of(task),
        "function": function_of(task),
        "state": _state(task),
        "attempt_number": task.attempt,
        "parent_task_id": task.parent.hex(),
        "type": task_type(task.task_id, is_actors=queue is not None),
        "actor_id": queue.actor_id.hex() if queue is not None else "",
    }


def _creation(queue: ActorQueue, is_sent: bool) -> dict[str, Any]:
    """A constructor that has not run; `is_sent`: the head is to find a node for it."""
    task_id = creation_task_id(queue.actor_id)
    name = f"{queue.class_name}.__init__"
    return {
        "task_id": task_id.hex(),
        "name": name,
        "function": name,
        "state": "PENDING_NODE_ASSIGNMENT" if is_sent else "PENDING_ARGS_AVAIL",
        "attempt_number": 0,
        "type": task_type(task_id, is_actors=True),
        "actor_id": queue.actor_id.hex(),
    }


def function_of(task: TaskRecord) -> str:
    """The function's name, or the actor's class and method."""
    if task.function is not None:
        return str(task.function.name)
    class_name = task.pool.class_name if isinstance(task.pool, ActorQueue) else ""
    return f"{class_name}.{task.method}" if class_name else task.method


def _state(task: TaskRecord) -> str:
    if task.conn is not None:
        return "SUBMITTED_TO_WORKER"
    return "PENDING_ARGS_AVAIL" if task.unready else "PENDING_NODE_ASSIGNMENT"


def running_task(
    runtime: Runtime,
    task_id: bytes,
    name: str,
    *,
    function: str,
    attempt: int,
    started: float,
    actor_id: bytes = b"",
) -> dict[str, Any]:
    """A call that this process runs; `started` is a monotonic reading."""
    return {
        "task_id": task_id.hex(),
        "name": name,
        "function": function,
        "state": "RUNNING",
        "attempt_number": attempt,
        "type": task_type(task_id, is_actors=bool(actor_id)),
        "actor_id": actor_id.hex(),
        "worker_id": runtime.address.worker_id.hex(),
        "pid": os.getpid(),
        "start_time": time.time() - time.monotonic() + started if started else 0.0,
    }


def describe_objects(runtime: Runtime, *, limit: int = DEFAULT_LIMIT) -> dict[str, Any]:
    """The objects that this process knows, and why it keeps them; `omitted`: how many beyond the limit."""
    entries = list(runtime.table.entries.items())
    found = [_object(runtime, object_id, entry) for object_id, entry in entries[:limit]]
    return {"objects": found, "omitted": max(0, len(entries) - limit)}


def _object(runtime: Runtime, object_id: bytes, entry: Entry) -> dict[str, Any]:
    return {
        "object_id": object_id.hex(),
        "state": STATE_NAMES[entry.state],
        "size": entry.size or len(entry.blob or b""),
        "local_references": entry.refs,
        "uses": entry.uses,
        "borrowers": len(entry.borrowers or ()),
        "owned": entry.owner is None,
        "owner": entry.owner.worker_id.hex() if entry.owner is not None else "",
        "nodes": [node_id.hex() for node_id in entry.nodes],
        "attempt_number": entry.task.attempt if entry.task is not None else 0,
        "call_site": call_site(runtime, object_id, entry),
    }


def call_site(runtime: Runtime, object_id: bytes, entry: Entry) -> str:
    """What made the object, as far as the process remembers: the called function, a put, another process.

    Where lines of source are recorded (`call_sites`), followed by the line.
    """
    line = runtime.call_sites.of(object_id) if runtime.call_sites is not None else ""
    return f"{_made_by(object_id, entry)} at {line}" if line else _made_by(object_id, entry)


def _made_by(object_id: bytes, entry: Entry) -> str:
    if len(object_id) <= TASK_ID_SIZE:
        return "actor handle"
    if entry.owner is not None:
        return f"borrowed from {entry.owner.worker_id.hex()[:12]}"
    if int.from_bytes(object_id[TASK_ID_SIZE:], "little") & PUT_INDEX_BIT:
        return "put"
    return f"call of {function_of(entry.task)}" if entry.task is not None else "call"


def dump_stacks() -> str:
    """What every thread of this process is doing now."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
