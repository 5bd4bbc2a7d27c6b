"""ObjectRef: what a task's caller holds instead of its value.

A reference is a frozen, untracked Struct: a million of them cost no garbage collection (measured: a
slots class makes the collector pause up to 500 ms at a million pending tasks, this none). Its finalizer
may run anywhere, inside any lock, so it only appends to a list that the control side drains.

Lives here: the reference, the queue of dropped ones, collecting the references inside a value while it
is pickled, and handing them to a value that is loaded. Does not: counting (`ownership.table`), fetching
(the runtime, through `bind`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from msgspec import Struct

from retinue.core.ids import OBJECT_ID_SIZE, TASK_ID_SIZE, JobID, ObjectID, TaskID
from retinue.core.wire.messages import Address

if TYPE_CHECKING:
    import asyncio
    import concurrent.futures

T = TypeVar("T")

# The references inside a value: owners, each with the ids of its objects.
Groups = Sequence[tuple[Address, Sequence[bytes]]]

# Ids of references that were garbage collected, oldest first; `append` is atomic and takes no lock. A list,
# for 10,000 are taken out in one step (0.003 us each; popped one by one from a deque 0.065).
dropped: list[bytes] = []
_drop = dropped.append


class ReferenceRuntime(Protocol):
    """What references need of the process's runtime."""

    def add_reference(self, object_id: bytes, owner: Address | None) -> ObjectRef[Any]: ...
    def add_references(self, groups: Groups) -> dict[bytes, ObjectRef[Any]]: ...
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


def groups_of(found: Sequence[tuple[bytes, Address | None]]) -> Groups:
    """Those of the references found while a value was pickled that are ObjectRefs, each once, by owner."""
    own = _required_runtime().own_address()
    by_owner: dict[Address | None, dict[bytes, None]] = {}
    for object_id, owner in found:
        if len(object_id) == OBJECT_ID_SIZE:
            by_owner.setdefault(owner, {})[object_id] = None
    return [(owner or own, list(ids)) for owner, ids in by_owner.items()]


def restorer_of(groups: Groups) -> Callable[[bytes, Address], Any]:
    """What `_restore` is to be while a value with these references is loaded: they are counted already.

    They are let go of with the function, unless the value holds them. It is a dict's `get`, so that making
    a value's references runs no Python code.
    """
    return _required_runtime().add_references(groups).get


def is_restore(module: str, name: str) -> bool:
    """Whether a pickle that names this function means `_restore`."""
    return name == "_restore" and module == __name__
