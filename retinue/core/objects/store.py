"""The bookkeeping of one node's object store: what is where, who holds it, what gives way when it is full.

Facts come in as method calls; each returns the decisions (`decisions.py`) that follow, to be carried out
in order by the node agent. Nothing here sleeps, reads a clock, or touches the arena's bytes.

- An object exists once it is sealed. Space granted and not sealed goes when its client dies.
- Pins are counted per client and place; what is pinned never moves and is never evicted or spilled away.
- A request that does not fit waits, first come, first served. Room is made by dropping idle copies that
  exist elsewhere (secondary copies, and primaries with a copy on disk), then by spilling idle primaries,
  least recently used first, fused into large files. After `fallback_after_s` the request gets a mapped
  file in the spill folder instead, a spilled object is mapped where it lies. Only a full disk refuses.
- Ids are opaque. A client's claims are checked: what contradicts the books raises `StoreProtocolError`
  and changes nothing; the agent ends that client.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from retinue.core.objects import census
from retinue.core.objects.allocator import Allocation, Allocator
from retinue.core.objects.decisions import (
    FILE_KEYS,
    ClientId,
    Decision,
    DeleteFile,
    Evicted,
    GetFailed,
    Grant,
    GrantFile,
    Located,
    LocatedInFile,
    Lost,
    MakeFile,
    ObjectId,
    Punch,
    RecallSlab,
    Refuse,
    RequestId,
    Restore,
    Spill,
    SpillPart,
    Wanted,
    Warm,
)
from retinue.core.objects.layout import HUGE, PAGE, round_up
from retinue.core.objects.records import Client, Entry, Extent, Place, Request, RequestKey, SpillFile

WARM_STEP_BYTES = 16 << 20  # 1 ms in pages the host has backed, 35 ms in those it has not
MAX_RESERVE_BYTES = 256 << 20
SPILL_RETRY_S = 1.0
MAX_TOMBSTONES = 16_384
WAITING_LOOKAHEAD = 64  # requests whose sizes are added up when deciding how much to spill


class StoreProtocolError(Exception):
    """A client said something that contradicts the books; its own fault, and nothing was changed."""


@dataclass(slots=True)
class StoreCounters:
    """Totals since the start, in objects and bytes."""

    put_objects: int = 0
    put_bytes: int = 0
    received_objects: int = 0
    received_bytes: int = 0
    evicted_objects: int = 0
    evicted_bytes: int = 0
    spilled_objects: int = 0
    spilled_bytes: int = 0
    restored_objects: int = 0
    restored_bytes: int = 0
    file_fallbacks: int = 0
    refused: int = 0


class ObjectStore:
    def __init__(
        self,
        *,
        budget_bytes: int,
        reserve_bytes: int | None = None,
        fallback_after_s: float = 1.0,
        spill_batch_bytes: int = 64 << 20,
        spill_file_bytes: int = 256 << 20,
    ) -> None:
        """Keep `reserve_bytes` of free space touched from the first grant on (default: 1/8, <= 256 MiB)."""
        self._allocator = Allocator(budget_bytes)
        budget = self._allocator.budget_bytes
        self._reserve = min(budget // 8, MAX_RESERVE_BYTES) if reserve_bytes is None else reserve_bytes
        self._fallback_after_s = fallback_after_s
        self._spill_batch = min(spill_batch_bytes, max(HUGE, budget // 4))
        self._spill_file = spill_file_bytes

        self._clients: dict[ClientId, Client] = {}
        self._objects: dict[ObjectId, Entry] = {}
        self._places: dict[int, Place] = {}  # by key
        self._extents: dict[int, Extent] = {}  # by offset
        self._files: dict[int, SpillFile] = {}
        self._absent: dict[ObjectId, dict[RequestKey, None]] = {}  # gets of objects that are not here
        self._tombstones: OrderedDict[ObjectId, None] = OrderedDict()  # freed before they were sealed
        self._queue: OrderedDict[RequestKey, Request] = OrderedDict()
        self._making: dict[RequestKey, SpillFile] = {}
        # Extents nobody uses, least recently used first: what exists elsewhere, and what must be spilled.
        self._clean: OrderedDict[int, Extent] = OrderedDict()
        self._dirty: OrderedDict[int, Extent] = OrderedDict()
        self._spills: dict[int, list[tuple[Place, SpillPart]]] = {}  # by file
        self._spilling_extents: dict[int, int] = {}  # file -> bytes of the extents being spilled to it
        self._spill_blocked_until: float | None = None
        self._restores: dict[int, Place] = {}  # offset -> the slot that is being read
        self._serial = 0
        self._is_reserve_on = False
        self._out: list[Decision] = []
        self.counters = StoreCounters()
        self.pinned_bytes = 0
        self.spilled_bytes = 0
        """Bytes of objects that lie in files now."""

    # Clients

    def client_joined(self, client_id: ClientId) -> None:
        if client_id in self._clients:
            raise StoreProtocolError(f"client {client_id!r} joined twice")
        self._clients[client_id] = Client(client_id)

    def client_died(self, client_id: ClientId) -> list[Decision]:
        """Drop its pins, gets, requests and unsealed space; what it sealed stays.

        Call it after the last byte that the client sent was read: what was sealed before its death counts.
        """
        client = self._clients.pop(client_id, None)
        if client is None:
            return self._flush()
        for request_id, object_id in client.gets.items():
            self._forget_waiter((client_id, request_id), object_id)
        for request_id in list(client.requests):
            self._forget_request(client, request_id)
        for place in list(client.pinned.values()):
            self._drop_pins(place, client, place.pins[client_id])
        for extent in list(client.extents.values()):
            self._close(client, extent, used=0)
        for key in list(client.files):
            self._delete_unsealed(client, key)
        return self._flush()

    # Space

    def request_slab(
        self, client_id: ClientId, request_id: RequestId, size: int, *, min_size: int, now: float
    ) -> list[Decision]:
        """Ask for a slab of `size`, or of at least `min_size` bytes when space is short.

        Answered by Grant; after `fallback_after_s` by GrantFile of `min_size` (for the object at hand)
        or Refuse.
        """
        if not 0 < min_size <= size:
            raise StoreProtocolError(f"slab of {size} bytes with at least {min_size} asked for")
        size, fallback = min(round_up(size, HUGE), self._allocator.budget_bytes), min_size
        return self._request(client_id, request_id, size, fallback, is_slab=True, now=now)

    def request_single(
        self, client_id: ClientId, request_id: RequestId, size: int, *, now: float
    ) -> list[Decision]:
        """Ask for room for one object. Answered by Grant, after `fallback_after_s` by GrantFile or Refuse."""
        if size <= 0:
            raise StoreProtocolError(f"{size} bytes asked for")
        return self._request(client_id, request_id, size, size, is_slab=False, now=now)

    def cancel_request(self, client_id: ClientId, request_id: RequestId) -> list[Decision]:
        """Withdraw a request for space. One that was answered already is not touched: `abort` that space."""
        self._forget_request(self._client(client_id), request_id)
        return self._flush()

    def abort(self, client_id: ClientId, key: int) -> list[Decision]:
        """Give unsealed single space, or an unsealed file, back."""
        client = self._client(client_id)
        if key in client.files:
            self._delete_unsealed(client, key)
            return self._flush()
        extent = client.extents.get(key)
        if extent is None or extent.is_slab:
            raise StoreProtocolError(f"client {client_id!r} has no unsealed space at {key}")
        self._close(client, extent, used=0)
        return self._flush()

    def close_slab(self, client_id: ClientId, offset: int, *, used: int) -> list[Decision]:
        """The client writes no more into this slab; what lies behind its first `used` bytes is free."""
        client = self._client(client_id)
        extent = client.extents.get(offset)
        if extent is None or not extent.is_slab:
            raise StoreProtocolError(f"client {client_id!r} has no open slab at {offset}")
        self._close(client, extent, used=used)
        return self._flush()

    # Objects

    def seal(
        self,
        client_id: ClientId,
        object_id: ObjectId,
        key: int,
        size: int,
        *,
        is_primary: bool = True,
        pins: int = 0,
    ) -> list[Decision]:
        """The bytes at `key` (an offset in the client's space, or a GrantFile's key) are this object now.

        `pins` are counted for the client at once, so that it may read what it wrote. A second copy of an
        object that is here already is dropped as soon as nothing pins it. An id that was freed before its
        seal was read (they come over different connections) goes the same way.
        """
        client = self._client(client_id)
        place = self._seal_file(client, object_id, key, size) if key >= FILE_KEYS else None
        place = place or self._seal_memory(client, object_id, key, size)
        if is_primary:
            self.counters.put_objects += 1
            self.counters.put_bytes += size
        else:
            self.counters.received_objects += 1
            self.counters.received_bytes += size
        if pins:
            self._pin(place, client, pins)
        self._appear(place, is_primary=is_primary)
        self._settle(place)
        return self._flush()

    def make_primary(self, object_id: ObjectId) -> list[Decision]:
        """This copy is the one to keep from now on (the former primary was lost)."""
        if (entry := self._objects.get(object_id)) is not None:
            self._set_primary(entry)
        return self._flush()

    def free(self, object_ids: Iterable[ObjectId]) -> list[Decision]:
        """No reference is left: the objects go, each as soon as nothing pins it. Final for an id."""
        for object_id in object_ids:
            entry = self._objects.pop(object_id, None)
            if entry is not None:
                self._dissolve(entry)
                continue
            self._tombstones[object_id] = None
            if len(self._tombstones) > MAX_TOMBSTONES:
                self._tombstones.popitem(last=False)
        return self._flush()

    # Reading

    def get(
        self, client_id: ClientId, request_id: RequestId, object_id: ObjectId, *, now: float
    ) -> list[Decision]:
        """Pin the object once for the client: Located or LocatedInFile, at once or when it has come.

        For an object that is not here the first get also returns Wanted.
        """
        client = self._client(client_id)
        if request_id in client.gets:
            raise StoreProtocolError(f"client {client_id!r} used get id {request_id!r} twice")
        entry = self._objects.get(object_id)
        if entry is None:
            waiters = self._absent.setdefault(object_id, {})
            if not waiters:
                self._out.append(Wanted(object_id))
            waiters[client_id, request_id] = None
            client.gets[request_id] = object_id
        elif entry.memory is not None or round_up(entry.size, PAGE) > self._allocator.budget_bytes:
            self._locate(client, request_id, entry)
        else:
            entry.waiters[client_id, request_id] = None
            client.gets[request_id] = object_id
            self._request_restore(entry, now)
        return self._flush()

    def cancel_get(self, client_id: ClientId, request_id: RequestId) -> list[Decision]:
        """Withdraw a get. One that was answered already is not touched: unpin it."""
        client = self._client(client_id)
        object_id = client.gets.pop(request_id, None)
        if object_id is not None:
            self._forget_waiter((client_id, request_id), object_id)
        return self._flush()

    def unpin(self, client_id: ClientId, key: int, count: int = 1) -> list[Decision]:
        client = self._client(client_id)
        place = client.pinned.get(key)
        if place is None or not 0 < count <= place.pins[client_id]:
            raise StoreProtocolError(f"client {client_id!r} does not hold {count} pins at {key}")
        self._drop_pins(place, client, count)
        return self._flush()

    # Answers of the threads

    def finished(
        self, job: Spill | Restore | MakeFile | DeleteFile | Warm | Punch, reason: str | None, *, now: float
    ) -> list[Decision]:
        """A decision that takes time was carried out, or failed for a reason: what the threads report."""
        match job:
            case Spill() if reason is None:
                return self.spill_done(job.file_id)
            case Spill():
                return self.spill_failed(job.file_id, now=now)
            case Restore() if reason is None:
                return self.restore_done(job.offset)
            case Restore():
                return self.restore_failed(job.offset, reason or "")
            case MakeFile() if reason is None:
                return self.file_made(job.file_id)
            case MakeFile():
                return self.file_failed(job.file_id, reason or "")
            case Warm():
                return self.warmed(job.offset, is_warm=reason is None)
            case Punch():
                return self.punched(job.offset)
            case DeleteFile():
                return self._flush()

    def spill_done(self, file_id: int) -> list[Decision]:
        """Every part of the file is on disk. Parts that were freed meanwhile are not kept."""
        file = self._files[file_id]
        file.is_pending = False
        del self._spilling_extents[file_id]
        for place, part in self._spills.pop(file_id):
            place.holds -= 1
            if (entry := place.entry) is not None:
                slot = self._new_slot(entry, file, part.file_offset)
                self._change(entry, slot=slot)
                self.counters.spilled_objects += 1
                self.counters.spilled_bytes += place.size
            self._used_less(place)
            if place.extent is not None and place.extent.offset in self._clean:
                self._clean.move_to_end(place.extent.offset, last=False)
        self._delete_if_empty(file)
        return self._flush()

    def spill_failed(self, file_id: int, *, now: float) -> list[Decision]:
        """Nothing of the file counts (the disk is full, or broken): spill no more for a second."""
        file = self._files[file_id]
        file.is_pending = False
        del self._spilling_extents[file_id]
        for place, _ in self._spills.pop(file_id):
            place.holds -= 1
            self._used_less(place)
        self._delete_if_empty(file)
        self._spill_blocked_until = now + SPILL_RETRY_S
        return self._flush()

    def restore_done(self, offset: int) -> list[Decision]:
        """The object's bytes are at `offset`."""
        place, entry = self._finish_restore(offset)
        if entry is not None:
            self._change(entry, memory=place)
            self.counters.restored_objects += 1
            self.counters.restored_bytes += place.size
            self._answer_waiters(entry)
        self._settle(place)
        return self._flush()

    def restore_failed(self, offset: int, reason: str) -> list[Decision]:
        """The object cannot be read back: it is lost, and the gets that wait for it fail."""
        place, entry = self._finish_restore(offset)
        if entry is not None:
            for client_id, request_id in entry.waiters:
                del self._clients[client_id].gets[request_id]
                self._out.append(GetFailed(client_id, request_id, entry.object_id, reason))
            entry.waiters.clear()
            del self._objects[entry.object_id]
            self._dissolve(entry)
            self._out.append(Lost(entry.object_id, reason))
        place.entry = None
        self._settle(place)
        return self._flush()

    def file_made(self, file_id: int) -> list[Decision]:
        file = self._files[file_id]
        file.is_pending = False
        request, file.request = file.request, None
        if request is None or request.client is None:
            self._delete_if_empty(file)
            return self._flush()
        client = request.client
        self._answered(client, request)
        key = self._new_key()
        file.writer = client
        client.files[key] = file
        self.counters.file_fallbacks += 1
        self._out.append(GrantFile(client.client_id, request.request_id, key, file_id, request.min_size))
        return self._flush()

    def file_failed(self, file_id: int, reason: str) -> list[Decision]:
        """The disk has no room for the file either: refuse, unless the arena has room by now."""
        file = self._files[file_id]
        file.is_pending = False
        request, file.request = file.request, None
        if request is not None and request.client is not None:
            self._making.pop((request.client.client_id, request.request_id), None)
            allocation = self._find_room(request) if request.size <= self._allocator.budget_bytes else None
            if allocation is not None:
                self._grant(request, allocation)
            else:
                self._refuse(request.client, request, reason)
        self._delete_if_empty(file)
        return self._flush()

    def warmed(self, offset: int, *, is_warm: bool = True) -> list[Decision]:
        """A range from Warm was touched; with `is_warm=False` it was not, and no more is tried."""
        self._allocator.warmed(offset, is_warm=is_warm)
        self._is_reserve_on = self._is_reserve_on and is_warm
        return self._flush()

    def punched(self, offset: int) -> list[Decision]:
        self._allocator.punched(offset)
        return self._flush()

    # Time

    def tick(self, *, now: float) -> list[Decision]:
        """Give those that waited too long what does not need the arena."""
        if self._spill_blocked_until is not None and self._spill_blocked_until <= now:
            self._spill_blocked_until = None
        self._pump()  # first, so that what fits by now is not sent to a file
        while self._queue:
            key, request = next(iter(self._queue.items()))
            if request.deadline > now:
                break
            del self._queue[key]
            self._fall_back(request)
        return self._flush()

    def next_deadline(self) -> float | None:
        """When to call `tick` next, if nothing else happens; None if nobody waits."""
        if not self._queue:
            return None
        deadline = next(iter(self._queue.values())).deadline
        return deadline if self._spill_blocked_until is None else min(deadline, self._spill_blocked_until)

    # Looking in

    @property
    def budget_bytes(self) -> int:
        return self._allocator.budget_bytes

    @property
    def arena_bytes(self) -> int:
        """The size of the address space: what the memfd must span."""
        return self._allocator.size_bytes

    @property
    def used_bytes(self) -> int:
        return self._allocator.used_bytes

    @property
    def touched_bytes(self) -> int:
        return self._allocator.touched_bytes

    @property
    def waiting_requests(self) -> int:
        return len(self._queue) + len(self._making)

    def __contains__(self, object_id: ObjectId) -> bool:
        return object_id in self._objects

    def __len__(self) -> int:
        return len(self._objects)

    def info(self, object_id: ObjectId) -> census.ObjectInfo | None:
        entry = self._objects.get(object_id)
        return None if entry is None else census.describe(entry)

    def check_invariants(self) -> None:
        """Assert that the books agree with each other. Slow: for tests."""
        self._allocator.check_invariants()
        assert {e.offset: e.size for e in self._extents.values()} == self._allocator.allocations()
        by_extent: dict[int, int] = {}
        for place in self._places.values():
            assert place.entry is not None or place.is_used, "a place that nobody names or uses"
            if place.extent is not None:
                assert self._extents[place.extent.offset] is place.extent
                by_extent[place.extent.offset] = by_extent.get(place.extent.offset, 0) + 1
        for extent in self._extents.values():
            self._check_extent(extent)
            assert len(extent.places) == by_extent.get(extent.offset, 0)
        for object_id, entry in self._objects.items():
            assert entry.object_id == object_id
            assert entry.memory or entry.slot
            for named in (entry.memory, entry.slot, entry.restoring):
                assert named is None or (named.entry is entry and self._places[named.key] is named)
            assert not (entry.waiters and entry.memory), "gets wait for an object that is in memory"
        for file in self._files.values():
            assert file.places or file.is_pending or file.writer, "a file that nobody needs"
        in_files = [place.size for place in self._places.values() if place.file is not None]
        assert self.spilled_bytes == sum(in_files)
        assert self.pinned_bytes == sum(place.size for place in self._places.values() if place.pins)
        for client in self._clients.values():
            for key, place in client.pinned.items():
                assert self._places[key] is place
                assert place.pins[client.client_id] > 0
        pins = sum(len(place.pins) for place in self._places.values())
        assert pins == sum(len(client.pinned) for client in self._clients.values())

    def _check_extent(self, extent: Extent) -> None:
        position = extent.offset
        for place in sorted(extent.places.values(), key=lambda place: place.key):
            assert place.key >= position, "two live objects overlap"
            position = place.key + place.size
        assert position <= extent.offset + extent.size
        assert extent.places or extent.writer, "space that nobody holds"
        assert extent.used_places == sum(place.is_used for place in extent.places.values())
        dirty = [p for p in extent.places.values() if p.entry and p.entry.is_dirty and p.entry.memory is p]
        assert extent.dirty_places == len(dirty)
        is_idle = extent.writer is None and not extent.used_places
        assert (extent.offset in self._dirty) == (is_idle and bool(dirty))
        assert (extent.offset in self._clean) == (is_idle and not dirty)

    def snapshot(self) -> list[census.ObjectInfo]:
        """Every object here, and every freed one that is still pinned."""
        return census.snapshot(self._objects.values(), self._places.values())

    # Space, inside

    def _client(self, client_id: ClientId) -> Client:
        try:
            return self._clients[client_id]
        except KeyError:
            raise StoreProtocolError(f"client {client_id!r} has not joined") from None

    def _new_key(self) -> int:
        self._serial += 1
        return FILE_KEYS + self._serial

    def _request(
        self,
        client_id: ClientId,
        request_id: RequestId,
        size: int,
        min_size: int,
        *,
        is_slab: bool,
        now: float,
    ) -> list[Decision]:
        client = self._client(client_id)
        if request_id in client.requests:
            raise StoreProtocolError(f"client {client_id!r} used request id {request_id!r} twice")
        client.requests.add(request_id)
        request = Request(client, request_id, size, min_size, is_slab, now + self._fallback_after_s)
        if round_up(min_size, PAGE) > self._allocator.budget_bytes:
            self._make_file(client, request)
        else:
            self._queue[client_id, request_id] = request
        return self._flush()

    def _forget_request(self, client: Client, request_id: RequestId) -> None:
        if request_id in client.requests:
            client.requests.remove(request_id)
            key = (client.client_id, request_id)
            self._queue.pop(key, None)
            if (file := self._making.pop(key, None)) is not None:
                file.request = None

    def _answered(self, client: Client, request: Request) -> None:
        client.requests.discard(request.request_id)
        self._making.pop((client.client_id, request.request_id), None)

    def _pump(self) -> None:
        """Serve waiting requests in order, as far as there is room; make room for the next."""
        while self._queue:
            key, request = next(iter(self._queue.items()))
            if request.entry is not None and not request.entry.waiters:
                del self._queue[key]  # the gets that asked for the restore are gone
                continue
            allocation = self._find_room(request)
            if allocation is None:
                self._start_spilling(request)
                return
            del self._queue[key]
            self._grant(request, allocation)

    def _find_room(self, request: Request) -> Allocation | None:
        while (allocation := self._allocator.allocate(request.size)) is None and self._clean:
            self._evict(next(iter(self._clean.values())))
        if allocation is None and request.is_slab:
            allocation = self._allocator.allocate(round_up(request.min_size, HUGE))
        return allocation

    def _grant(self, request: Request, allocation: Allocation) -> None:
        client, offset = request.client, allocation.offset
        extent = Extent(offset, allocation.size, request.is_slab, client)
        self._extents[offset] = extent
        if client is None:
            self._start_restore(request, extent)
            return
        self._is_reserve_on = True
        client.extents[offset] = extent
        self._answered(client, request)
        self._out.append(
            Grant(
                client.client_id,
                request.request_id,
                offset,
                allocation.size,
                is_slab=request.is_slab,
                is_warm=allocation.is_warm,
            )
        )

    def _close(self, client: Client, extent: Extent, *, used: int) -> None:
        """Nobody writes into the extent any more: free it, or what lies behind its live objects."""
        del client.extents[extent.offset]
        extent.writer = None
        if not extent.places:
            self._free_extent(extent)
            return
        sealed = max(place.key + place.size for place in extent.places.values()) - extent.offset
        extent.size -= self._allocator.shrink(extent.offset, max(sealed, min(used, extent.size)))
        self._classify(extent)

    def _free_extent(self, extent: Extent) -> None:
        del self._extents[extent.offset]
        self._clean.pop(extent.offset, None)
        self._dirty.pop(extent.offset, None)
        self._allocator.free(extent.offset)

    def _fall_back(self, request: Request) -> None:
        if request.entry is not None:
            self._answer_waiters(request.entry)
        elif request.client is not None:
            self._make_file(request.client, request)

    def _make_file(self, client: Client, request: Request) -> None:
        file = self._new_file(round_up(request.min_size, PAGE))
        file.request = request
        self._making[client.client_id, request.request_id] = file
        self._out.append(MakeFile(file.file_id, file.size))

    def _new_file(self, size: int) -> SpillFile:
        self._serial += 1
        file = self._files[self._serial] = SpillFile(self._serial, size)
        return file

    def _delete_unsealed(self, client: Client, key: int) -> None:
        file = client.files.pop(key)
        file.writer = None
        self._delete_if_empty(file)

    def _delete_if_empty(self, file: SpillFile) -> None:
        if not (file.places or file.is_pending or file.writer):
            del self._files[file.file_id]
            self._out.append(DeleteFile(file.file_id))
            self._spill_blocked_until = None  # there is room on disk again

    def _refuse(self, client: Client, request: Request, reason: str) -> None:
        self._answered(client, request)
        self.counters.refused += 1
        holders = census.largest_holders(self._clients.values())
        self._out.append(Refuse(client.client_id, request.request_id, request.min_size, reason, holders))

    # Objects, inside

    def _seal_memory(self, client: Client, object_id: ObjectId, offset: int, size: int) -> Place:
        extent = client.extents.get(offset)
        if extent is None:
            inside = (e for e in client.extents.values() if e.offset <= offset < e.offset + e.size)
            extent = next((e for e in inside if e.is_slab), None)
        if extent is None or size <= 0 or offset + size > extent.offset + extent.size:
            raise StoreProtocolError(f"client {client.client_id!r} sealed what it was not granted: {offset}")
        # Other overlaps inside a slab are not looked for: they hurt only the client's own objects.
        if offset in self._places:
            raise StoreProtocolError(f"client {client.client_id!r} sealed {offset} twice")
        place = Place(offset, object_id, size, None, extent=extent)
        self._places[offset] = extent.places[offset] = place
        if not extent.is_slab:
            del client.extents[offset]
            extent.writer = None
            extent.size -= self._allocator.shrink(offset, size)
        return place

    def _seal_file(self, client: Client, object_id: ObjectId, key: int, size: int) -> Place:
        file = client.files.get(key)
        if file is None or not 0 < size <= file.size:
            raise StoreProtocolError(f"client {client.client_id!r} sealed a file that it was not granted")
        del client.files[key]
        file.writer = None
        place = Place(key, object_id, size, None, file=file)
        self._places[key] = file.places[key] = place
        self.spilled_bytes += size
        return place

    def _appear(self, place: Place, *, is_primary: bool) -> None:
        """Make a sealed place the object's copy, unless there is one or the object was freed already."""
        object_id = place.object_id
        if object_id in self._tombstones:
            del self._tombstones[object_id]
            return
        entry = self._objects.get(object_id)
        if entry is not None:
            if is_primary:
                self._set_primary(entry)
            return
        entry = self._objects[object_id] = Entry(object_id, place.size, is_primary)
        place.entry = entry
        if place.extent is not None:
            self._change(entry, memory=place)
        else:
            self._change(entry, slot=place)
        entry.waiters = self._absent.pop(object_id, {})
        self._answer_waiters(entry)

    def _change(
        self,
        entry: Entry,
        *,
        memory: Place | None = None,
        slot: Place | None = None,
        is_primary: bool = False,
    ) -> None:
        """Add a place or the primary's role to an object, and keep its extent's count of dirty places."""
        self._count_dirty(entry, -1)
        entry.memory = memory or entry.memory
        entry.slot = slot or entry.slot
        entry.is_primary = is_primary or entry.is_primary
        self._count_dirty(entry, +1)

    def _count_dirty(self, entry: Entry, step: int) -> None:
        if entry.is_dirty and entry.memory is not None and entry.memory.extent is not None:
            entry.memory.extent.dirty_places += step

    def _set_primary(self, entry: Entry) -> None:
        self._change(entry, is_primary=True)
        if entry.memory is not None and entry.memory.extent is not None:
            self._classify(entry.memory.extent)

    def _dissolve(self, entry: Entry) -> None:
        """Let go of an object's places; each is released when its last use ends."""
        self._count_dirty(entry, -1)
        places = (entry.memory, entry.slot, entry.restoring)
        # Gets that wait for a restore wait for the object to be made again instead.
        if entry.waiters:
            self._absent.setdefault(entry.object_id, {}).update(entry.waiters)
            self._out.append(Wanted(entry.object_id))
            entry.waiters = {}
        for place in places:
            if place is not None:
                place.entry = None
                self._settle(place)

    def _settle(self, place: Place) -> None:
        """Release a place that nobody names or uses; else see to which idle list its extent belongs."""
        entry = place.entry
        if entry is None and not place.is_used:
            self._release(place)
        elif place.extent is not None:
            self._classify(place.extent)

    def _release(self, place: Place) -> None:
        del self._places[place.key]
        if (extent := place.extent) is not None:
            del extent.places[place.key]
            if not extent.places and extent.writer is None:
                self._free_extent(extent)
            else:
                self._classify(extent)
        elif (file := place.file) is not None:
            del file.places[place.key]
            self.spilled_bytes -= place.size
            self._delete_if_empty(file)

    def _classify(self, extent: Extent) -> None:
        """Put the extent into the idle list where it belongs, or into none."""
        target = None
        if extent.writer is None and extent.places and not extent.used_places:
            target = self._dirty if extent.dirty_places else self._clean
        for idle in (self._clean, self._dirty):
            if idle is not target:
                idle.pop(extent.offset, None)
        if target is not None:
            target.setdefault(extent.offset, extent)

    # Pins

    def _pin(self, place: Place, client: Client, count: int) -> None:
        if not place.pins:
            self.pinned_bytes += place.size
        self._used_more(place)
        place.pins[client.client_id] = place.pins.get(client.client_id, 0) + count
        client.pinned[place.key] = place

    def _drop_pins(self, place: Place, client: Client, count: int) -> None:
        left = place.pins[client.client_id] - count
        if left:
            place.pins[client.client_id] = left
            return
        del place.pins[client.client_id], client.pinned[place.key]
        if not place.pins:
            self.pinned_bytes -= place.size
        self._used_less(place)
        self._drop_idle_file_copy(place)

    def _drop_idle_file_copy(self, place: Place) -> None:
        """A secondary copy that went to a file for want of space is not worth its disk once it was read."""
        entry = place.entry
        if entry is None or place.file is None or place.is_used or entry.is_primary:
            return
        if entry.memory is None and entry.restoring is None and not entry.waiters:
            self._forget_copy(entry)

    def _used_more(self, place: Place) -> None:
        """Call before a pin or hold is added."""
        if not place.is_used and place.extent is not None:
            place.extent.used_places += 1
            self._classify(place.extent)

    def _used_less(self, place: Place) -> None:
        """Call after a pin or hold was taken away."""
        if not place.is_used:
            if place.extent is not None:
                place.extent.used_places -= 1
            self._settle(place)

    # Gets

    def _locate(self, client: Client, request_id: RequestId, entry: Entry) -> None:
        place = entry.memory or entry.slot
        assert place is not None, "an object without a place"
        self._pin(place, client, 1)
        if place.file is None:
            self._out.append(Located(client.client_id, request_id, entry.object_id, place.key, place.size))
        else:
            self._out.append(
                LocatedInFile(
                    client.client_id,
                    request_id,
                    entry.object_id,
                    place.key,
                    place.file.file_id,
                    place.file_offset,
                    place.size,
                )
            )

    def _answer_waiters(self, entry: Entry) -> None:
        waiters, entry.waiters = entry.waiters, {}
        for client_id, request_id in waiters:
            client = self._clients[client_id]
            del client.gets[request_id]
            self._locate(client, request_id, entry)

    def _forget_waiter(self, key: RequestKey, object_id: ObjectId) -> None:
        entry = self._objects.get(object_id)
        if entry is not None:
            entry.waiters.pop(key, None)
        elif (waiters := self._absent.get(object_id)) is not None:
            waiters.pop(key, None)
            if not waiters:
                del self._absent[object_id]

    # Making room

    def _evict(self, extent: Extent) -> None:
        """Drop every object of an idle extent from the arena; each has a copy elsewhere."""
        assert not extent.used_places
        assert not extent.dirty_places
        for place in list(extent.places.values()):
            entry = place.entry
            assert entry is not None
            if entry.slot is None:
                self._forget_copy(entry)
            else:
                entry.memory = place.entry = None
                self._release(place)

    def _forget_copy(self, entry: Entry) -> None:
        del self._objects[entry.object_id]
        self.counters.evicted_objects += 1
        self.counters.evicted_bytes += entry.size
        self._out.append(Evicted(entry.object_id))
        self._dissolve(entry)

    def _start_spilling(self, head: Request) -> None:
        """Start to spill as much as the waiting requests are short of, beyond what is on its way."""
        waiting = sum(r.size for r, _ in zip(self._queue.values(), range(WAITING_LOOKAHEAD), strict=False))
        room = self._allocator.budget_bytes - self._allocator.used_bytes
        # With room enough the space is in pieces: then what is freed must be as large as the request.
        shortage = max(waiting - room, head.size if head.size <= room else 0)
        shortage -= sum(self._spilling_extents.values())
        if shortage <= 0:
            return
        if self._spill_blocked_until is None:
            shortage -= self._spill_idle(max(shortage, self._spill_batch))
        if shortage > 0:
            self._recall_slabs()

    def _spill_idle(self, wanted: int) -> int:
        """Plan the spilling of idle extents, oldest first, until `wanted` bytes will be free."""
        planned = 0
        while planned < wanted and self._dirty:
            planned += self._plan_file(min(wanted - planned, self._spill_file))
        return planned

    def _plan_file(self, wanted: int) -> int:
        places: list[tuple[Place, SpillPart]] = []
        planned = position = 0
        while planned < wanted and self._dirty:
            extent = next(iter(self._dirty.values()))
            planned += extent.size
            for place in extent.places.values():
                if place.entry is None or not place.entry.is_dirty:
                    continue
                self._used_more(place)  # takes the extent out of the idle ones
                place.holds += 1
                places.append((place, SpillPart(place.object_id, place.key, place.size, position)))
                position += round_up(place.size, PAGE)
        file = self._new_file(position)
        self._spills[file.file_id] = places
        self._spilling_extents[file.file_id] = planned
        self._out.append(Spill(file.file_id, position, tuple(part for _, part in places)))
        return planned

    def _recall_slabs(self) -> None:
        for client in self._clients.values():
            for extent in client.extents.values():
                if extent.is_slab and not extent.is_recalled:
                    extent.is_recalled = True
                    self._out.append(RecallSlab(client.client_id, extent.offset))

    def _new_slot(self, entry: Entry, file: SpillFile, file_offset: int) -> Place:
        key = self._new_key()
        slot = Place(key, entry.object_id, entry.size, entry, file=file, file_offset=file_offset)
        self._places[key] = file.places[key] = slot
        self.spilled_bytes += entry.size
        return slot

    # Coming back

    def _request_restore(self, entry: Entry, now: float) -> None:
        key: RequestKey = (None, entry.object_id)
        if entry.restoring is None and key not in self._queue:
            deadline = now + self._fallback_after_s
            size = entry.size
            self._queue[key] = Request(None, entry.object_id, size, size, False, deadline, entry)

    def _start_restore(self, request: Request, extent: Extent) -> None:
        entry = request.entry
        assert entry is not None
        assert entry.slot is not None
        assert entry.slot.file is not None
        slot, file = entry.slot, entry.slot.file
        place = Place(extent.offset, entry.object_id, entry.size, entry, extent=extent)
        self._places[place.key] = extent.places[place.key] = place
        for used in (place, slot):
            self._used_more(used)
            used.holds += 1
        entry.restoring = place
        self._restores[extent.offset] = slot
        self._out.append(Restore(entry.object_id, file.file_id, slot.file_offset, extent.offset, entry.size))

    def _finish_restore(self, offset: int) -> tuple[Place, Entry | None]:
        """End the holds of a restore; the caller settles the place."""
        place = self._places[offset]
        assert place.extent is not None
        place.holds -= 1
        place.extent.used_places -= 1
        if place.entry is not None:
            place.entry.restoring = None
        slot = self._restores.pop(offset)
        slot.holds -= 1
        self._used_less(slot)
        return place, place.entry

    # After every fact

    def _flush(self) -> list[Decision]:
        if self._queue:
            self._pump()
        for start, end in self._allocator.take_excess():
            self._out.append(Punch(start, end - start))
        self._top_up_reserve()
        decisions, self._out = self._out, []
        return decisions

    def _top_up_reserve(self) -> None:
        allocator = self._allocator
        missing = self._reserve - allocator.warm_free_bytes
        if self._is_reserve_on and missing >= HUGE and not allocator.warming_bytes:
            cold = allocator.take_cold(min(missing, WARM_STEP_BYTES))
            if cold is not None:
                self._out.append(Warm(cold[0], cold[1] - cold[0]))
