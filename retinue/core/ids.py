"""Identifiers: fixed-size byte strings with a type each.

Hot paths carry the raw bytes; the classes here are what users see. An ObjectID starts with the
TaskID that made it, every id of a job ends (or, for objects, ends before the index) with the JobID.
Lives here: sizes, layout, making ids. Does not: who owns what.
"""

from __future__ import annotations

import itertools
import os
from typing import Self

JOB_ID_SIZE = 4
NODE_ID_SIZE = 16
WORKER_ID_SIZE = 16
ACTOR_ID_SIZE = 16
TASK_ID_SIZE = 24
OBJECT_ID_SIZE = TASK_ID_SIZE + 4
PLACEMENT_GROUP_ID_SIZE = 16
PUT_INDEX_BIT = 0x8000_0000
FIRST_RETURN = (1).to_bytes(4, "little")


class BaseID:
    """An immutable id of `SIZE` bytes; compares by type and value."""

    SIZE = 0
    __slots__ = ("_id",)

    def __init__(self, id: bytes) -> None:
        if not isinstance(id, bytes) or len(id) != self.SIZE:
            raise ValueError(f"{type(self).__name__} takes {self.SIZE} bytes, got {id!r}")
        self._id = id

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Read what `hex()` wrote. Raises ValueError if it is not hex or of another length."""
        return cls(bytes.fromhex(text))

    @classmethod
    def from_binary(cls, id: bytes) -> Self:
        return cls(id)

    @classmethod
    def from_random(cls) -> Self:
        return cls(os.urandom(cls.SIZE))

    @classmethod
    def nil(cls) -> Self:
        """The id that names nothing: all bits one."""
        return cls(b"\xff" * cls.SIZE)

    @classmethod
    def size(cls) -> int:
        return cls.SIZE

    def binary(self) -> bytes:
        return self._id

    def hex(self) -> str:
        return self._id.hex()

    def is_nil(self) -> bool:
        return self._id == b"\xff" * self.SIZE

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._id == other._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._id.hex()})"

    def __reduce__(self) -> tuple[type[Self], tuple[bytes]]:
        return type(self), (self._id,)


class JobID(BaseID):
    SIZE = JOB_ID_SIZE
    __slots__ = ()


class NodeID(BaseID):
    SIZE = NODE_ID_SIZE
    __slots__ = ()


class WorkerID(BaseID):
    SIZE = WORKER_ID_SIZE
    __slots__ = ()


class ActorID(BaseID):
    """16 bytes: 12 of its own, then the job's 4."""

    SIZE = ACTOR_ID_SIZE
    __slots__ = ()

    def job_id(self) -> JobID:
        return JobID(self._id[-JOB_ID_SIZE:])


class TaskID(BaseID):
    """24 bytes: 12 of the submitting process, a counter of 8, then the job's 4."""

    SIZE = TASK_ID_SIZE
    __slots__ = ()

    def job_id(self) -> JobID:
        return JobID(self._id[-JOB_ID_SIZE:])


class ObjectID(BaseID):
    """28 bytes: the task that made it, then its index among that task's returns or puts."""

    SIZE = OBJECT_ID_SIZE
    __slots__ = ()

    def task_id(self) -> TaskID:
        return TaskID(self._id[:TASK_ID_SIZE])

    def job_id(self) -> JobID:
        return JobID(self._id[TASK_ID_SIZE - JOB_ID_SIZE : TASK_ID_SIZE])


class PlacementGroupID(BaseID):
    SIZE = PLACEMENT_GROUP_ID_SIZE
    __slots__ = ()


class ActorClassID(BaseID):
    SIZE = 16
    __slots__ = ()


def return_id(task_id: bytes, index: int) -> bytes:
    """The object id of a task's return number `index`, counted from 0."""
    return task_id + (index + 1).to_bytes(4, "little")


def creation_task_id(actor_id: bytes) -> bytes:
    """The task that is an actor's constructor: of no `IdFactory`, for those count from 1."""
    return actor_id[:-JOB_ID_SIZE] + bytes(TASK_ID_SIZE - ACTOR_ID_SIZE) + actor_id[-JOB_ID_SIZE:]


def task_type(task_id: bytes, *, is_actors: bool) -> str:
    """Ray's word for the kind of task; `is_actors`: an actor runs it."""
    if not is_actors:
        return "NORMAL_TASK"
    is_creation = not any(task_id[ACTOR_ID_SIZE - JOB_ID_SIZE : -JOB_ID_SIZE])
    return "ACTOR_CREATION_TASK" if is_creation else "ACTOR_TASK"


class IdFactory:
    """Makes ids that are unique without asking anybody: a random prefix per process and a counter.

    `next(counter)` is atomic under the GIL, so threads share a factory without a lock. A forked
    process must make a factory of its own.
    """

    __slots__ = ("_counter", "_prefix", "_suffix", "job_id")

    def __init__(self, job_id: bytes) -> None:
        self.job_id = job_id
        self._prefix = os.urandom(12)
        self._suffix = job_id
        self._counter = itertools.count(1)

    def task_id(self) -> bytes:
        return self._prefix + next(self._counter).to_bytes(8, "little") + self._suffix

    def put_id(self, task_id: bytes, index: int) -> bytes:
        """The object id of the put number `index` within a task."""
        return task_id + (PUT_INDEX_BIT | (index & 0x7FFF_FFFF)).to_bytes(4, "little")

    def actor_id(self) -> bytes:
        return os.urandom(ACTOR_ID_SIZE - JOB_ID_SIZE) + self._suffix
