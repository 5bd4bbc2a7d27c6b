"""Who holds which object: the one table of a process, for the objects it owns and those it borrowed.

The owner of an object is the process whose call or put made it. It keeps the object while anybody
holds it: references in this process (`refs`), uses (arguments of running calls, containers that hold
it), and processes that were counted as borrowers. A process counts another as borrower *before* the
message that hands the reference over leaves, and the borrower returns all its counts at once when its
own holds are gone; so no order of messages can free an object that somebody holds. (The protocol is
the distributed reference counting of Ray's ownership paper, NSDI 2021, with counts in place of sets.)

Lives here: states and counts, and what follows from them (`Effects`). Does not: locks, messages,
waking up waiters, lineage's re-execution. All methods are called under the runtime's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from typing import Any

from msgspec import Struct

from retinue.core.ids import ACTOR_ID_SIZE
from retinue.core.wire.messages import Address

PENDING, INLINE, STORED, ERROR, LOST, ACTOR = 0, 1, 2, 3, 4, 5
STATE_NAMES = ("PENDING", "INLINE", "STORED", "ERROR", "LOST", "ACTOR")

# The byte of an id that says which dict has its entry: the lowest of the counter in a task's id.
SHARD_BYTE = 12
DICTS = 16

Waiter = Callable[[], None]


class Entry(Struct, gc=False):
    """One object (or actor handle) as this process knows it.

    `state` says what holds: INLINE and ERROR have `blob`; STORED has `size` and `nodes` that hold a
    copy; LOST has the error blob that explains it. `owner` is None for our own. `task` makes the object,
    or could make it again. `counted`: how often a foreign owner has counted us. Untracked by the garbage
    collector: nothing in here may refer back to the entry.
    """

    state: int = PENDING
    refs: int = 0
    uses: int = 0
    blob: bytes | None = None
    task: Any = None
    owner: Address | None = None
    waiters: list[Waiter] | None = None
    borrowers: dict[bytes, int] | None = None
    contained: list[bytes] | None = None
    nodes: tuple[bytes, ...] = ()
    size: int = 0
    counted: int = 0


class Effects:
    """What the shell must do because holds ended; taken with `OwnershipTable.take_effects`."""

    __slots__ = ("free", "release_actors", "uncount", "unread")

    def __init__(self) -> None:
        self.free: list[tuple[bytes, tuple[bytes, ...]]] = []  # stored objects of ours, and where
        self.uncount: list[tuple[Address, bytes, int]] = []  # borrowed: tell the owner
        self.release_actors: list[bytes] = []  # actors of ours without handles
        self.unread: list[tuple[Any, bytes]] = []  # tasks, and their errors that nobody can ask for any more

    def __bool__(self) -> bool:
        return bool(self.free or self.uncount or self.release_actors or self.unread)


class Entries:
    """All entries by id, in 16 dicts: one dict of a million entries stops every thread while it grows.

    Measured at 1,000,000 pending tasks: 32 ms for the last growth of one dict, 2 ms for that of one of 16.
    Where every nanosecond counts `shards[object_id[SHARD_BYTE]]` is used directly (0.02 us more than one
    dict); the methods here (0.1 us) are for everything else.
    """

    __slots__ = ("_dicts", "shards")

    def __init__(self) -> None:
        self._dicts: list[dict[bytes, Entry]] = [{} for _ in range(DICTS)]
        self.shards = self._dicts * (256 // DICTS)  # by any value of a byte: without a modulo

    def get(self, object_id: bytes) -> Entry | None:
        return self.shards[object_id[SHARD_BYTE]].get(object_id)

    def __getitem__(self, object_id: bytes) -> Entry:
        return self.shards[object_id[SHARD_BYTE]][object_id]

    def __contains__(self, object_id: bytes) -> bool:
        return object_id in self.shards[object_id[SHARD_BYTE]]

    def __len__(self) -> int:
        return sum(map(len, self._dicts))

    def __bool__(self) -> bool:
        return any(self._dicts)

    def __iter__(self) -> Iterator[bytes]:
        return (object_id for object_id, _ in self.items())

    def items(self) -> Iterator[tuple[bytes, Entry]]:
        """What is there now, about oldest first: ids that follow each other lie in dicts that do."""
        rows = zip_longest(*[list(entries.items()) for entries in self._dicts])
        return filter(None, chain.from_iterable(rows))

    def values(self) -> Iterator[Entry]:
        return (entry for _, entry in self.items())


class OwnershipTable:
    def __init__(self) -> None:
        self.entries = Entries()
        self._shards = self.entries.shards
        self._effects = Effects()

    # --- objects appear

    def own(self, object_id: bytes, task: Any) -> Entry:
        """A pending object of ours with one reference, which the caller is about to make."""
        entry = self._shards[object_id[SHARD_BYTE]][object_id] = Entry(PENDING, 1, 0, None, task)
        return entry

    def own_inline(self, object_id: bytes, blob: bytes, contained: list[bytes] | None = None) -> Entry:
        """A put that stays in this process's memory, with one reference."""
        entry = self._shards[object_id[SHARD_BYTE]][object_id] = Entry(
            INLINE, 1, 0, blob, None, None, None, None, contained, (), len(blob)
        )
        return entry

    def own_stored(
        self, object_id: bytes, size: int, node_id: bytes, contained: list[bytes] | None = None, refs: int = 1
    ) -> Entry:
        """A put that lies in a node's store."""
        entry = Entry(STORED, refs, 0, None, None, None, None, None, contained, (node_id,), size)
        self._shards[object_id[SHARD_BYTE]][object_id] = entry
        return entry

    def own_actor(self, actor_id: bytes, refs: int = 0) -> Entry:
        entry = self._shards[actor_id[SHARD_BYTE]][actor_id] = Entry(ACTOR, refs)
        return entry

    def add_ref(self, object_id: bytes, owner: Address | None) -> Entry:
        """Count a reference that was made in this process: a copy, or one that arrived in a value.

        One of a foreign owner that is not known yet becomes a borrowed entry; one of ours that is not
        known was let go of too early, or before this process forgot: it is LOST.
        """
        entry = self._shards[object_id[SHARD_BYTE]].get(object_id)
        if entry is None:
            entry = self._appear(object_id, owner)
        entry.refs += 1
        return entry

    def add_refs(self, object_ids: Iterable[bytes], owner: Address | None) -> list[bytes]:
        """Count one reference to each of one owner's objects, as `add_ref`: those of a whole value.

        Returns those that need more: foreign ones whose owner has not counted us, own ones that are LOST.
        """
        shards = self._shards
        more: list[bytes] = []
        for object_id in object_ids:
            try:
                entry = shards[object_id[SHARD_BYTE]][object_id]
            except KeyError:
                entry = self._appear(object_id, owner)
            entry.refs += 1
            if not entry.counted and (owner is not None or entry.state == LOST):
                more.append(object_id)
        return more

    def use(self, object_id: bytes, owner: Address | None = None) -> Entry:
        """Hold an object for a call or a container, known or not (as `add_ref`); ends with `unuse`."""
        entry = self._shards[object_id[SHARD_BYTE]].get(object_id)
        if entry is None:
            entry = self._appear(object_id, owner)
        entry.uses += 1
        return entry

    def _appear(self, object_id: bytes, owner: Address | None) -> Entry:
        if owner is None:
            state = LOST
        else:
            state = PENDING if len(object_id) > ACTOR_ID_SIZE else ACTOR
        entry = self._shards[object_id[SHARD_BYTE]][object_id] = Entry(state, 0, 0, None, None, owner)
        return entry

    # --- objects become something

    def resolve(
        self,
        object_id: bytes,
        state: int,
        *,
        blob: bytes | None = None,
        size: int = 0,
        nodes: tuple[bytes, ...] = (),
        contained: list[bytes] | None = None,
    ) -> list[Waiter]:
        """The object is there (or failed): returns the waiters, which the caller wakes.

        `contained` must have been taken with `use` already. If nobody holds the object any more it is
        let go of at once. A second resolution of the same object (a repeated frame, a task that ran again
        for another of its returns) only adds the copy that it names. For objects of ours; see `located`.
        """
        entry = self._shards[object_id[SHARD_BYTE]].get(object_id)
        if entry is None or entry.state != PENDING:
            if state == STORED:
                self._extra_copy(object_id, entry, nodes)
            self.unuse_all(contained)
            return []
        entry.blob = blob
        entry.size = size or (len(blob) if blob is not None else 0)
        entry.nodes = nodes if not entry.nodes else tuple(dict.fromkeys((*nodes, *entry.nodes)))
        entry.contained = contained
        entry.state = state
        waiters, entry.waiters = entry.waiters, None
        return waiters or []

    def _extra_copy(self, object_id: bytes, entry: Entry | None, nodes: tuple[bytes, ...]) -> None:
        if entry is not None and entry.state == STORED:
            entry.nodes = tuple(dict.fromkeys((*entry.nodes, *nodes)))
        else:
            self._effects.free.append((object_id, nodes))

    def located(
        self,
        object_id: bytes,
        state: int,
        *,
        blob: bytes | None = None,
        size: int = 0,
        nodes: tuple[bytes, ...] = (),
    ) -> list[Waiter]:
        """A foreign owner answered: as `resolve`, but what is not wanted any more is not ours to free."""
        entry = self._shards[object_id[SHARD_BYTE]].get(object_id)
        if entry is None or entry.state != PENDING:
            return []
        return self.resolve(object_id, state, blob=blob, size=size, nodes=nodes)

    def make_pending(self, object_id: bytes) -> None:
        """A stored object of ours was lost and is being made again."""
        entry = self.entries[object_id]
        entry.state = PENDING
        entry.nodes = ()
        entry.blob = None

    def copy_lost(self, object_id: bytes, node_id: bytes) -> bool:
        """Forget a copy; True if it was the last one of an object of ours."""
        entry = self._shards[object_id[SHARD_BYTE]].get(object_id)
        if entry is None or entry.state != STORED:
            return False
        entry.nodes = tuple(n for n in entry.nodes if n != node_id)
        return not entry.nodes and entry.owner is None

    def keeper_of(self, object_id: bytes) -> bytes | None:
        """The node whose copy of an object of ours is the one to keep; the first that is known."""
        entry = self._shards[object_id[SHARD_BYTE]].get(object_id)
        if entry is None or entry.state != STORED or entry.owner is not None or not entry.nodes:
            return None
        return entry.nodes[0]

    def copy_added(self, object_id: bytes, node_id: bytes) -> bool:
        """Remember another copy; False if the object is gone (the copy should be freed)."""
        entry = self._shards[object_id[SHARD_BYTE]].get(object_id)
        if entry is None:
            return False
        if entry.state in (STORED, PENDING) and node_id not in entry.nodes:
            entry.nodes = (*entry.nodes, node_id)  # PENDING: it is being made again, but this one counts too
        return True

    # --- holds end

    def drop_refs(self, object_ids: Iterable[bytes]) -> None:
        """References of this process were garbage collected."""
        shards = self._shards
        for object_id in object_ids:
            try:
                entry = shards[object_id[SHARD_BYTE]][object_id]
            except KeyError:
                continue
            entry.refs = left = entry.refs - 1
            if left <= 0 and not entry.uses and not entry.borrowers:
                self._let_go(object_id, entry)

    def unuse(self, object_id: bytes) -> None:
        entry = self._shards[object_id[SHARD_BYTE]].get(object_id)
        if entry is None:
            return
        entry.uses -= 1
        if entry.refs <= 0 and entry.uses <= 0 and not entry.borrowers:
            self._let_go(object_id, entry)

    def unuse_all(self, object_ids: Iterable[bytes] | None) -> None:
        for object_id in object_ids or ():
            self.unuse(object_id)

    def _let_go(self, object_id: bytes, entry: Entry) -> None:
        """Forget an entry that nobody holds, and whatever was held only by it.

        A loop: lists of references and chains of tasks are longer than Python's stack.
        """
        shards = self._shards
        del shards[object_id[SHARD_BYTE]][object_id]
        held = self._end(object_id, entry)
        if not held:
            return
        waiting = [*held]
        while waiting:
            object_id = waiting.pop()
            shard = shards[object_id[SHARD_BYTE]]
            found = shard.get(object_id)
            if found is None:
                continue
            found.uses -= 1
            if found.refs <= 0 and found.uses <= 0 and not found.borrowers:
                del shard[object_id]
                waiting.extend(self._end(object_id, found))

    def _end(self, object_id: bytes, entry: Entry) -> Sequence[bytes]:
        """Note the effects of an entry's end; returns what it had held."""
        if entry.owner is not None:
            if entry.counted:
                self._effects.uncount.append((entry.owner, object_id, entry.counted))
        elif entry.state == STORED:
            self._effects.free.append((object_id, entry.nodes))
        elif entry.state == ACTOR:
            self._effects.release_actors.append(object_id)
        elif entry.state == ERROR and entry.task is not None and entry.blob is not None:
            self.note_unread(entry.task, entry.blob)
        held: Sequence[bytes] = entry.contained or ()
        task = entry.task
        if task is not None:
            entry.task = None
            # One of the task's returns is not wanted any more; with the last goes its lineage.
            task.live_returns -= 1
            if task.live_returns <= 0 and task.is_done and task.deps:
                held = (*held, *task.deps)
                task.deps = ()
        return held

    def note_unread(self, task: Any, blob: bytes) -> None:
        """A result of the task is let go of, and it is this error: say so, unless somebody has asked."""
        if not task.is_error_told and not task.is_cancelled:
            task.is_error_told = True
            self._effects.unread.append((task, blob))

    def task_done(self, task: Any, *, keep_lineage: bool) -> None:
        """The task's last attempt is over. Its arguments stay held while its lineage may be needed."""
        task.is_done = True
        if not keep_lineage or task.live_returns <= 0:
            task.args = b""  # whoever holds a result holds the task
            deps, task.deps = task.deps, ()
            if deps:
                self.unuse_all(deps)

    # --- borrowers

    def add_borrower(self, object_id: bytes, borrower_id: bytes, count: int) -> bool:
        """Count a process as holding an object of ours; False if the object is gone."""
        entry = self._shards[object_id[SHARD_BYTE]].get(object_id)
        if entry is None:
            return False
        if entry.borrowers is None:
            entry.borrowers = {}
        entry.borrowers[borrower_id] = entry.borrowers.get(borrower_id, 0) + count
        return True

    def remove_borrower(self, object_id: bytes, borrower_id: bytes, count: int) -> None:
        entry = self._shards[object_id[SHARD_BYTE]].get(object_id)
        if entry is None or not entry.borrowers or borrower_id not in entry.borrowers:
            return
        left = entry.borrowers[borrower_id] - count
        if left > 0:
            entry.borrowers[borrower_id] = left
            return
        del entry.borrowers[borrower_id]
        if entry.refs <= 0 and entry.uses <= 0 and not entry.borrowers:
            self._let_go(object_id, entry)

    def borrower_gone(self, borrower_id: bytes) -> None:
        """The process died, and its holds with it."""
        held = [i for i, e in self.entries.items() if e.borrowers and borrower_id in e.borrowers]
        for object_id in held:
            entry = self._shards[object_id[SHARD_BYTE]].get(object_id)
            if entry is not None and entry.borrowers is not None:
                self.remove_borrower(object_id, borrower_id, entry.borrowers[borrower_id])

    def counted(self, object_id: bytes, owner: Address, count: int = 1) -> None:
        """The foreign owner has counted us `count` more times for this object."""
        entry = self._shards[object_id[SHARD_BYTE]].get(object_id)
        if entry is None:
            self._effects.uncount.append((owner, object_id, count))
        else:
            entry.counted += count

    # --- looking

    def take_effects(self) -> Effects | None:
        """What has to be done, once; None if nothing."""
        if not self._effects:
            return None
        effects, self._effects = self._effects, Effects()
        return effects

    def foreign_owners(self) -> set[bytes]:
        return {e.owner.worker_id for e in self.entries.values() if e.owner is not None}

    def check_invariants(self) -> None:
        for object_id, entry in self.entries.items():
            held = entry.refs > 0 or entry.uses > 0 or bool(entry.borrowers)
            assert held, f"{object_id.hex()} is kept by nobody"
            assert entry.uses >= 0
            assert entry.refs >= 0
            assert entry.state != INLINE or entry.blob is not None
            assert entry.owner is None or not entry.counted or entry.counted > 0
