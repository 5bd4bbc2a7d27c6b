"""What the store tells the node agent to do: small values, each carried out once, in order.

Offsets and sizes are bytes. A *key* names a place where an object can be pinned: the object's offset in
the arena, or, for one in a mapped file, a number at or above `FILE_KEYS`. It is what clients unpin by.
"""

from collections.abc import Hashable

from msgspec import Struct

ObjectId = bytes
ClientId = Hashable
RequestId = Hashable
"""Chosen by the client; unique among its open requests."""

FILE_KEYS = 1 << 62


# To clients


class Grant(Struct, frozen=True):
    """Space in the arena: a slab, or room for one object. The client maps it writable."""

    client_id: ClientId
    request_id: RequestId
    offset: int
    size: int
    is_slab: bool
    is_warm: bool
    """Touched before: POPULATE_READ it; else touch and collapse it first."""


class GrantFile(Struct, frozen=True):
    """A file in the spill folder instead of arena space: the client maps it, writes, and seals by `key`."""

    client_id: ClientId
    request_id: RequestId
    key: int
    file_id: int
    size: int


class Holder(Struct, frozen=True):
    """How much of the store one client keeps from being evicted or spilled."""

    client_id: ClientId
    pinned_bytes: int
    unsealed_bytes: int


class Refuse(Struct, frozen=True):
    """Arena and disk are full: ObjectStoreFullError for the client, with the largest holders."""

    client_id: ClientId
    request_id: RequestId
    size: int
    reason: str
    holders: tuple[Holder, ...]


class Located(Struct, frozen=True):
    """The object is in the arena and pinned once for the client."""

    client_id: ClientId
    request_id: RequestId
    object_id: ObjectId
    offset: int
    size: int


class LocatedInFile(Struct, frozen=True):
    """The object is in a spill file and pinned there once for the client, which maps it read-only."""

    client_id: ClientId
    request_id: RequestId
    object_id: ObjectId
    key: int
    file_id: int
    file_offset: int
    size: int


class GetFailed(Struct, frozen=True):
    """The object's only copy could not be read back; it is gone from this node (`Lost` says so too)."""

    client_id: ClientId
    request_id: RequestId
    object_id: ObjectId
    reason: str


class RecallSlab(Struct, frozen=True):
    """The store is short: the client should close this slab when it has no write in progress in it."""

    client_id: ClientId
    offset: int


# To the agent itself


class Wanted(Struct, frozen=True):
    """Somebody waits for an object that is not here: pull it, or wait for its seal."""

    object_id: ObjectId


class Evicted(Struct, frozen=True):
    """A secondary copy was dropped: tell the owner that this node has it no more."""

    object_id: ObjectId


class Lost(Struct, frozen=True):
    """The only copy here could not be read back from disk: tell the owner."""

    object_id: ObjectId
    reason: str


# To the spill thread


class SpillPart(Struct, frozen=True):
    object_id: ObjectId
    offset: int
    size: int
    file_offset: int
    """A multiple of PAGE."""


class Spill(Struct, frozen=True):
    """Write these objects into a new file; answer `spill_done` or `spill_failed`."""

    file_id: int
    size: int
    parts: tuple[SpillPart, ...]


class Restore(Struct, frozen=True):
    """Read an object from its file to `offset`; answer `restore_done` or `restore_failed` with `offset`."""

    object_id: ObjectId
    file_id: int
    file_offset: int
    offset: int
    size: int


class MakeFile(Struct, frozen=True):
    """Make an empty file with `size` bytes reserved on disk; answer `file_made` or `file_failed`."""

    file_id: int
    size: int


class DeleteFile(Struct, frozen=True):
    """Nothing lives in the file any more."""

    file_id: int


# To the keeper thread


class Warm(Struct, frozen=True):
    """Touch a free range ahead of use; answer `warmed`."""

    offset: int
    size: int


class Punch(Struct, frozen=True):
    """Give a free range's pages back to the system; answer `punched`."""

    offset: int
    size: int


Decision = (
    Grant
    | GrantFile
    | Refuse
    | Located
    | LocatedInFile
    | GetFailed
    | RecallSlab
    | Wanted
    | Evicted
    | Lost
    | Spill
    | Restore
    | MakeFile
    | DeleteFile
    | Warm
    | Punch
)
