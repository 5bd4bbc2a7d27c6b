"""What a caller remembers of a call until it is answered, and how it becomes a frame.

Lives here: TaskRecord, FunctionDef, encoding a call. Does not: choosing where it runs (`leases`,
`actors`), the table of objects.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from retinue.core.wire.framing import encode
from retinue.core.wire.messages import Address, Call, CallOptions, Define, Dependency, StoredObject

DEFINE_PART_BYTES = 200 * 1024
_encode_dependencies = msgspec.msgpack.Encoder().encode


class TaskRecord(Struct, gc=False):
    """A call: pending, in flight, or kept because its result may have to be made again.

    Untracked by the garbage collector, like the table's entries: a million pending calls must not make
    it pause. `deps` are the ids held (`uses`) for it; `slots` those that are top-level arguments, in the
    order of their placeholders.
    """

    task_id: bytes
    function: Any  # FunctionDef, or None for an actor's method
    method: str = ""
    args: bytes = b""
    deps: tuple[bytes, ...] = ()
    slots: tuple[bytes, ...] = ()
    num_returns: int = 1
    live_returns: int = 1
    retries_left: int = 0
    is_done: bool = False
    is_cancelled: bool = False
    unready: int = 0  # dependencies that are not there yet
    attempt: int = 0
    seq: int = 0
    options: CallOptions | None = None
    pool: Any = None  # the ShapePool or ActorQueue it goes through
    conn: Any = None  # the Connection it is in flight on
    retry_exceptions: Any = None  # None, True, or a tuple of exception types
    args_object: StoredObject | None = None
    stream: Any = None  # the StreamState of a streaming generator
    parent: bytes = b""  # the task that made this call
    is_error_told: bool = False  # somebody asked for its error, or the log has it


class FunctionDef:
    """A function (or class) definition as it travels: by content hash, once per connection."""

    __slots__ = ("blob", "found", "key", "max_calls", "mean_us", "name")

    def __init__(self, key: bytes, blob: bytes, name: str, found: list[tuple[bytes, Address | None]]) -> None:
        self.key = key
        self.blob = blob
        self.name = name
        self.found = found
        self.max_calls = 0
        self.mean_us = -1.0  # moving mean of its run time, -1 while unknown


def definition_frames(function: FunctionDef) -> bytes:
    """The Define frames of a definition, in parts that let other frames pass in between."""
    parts = range(0, len(function.blob), DEFINE_PART_BYTES)
    return b"".join(
        encode(Define(function.key, i, len(parts)), function.blob[start : start + DEFINE_PART_BYTES])
        for i, start in enumerate(parts)
    )


def call_frame(task: TaskRecord, dependencies: list[Dependency] | None, incarnation: int = 0) -> bytes:
    """The frame that asks a worker to run the task; `dependencies` match `task.slots`."""
    payload = task.args
    size = len(payload)
    if dependencies:
        payload = payload + _encode_dependencies(dependencies)
    key = task.function.key if task.function is not None else b""
    return encode(
        Call(task.task_id, key, task.method, task.num_returns, size, task.seq, incarnation, task.options),
        payload,
    )
