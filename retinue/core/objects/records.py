"""What the store keeps about clients, space, files and objects. Plain records: `store` changes them.

    Client --writes--> Extent (slab or single) --holds--> Place --a copy of--> Entry (the object)
                       SpillFile ---------------holds--> Place

An object has at most one place in the arena (`memory`) and one in a file (`slot`). A place without an
entry is left over: its object was freed, or had been sealed before; it goes when its last use ends.
"""

from msgspec import Struct, field

from retinue.core.objects.decisions import ClientId, ObjectId, RequestId

RequestKey = tuple[ClientId, RequestId]


class Client(Struct, eq=False):
    client_id: ClientId
    pinned: dict[int, "Place"] = field(default_factory=dict)  # by key
    extents: dict[int, "Extent"] = field(default_factory=dict)  # being written, by offset
    files: dict[int, "SpillFile"] = field(default_factory=dict)  # being written, by key
    requests: set[RequestId] = field(default_factory=set)  # for space, not answered yet
    gets: dict[RequestId, ObjectId] = field(default_factory=dict)  # not answered yet


class Extent(Struct, eq=False):
    """One allocation: a slab, or room for one object."""

    offset: int
    size: int
    is_slab: bool
    writer: Client | None
    places: dict[int, "Place"] = field(default_factory=dict)  # by key
    used_places: int = 0  # places that are pinned or held
    dirty_places: int = 0  # places that hold the only copy of a primary
    is_recalled: bool = False


class SpillFile(Struct, eq=False):
    file_id: int
    size: int
    places: dict[int, "Place"] = field(default_factory=dict)  # by key
    is_pending: bool = True  # being written or made by the spill thread
    writer: Client | None = None
    request: "Request | None" = None  # waits for the file to be made


class Entry(Struct, eq=False):
    """One object that exists here."""

    object_id: ObjectId
    size: int
    is_primary: bool
    memory: "Place | None" = None
    slot: "Place | None" = None
    restoring: "Place | None" = None  # arena space that its bytes are being read into
    waiters: dict[RequestKey, None] = field(default_factory=dict)  # gets that wait for the restore

    @property
    def is_dirty(self) -> bool:
        return self.is_primary and self.slot is None


class Place(Struct, eq=False):
    """Where one copy of an object lies; pins hang on it."""

    key: int
    object_id: ObjectId
    size: int
    entry: Entry | None
    extent: Extent | None = None
    file: SpillFile | None = None
    file_offset: int = 0
    pins: dict[ClientId, int] = field(default_factory=dict)
    holds: int = 0  # reads and writes of ours in progress

    @property
    def is_used(self) -> bool:
        return bool(self.pins) or self.holds > 0


class Request(Struct, eq=False):
    """Space that somebody waits for: a slab, room for one object, or (with an entry) for a restore."""

    client: Client | None
    request_id: RequestId
    size: int
    min_size: int
    is_slab: bool
    deadline: float
    entry: Entry | None = None
