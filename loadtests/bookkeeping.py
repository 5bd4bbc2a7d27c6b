"""What each part of a call's bookkeeping costs, timed by itself: `python loadtests/bookkeeping.py`.

The parts are those of the running code, called as it calls them, in one process and without sockets; so
they add up to less than a call, which also pays for system calls, wake-ups and cold caches.
"""

from __future__ import annotations

import contextvars
import threading
import timeit
from collections import deque
from typing import Any

import msgspec

from retinue.core.client.tasks import TaskRecord, call_frame
from retinue.core.ids import FIRST_RETURN, IdFactory
from retinue.core.ownership.table import INLINE, OwnershipTable
from retinue.core.references import ObjectRef, dropped
from retinue.core.serialization import deserialize, serialize
from retinue.core.wire.framing import FrameDecoder, encode
from retinue.core.wire.messages import Reply

NUMBER = 100_000


def parts() -> list[tuple[str, Any]]:
    ids = IdFactory(b"\0" * 4)
    table = OwnershipTable()
    lock = threading.Lock()
    variable: contextvars.ContextVar[object] = contextvars.ContextVar("x")
    events: deque[tuple[Any, ...]] = deque(maxlen=10_000)
    decoder = FrameDecoder()
    blob = serialize(b"ok").to_bytes()
    task_id = ids.task_id()
    frame = encode(Reply(task_id, 0, 3), blob)

    def own_and_let_go() -> None:
        object_id = ids.task_id() + FIRST_RETURN
        task = TaskRecord(object_id[:24], None)
        with lock:
            table.own(object_id, task)
        with lock:
            table.resolve(object_id, INLINE, blob=blob)
            table.task_done(task, keep_lineage=False)
        table.drop_refs((object_id,))

    def take_lock() -> None:
        with lock:
            pass

    def decode() -> None:
        decoder.feed(frame)
        for _ in decoder.frames():
            pass

    def reference() -> None:
        ObjectRef(task_id)
        dropped.clear()

    record = TaskRecord(task_id, None, "m")
    return [
        ("task event into the ring", lambda: events.append((task_id, "name", 0.0, 0.0, ""))),
        ("running call in a context variable", lambda: variable.set(record)),
        ("task id", ids.task_id),
        ("reference, made and dropped", reference),
        ("table: own, resolve, let go (ids, record, two locks)", own_and_let_go),
        ("lock", take_lock),
        ("frame of a call", lambda: call_frame(record, None)),
        ("frame of a reply, decoded", decode),
        ("result, serialized and loaded", lambda: deserialize(serialize(b"ok").to_bytes())),
        ("event batch of 1,000, encoded (each second)", lambda: msgspec.msgpack.encode(list(events)[:1000])),
    ]


def main() -> None:
    for name, function in parts():
        number = NUMBER if "batch" not in name else 100
        best = min(timeit.repeat(function, number=number, repeat=5)) / number
        print(f"{name:55} {best * 1e6:8.2f} us")


if __name__ == "__main__":
    main()
