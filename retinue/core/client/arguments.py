"""Arguments of calls: pickled when the call is made, held while it lasts, waited for before it is sent.

Lives here: what becomes of references among them. Does not: sending them (`submission`, `actor_calls`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retinue.core.client.tasks import TaskRecord
from retinue.core.ownership.table import INLINE, PENDING, SHARD_BYTE, STORED
from retinue.core.references import ObjectRef
from retinue.core.serialization import serialize
from retinue.core.wire.messages import Dependency, StoredObject

if TYPE_CHECKING:
    from retinue.core.client.runtime import Runtime

INLINE_ARGS_LIMIT_BYTES = 100 * 1024
# Of a call: small objects among its arguments that travel in its frame.
INLINE_TOTAL_BYTES = 1024 * 1024


class ArgSlot:
    """Stands for a top-level ObjectRef argument within pickled arguments."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> tuple[type[ArgSlot], tuple[int]]:
        return ArgSlot, (self.index,)


class Prepared:
    """Arguments ready to travel: bytes, what they hold, what is not there yet."""

    __slots__ = ("args", "args_object", "deps", "slots")

    def __init__(
        self,
        args: bytes = b"",
        deps: tuple[bytes, ...] = (),
        slots: tuple[bytes, ...] = (),
        args_object: StoredObject | None = None,
    ) -> None:
        self.args = args
        self.deps = deps
        self.slots = slots
        self.args_object = args_object


NO_ARGUMENTS = Prepared()


class DependencyPending(Exception):
    """An argument's object was there, was lost, and is being made again."""


class DependencyFailed(Exception):
    """An argument's object is an error; `blob` is that error."""

    def __init__(self, blob: bytes) -> None:
        super().__init__()
        self.blob = blob


class Arguments:
    """Those of all calls that this process makes."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def prepare(self, args: Sequence[Any], kwargs: Mapping[str, Any], *, outlives: bool = False) -> Prepared:
        """Pickle a call's arguments now (they may change later) and hold the objects in them.

        `outlives`: the pickle is needed after this process's end, by a detached actor that starts again.
        """
        if not args and not kwargs:
            return NO_ARGUMENTS
        slots: list[ObjectRef[Any]] = []
        for value in args:
            if type(value) is ObjectRef:
                args = [self._slot(slots, v) for v in args]
                break
        for value in kwargs.values():
            if type(value) is ObjectRef:
                kwargs = {k: self._slot(slots, v) for k, v in kwargs.items()}
                break
        serialized = serialize((tuple(args), kwargs))
        runtime = self._runtime
        if not slots and not serialized.found and serialized.size <= INLINE_ARGS_LIMIT_BYTES:
            return Prepared(serialized.to_bytes())
        held = [(ref._id, ref._owner) for ref in slots]
        held.extend(serialized.found)
        with runtime.lock:
            for object_id, owner in held:
                runtime.table.use(object_id, owner)
        deps = [object_id for object_id, _ in held]
        args_object = None
        blob = b""
        if serialized.size > INLINE_ARGS_LIMIT_BYTES:
            object_id = runtime.next_put_id()
            try:
                runtime.put_stored(object_id, serialized, None, refs=0, outlives=outlives)
            except BaseException:
                with runtime.lock:
                    runtime.table.unuse_all(deps)
                raise
            with runtime.lock:
                runtime.table.use(object_id)
            deps.append(object_id)
            args_object = StoredObject(object_id, runtime.address, runtime.node_id, serialized.size)
        else:
            blob = serialized.to_bytes()
        return Prepared(blob, tuple(deps), tuple(ref._id for ref in slots), args_object)

    @staticmethod
    def _slot(slots: list[ObjectRef[Any]], value: Any) -> Any:
        if type(value) is not ObjectRef:
            return value
        slots.append(value)
        return ArgSlot(len(slots) - 1)

    def dependencies(self, task: TaskRecord) -> list[Dependency] | None:
        """What the task's slots have become. Called with the lock, when all are ready.

        Raises the error of a dependency that failed.
        """
        if not task.slots:
            return None
        found = []
        runtime = self._runtime
        room = INLINE_TOTAL_BYTES
        shards = runtime.table.entries.shards
        for object_id in task.slots:
            entry = shards[object_id[SHARD_BYTE]][object_id]
            if entry.state == INLINE:
                room -= entry.size
                if room >= 0:
                    found.append(Dependency(entry.blob))
                else:
                    # The worker asks the owner for it: a frame has its limits.
                    owner = entry.owner or runtime.address
                    found.append(Dependency(None, StoredObject(object_id, owner, b"", entry.size)))
            elif entry.state == STORED:
                node = entry.nodes[0] if entry.nodes else b""
                owner = entry.owner or runtime.address
                found.append(Dependency(None, StoredObject(object_id, owner, node, entry.size)))
            elif entry.blob is not None:
                if entry.task is not None:
                    entry.task.is_error_told = True  # what depends on it fails with it
                raise DependencyFailed(entry.blob)
            else:
                raise DependencyPending
        return found

    def await_dependencies(self, task: TaskRecord, then: Callable[[TaskRecord], None]) -> bool:
        """Whether slots are pending: then `then(task)` follows, once, when none is any more.

        `then` runs on any thread, maybe before this returns.
        """
        runtime = self._runtime
        shards = runtime.table.entries.shards
        pending = [i for i in task.slots if shards[i[SHARD_BYTE]][i].state == PENDING]
        if not pending:
            return False
        task.unready = len(pending)
        remaining = itertools.count(len(pending) - 1, -1)

        def ready() -> None:
            if next(remaining) == 0:
                task.unready = 0
                then(task)

        for object_id in pending:
            runtime.when_ready(object_id, ready)
        return True
