"""ObjectRef: what a task's caller holds instead of its value.

A reference is a frozen, untracked Struct: a million of them cost no garbage collection (measured: a
slots class makes the collector pause up to 500 ms at a million pending tasks, this none). Its finalizer
may run anywhere, inside any lock, so it only appends to a deque that the control side drains.

Lives here: the reference, the queue of dropped ones, collecting the references inside a value while it
is pickled. Does not: counting (`ownership.table`), fetching (the runtime, through `bind`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from msgspec import Struct

from retinue.core.ids import TASK_ID_SIZE, JobID, ObjectID, TaskID
from retinue.core.wire.messages import Address

if TYPE_CHECKING:
    import asyncio
    import concurrent.futures

T = TypeVar("T")

# Ids of references that were garbage collected, oldest first; `append` is atomic and takes no lock.
dropped: deque[bytes] = deque()
_drop = dropped.append


class ReferenceRuntime(Protocol):
    """What references need of the process's runtime."""

    def add_reference(self, object_id: bytes, owner: Address | None) -> ObjectRef[Any]: ...
    def future_of(self, ref: ObjectRef[Any]) -> concurrent.futures.Future[Any]: ...
    def await_ref(self, ref: ObjectRef[Any]) -> asyncio.Future[Any]: ...
    def own_address(self) -> Address: ...
    def reference_escaped(self, object_id: bytes) -> None: ...


_runtime: ReferenceRuntime | None = None


def bind(runtime: ReferenceRuntime | None) -> None:
    """Say which runtime serves this process's references."""
    global _runtime
    _runtime = runtime


def _required_runtime() -> ReferenceRuntime:
    if _runtime is None:
        raise RuntimeError("this process is not connected to a cluster; call retinue.init() first")
    return _runtime


class _Collector(threading.local):
    """The references met while a value is pickled on this thread; None outside of our serializer.

    `kept` holds those that only the pickling made (by a `__reduce__` that puts, say) until they are counted.
    """

    found: list[tuple[bytes, Address | None]] | None = None
    kept: list[ObjectRef[Any]] | None = None


collector = _Collector()


class ObjectRef(Struct, Generic[T], frozen=True, gc=False):
    """A reference to an object that exists or will exist. Await it, or give it to `retinue.get`.

    Holding one keeps the object. Two references are equal if they name the same object. It can be
    passed to tasks (a top-level argument arrives as its value, one inside a container as a reference),
    stored, returned and captured. It cannot be weakly referenced.
    """

    _id: bytes
    _owner: Address | None = None  # None: this process owns the object

    def __del__(self) -> None:
        _drop(self._id)

    def binary(self) -> bytes:
        """The 28 bytes of the object's id."""
        return self._id

    def hex(self) -> str:
        return self._id.hex()

    def is_nil(self) -> bool:
        return self._id == b"\xff" * len(self._id)

    def task_id(self) -> TaskID:
        """The task that makes the object, or that put it."""
        return TaskID(self._id[:TASK_ID_SIZE])

    def job_id(self) -> JobID:
        return ObjectID(self._id).job_id()

    def future(self) -> concurrent.futures.Future[T]:
        """A future of the value; its `result()` raises what `get` would raise."""
        return _required_runtime().future_of(self)

    def __await__(self) -> Generator[Any, None, T]:
        return _required_runtime().await_ref(self).__await__()

    def as_future(self) -> asyncio.Future[T]:
        """An asyncio future of the value, on the running loop."""
        return _required_runtime().await_ref(self)

    def __hash__(self) -> int:
        return hash(self._id)

    def __eq__(self, other: object) -> bool:
        return type(other) is ObjectRef and other._id == self._id

    def __repr__(self) -> str:
        return f"ObjectRef({self._id.hex()})"

    def __copy__(self) -> ObjectRef[T]:
        return _restore(self._id, self._owner)

    def __deepcopy__(self, memo: object) -> ObjectRef[T]:
        return _restore(self._id, self._owner)

    def __reduce__(self) -> tuple[Any, tuple[bytes, Address]]:
        runtime = _required_runtime()
        owner = self._owner or runtime.own_address()
        found = collector.found
        if found is None:
            # Pickled by the user's own hand: nobody can tell when the copy is gone, so it stays.
            runtime.reference_escaped(self._id)
        else:
            found.append((self._id, self._owner))
            if collector.kept is not None:
                collector.kept.append(self)
        return _restore, (self._id, owner)


def _restore(object_id: bytes, owner: Address | None) -> ObjectRef[Any]:
    runtime = _runtime or _required_runtime()
    return runtime.add_reference(object_id, owner)
