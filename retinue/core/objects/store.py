"""Decide what happens in one node's object store: who gets space, what gives way when it is full, who waits.

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

from msgspec import Struct

from retinue.core.objects import census
from retinue.core.objects.allocator import Allocation, Allocator
from retinue.core.objects.decisions import (
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
from retinue.core.objects.shelves import Shelves, StoreProtocolError

WARM_STEP_BYTES = 16 << 20  # 1 ms in pages the host has backed, 35 ms in those it has not
MAX_RESERVE_BYTES = 256 << 20
SPILL_RETRY_S = 1.0
MAX_TOMBSTONES = 16_384
WAITING_LOOKAHEAD = 64  # requests whose sizes are added up when deciding how much to spill


class StoreCounters(Struct):
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


__all__ = ["ObjectStore", "StoreCounters", "StoreProtocolError"]


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

        self._out: list[Decision] = []
        self._shelves = Shelves(self._allocator, self._out_of_shelves)
        self._clients: dict[ClientId, Client] = {}
        self._objects: dict[ObjectId, Entry] = {}
        self._absent: dict[ObjectId, dict[RequestKey, None]] = {}  # gets of objects that are not here
        self._tombstones: OrderedDict[ObjectId, None] = OrderedDict()  # freed before they were sealed
        self._queue: OrderedDict[RequestKey, Request] = OrderedDict()
        self._making: dict[RequestKey, SpillFile] = {}
        self._spills: dict[int, list[tuple[Place, SpillPart]]] = {}  # by file
        self._spilling_extents: dict[int, int] = {}  # file -> bytes of the extents being spilled to it
        self._spill_blocked_until: float | None = None
        self._restores: dict[int, Place] = {}  # offset -> the slot that is being read
        self._is_reserve_on = False
        self.counters = StoreCounters()

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
            self._shelves.unpin(place, client, place.pins[client_id])
            self._drop_idle_file_copy(place)
        for extent in list(client.extents.values()):
            self._shelves.close_extent(client, extent, used=0)
        for key in list(client.files):
            self._shelves.drop_unsealed_file(client, key)
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
            self._shelves.drop_unsealed_file(client, key)
            return self._flush()
        extent = client.extents.get(key)
        if extent is None or extent.is_slab:
            raise StoreProtocolError(f"client {client_id!r} has no unsealed space at {key}")
        self._shelves.close_extent(client, extent, used=0)
        return self._flush()

    def close_slab(self, client_id: ClientId, offset: int, *, used: int) -> list[Decision]:
        """The client writes no more into this slab; what lies behind its first `used` bytes is free."""
        client = self._client(client_id)
        extent = client.extents.get(offset)
        if extent is None or not extent.is_slab:
            raise StoreProtocolError(f"client {client_id!r} has no open slab at {offset}")
        self._shelves.close_extent(client, extent, used=used)
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
        place = self._shelves.place_sealed(client, object_id, key, size)
        if is_primary:
            self.counters.put_objects += 1
            self.counters.put_bytes += size
        else:
            self.counters.received_objects += 1
            self.counters.received_bytes += size
        if pins:
            self._shelves.pin(place, client, pins)
        self._appear(place, is_primary=is_primary)
        self._shelves.settle(place)
        return self._flush()

    def make_primary(self, object_id: ObjectId) -> list[Decision]:
        """This copy is the one to keep from now on (the former primary was lost)."""
        if (entry := self._objects.get(object_id)) is not None:
            self._shelves.change(entry, is_primary=True)
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
        self._shelves.unpin(place, client, count)
        self._drop_idle_file_copy(place)
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
                return self.punched(job.offset, is_cold=reason is None)
            case DeleteFile():
                return self._flush()

    def spill_done(self, file_id: int) -> list[Decision]:
        """Every part of the file is on disk. Parts that were freed meanwhile are not kept."""
        file = self._shelves.files[file_id]
        file.is_pending = False
        del self._spilling_extents[file_id]
        for place, part in self._spills.pop(file_id):
            self._shelves.end_hold(place)
            if (entry := place.entry) is not None:
                self._shelves.place_spilled(entry, file, part.file_offset)
                self.counters.spilled_objects += 1
                self.counters.spilled_bytes += place.size
            self._shelves.settle(place)
            if place.extent is not None and place.extent.offset in self._shelves.clean:
                self._shelves.clean.move_to_end(place.extent.offset, last=False)
        self._shelves.delete_if_empty(file)
        return self._flush()

    def spill_failed(self, file_id: int, *, now: float) -> list[Decision]:
        """Nothing of the file counts (the disk is full, or broken): spill no more for a second."""
        file = self._shelves.files[file_id]
        file.is_pending = False
        del self._spilling_extents[file_id]
        for place, _ in self._spills.pop(file_id):
            self._shelves.end_hold(place)
            self._shelves.settle(place)
        self._shelves.delete_if_empty(file)
        self._spill_blocked_until = now + SPILL_RETRY_S
        return self._flush()

    def restore_done(self, offset: int) -> list[Decision]:
        """The object's bytes are at `offset`."""
        place, entry = self._finish_restore(offset)
        if entry is not None:
            self._shelves.change(entry, memory=place)
            self.counters.restored_objects += 1
            self.counters.restored_bytes += place.size
            self._answer_waiters(entry)
        self._shelves.settle(place)
        return self._flush()

    def restore_failed(self, offset: int, reason: str) -> list[Decision]:
        """The object cannot be read back: it is lost, and the gets that wait for it fail."""
        place, entry = self._finish_restore(offset)
        if entry is not None:
            self._out.append(Lost(entry.object_id, reason))  # first: those who wait know its owner
            for client_id, request_id in entry.waiters:
                del self._clients[client_id].gets[request_id]
                self._out.append(GetFailed(client_id, request_id, entry.object_id, reason))
            entry.waiters.clear()
            del self._objects[entry.object_id]
            self._dissolve(entry)
        place.entry = None
        self._shelves.settle(place)
        return self._flush()

    def file_made(self, file_id: int) -> list[Decision]:
        file = self._shelves.files[file_id]
        file.is_pending = False
        request, file.request = file.request, None
        if request is None or request.client is None:
            self._shelves.delete_if_empty(file)
            return self._flush()
        client = request.client
        self._answered(client, request)
        key = self._shelves.grant_file(client, file)
        self.counters.file_fallbacks += 1
        self._out.append(GrantFile(client.client_id, request.request_id, key, file_id, request.min_size))
        return self._flush()

    def file_failed(self, file_id: int, reason: str) -> list[Decision]:
        """The disk has no room for the file either: refuse, unless the arena has room by now."""
        file = self._shelves.files[file_id]
        file.is_pending = False
        request, file.request = file.request, None
        if request is not None and request.client is not None:
            self._making.pop((request.client.client_id, request.request_id), None)
            allocation = self._find_room(request) if request.size <= self._allocator.budget_bytes else None
            if allocation is not None:
                self._grant(request, allocation)
            else:
                self._refuse(request.client, request, reason)
        self._shelves.delete_if_empty(file)
        return self._flush()

    def warmed(self, offset: int, *, is_warm: bool = True) -> list[Decision]:
        """A range from Warm was touched; with `is_warm=False` it was not, and no more is tried."""
        self._allocator.warmed(offset, is_warm=is_warm)
        self._is_reserve_on = self._is_reserve_on and is_warm
        return self._flush()

    def punched(self, offset: int, *, is_cold: bool = True) -> list[Decision]:
        """A range from Punch has no pages any more; with `is_cold=False` it has, and is tried again later."""
        self._allocator.punched(offset, is_cold=is_cold)
        return self._flush(may_punch=is_cold)

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
    def pinned_bytes(self) -> int:
        return self._shelves.pinned_bytes

    @property
    def spilled_bytes(self) -> int:
        """Bytes of objects that have a copy in a file now."""
        return self._shelves.filed_bytes

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
        self._shelves.check_invariants()
        places = self._shelves.places
        for object_id, entry in self._objects.items():
            assert entry.object_id == object_id
            assert entry.memory or entry.slot
            for named in (entry.memory, entry.slot, entry.restoring):
                assert named is None or (named.entry is entry and places[named.key] is named)
            assert not (entry.waiters and entry.memory), "gets wait for an object that is in memory"
        for client in self._clients.values():
            for key, place in client.pinned.items():
                assert places[key] is place
                assert place.pins[client.client_id] > 0
        pins = sum(len(place.pins) for place in places.values())
        assert pins == sum(len(client.pinned) for client in self._clients.values())

    def snapshot(self) -> list[census.ObjectInfo]:
        """Every object here, and every freed one that is still pinned."""
        return census.snapshot(self._objects.values(), self._shelves.places.values())

    # Space, inside

    def _client(self, client_id: ClientId) -> Client:
        try:
            return self._clients[client_id]
        except KeyError:
            raise StoreProtocolError(f"client {client_id!r} has not joined") from None

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
        while (allocation := self._allocator.allocate(request.size)) is None and self._shelves.clean:
            self._evict(next(iter(self._shelves.clean.values())))
        if allocation is None and request.is_slab:
            allocation = self._allocator.allocate(round_up(request.min_size, HUGE))
        return allocation

    def _grant(self, request: Request, allocation: Allocation) -> None:
        client = request.client
        extent = self._shelves.open_extent(allocation, is_slab=request.is_slab, writer=client)
        if client is None:
            self._start_restore(request, extent)
            return
        self._is_reserve_on = True
        self._answered(client, request)
        self._out.append(
            Grant(
                client.client_id,
                request.request_id,
                allocation.offset,
                allocation.size,
                is_slab=request.is_slab,
                is_warm=allocation.is_warm,
            )
        )

    def _fall_back(self, request: Request) -> None:
        if request.entry is not None:
            self._answer_waiters(request.entry)
        elif request.client is not None:
            self._make_file(request.client, request)

    def _make_file(self, client: Client, request: Request) -> None:
        file = self._shelves.new_file(round_up(request.min_size, PAGE))
        file.request = request
        self._making[client.client_id, request.request_id] = file
        self._out.append(MakeFile(file.file_id, file.size))

    def _refuse(self, client: Client, request: Request, reason: str) -> None:
        self._answered(client, request)
        self.counters.refused += 1
        holders = census.largest_holders(self._clients.values())
        self._out.append(Refuse(client.client_id, request.request_id, request.min_size, reason, holders))

    # Objects, inside

    def _appear(self, place: Place, *, is_primary: bool) -> None:
        """Make a sealed place the object's copy, unless there is one or the object was freed already."""
        object_id = place.object_id
        if object_id in self._tombstones:
            del self._tombstones[object_id]
            return
        entry = self._objects.get(object_id)
        if entry is not None:
            if is_primary:
                self._shelves.change(entry, is_primary=True)
            return
        entry = self._objects[object_id] = Entry(object_id, place.size, is_primary)
        place.entry = entry
        if place.extent is not None:
            self._shelves.change(entry, memory=place)
        else:
            self._shelves.change(entry, slot=place)
        entry.waiters = self._absent.pop(object_id, {})
        self._answer_waiters(entry)

    def _dissolve(self, entry: Entry) -> None:
        """Let go of an object that is not in the books any more."""
        # Gets that wait for a restore wait for the object to be made again instead.
        if entry.waiters:
            self._absent.setdefault(entry.object_id, {}).update(entry.waiters)
            self._out.append(Wanted(entry.object_id))
            entry.waiters = {}
        self._shelves.dissolve(entry)

    # Pins

    def _drop_idle_file_copy(self, place: Place) -> None:
        """A secondary copy that went to a file for want of space is not worth its disk once it was read."""
        entry = place.entry
        if entry is None or place.file is None or place.is_used or entry.is_primary:
            return
        if entry.memory is None and entry.restoring is None and not entry.waiters:
            self._forget_copy(entry)

    # Gets

    def _locate(self, client: Client, request_id: RequestId, entry: Entry) -> None:
        place = entry.memory or entry.slot
        assert place is not None, "an object without a place"
        self._shelves.pin(place, client, 1)
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
                self._shelves.drop_memory(entry)

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
        while planned < wanted and self._shelves.dirty:
            planned += self._plan_file(min(wanted - planned, self._spill_file))
        return planned

    def _plan_file(self, wanted: int) -> int:
        places: list[tuple[Place, SpillPart]] = []
        planned = position = 0
        while planned < wanted and self._shelves.dirty:
            extent = next(iter(self._shelves.dirty.values()))
            planned += extent.size
            for place in extent.places.values():
                if place.entry is None or not place.entry.is_dirty:
                    continue
                self._shelves.hold(place)  # takes the extent out of the idle ones
                places.append((place, SpillPart(place.object_id, place.key, place.size, position)))
                position += round_up(place.size, PAGE)
        file = self._shelves.new_file(position)
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

    # Coming back

    def _request_restore(self, entry: Entry, now: float) -> None:
        key: RequestKey = (None, entry)  # not its id: the object may go, and come again, while this waits
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
        place = self._shelves.place_restored(entry, extent)
        self._shelves.hold(place)
        self._shelves.hold(slot)
        entry.restoring = place
        self._restores[extent.offset] = slot
        self._out.append(Restore(entry.object_id, file.file_id, slot.file_offset, extent.offset, entry.size))

    def _finish_restore(self, offset: int) -> tuple[Place, Entry | None]:
        """End the holds of a restore; the caller settles the place."""
        place = self._shelves.places[offset]
        self._shelves.end_hold(place)
        if place.entry is not None:
            place.entry.restoring = None
        slot = self._restores.pop(offset)
        self._shelves.end_hold(slot)
        self._shelves.settle(slot)
        return place, place.entry

    # After every fact

    def _out_of_shelves(self, decision: Decision) -> None:
        self._out.append(decision)
        if isinstance(decision, DeleteFile):
            self._spill_blocked_until = None  # there is room on disk again

    def _flush(self, *, may_punch: bool = True) -> list[Decision]:
        if self._queue:
            self._pump()
        if may_punch:
            for start, end in self._allocator.take_excess():
                self._out.append(Punch(start, end - start))
        self._top_up_reserve()
        decisions = self._out
        self._out = []
        return decisions

    def _top_up_reserve(self) -> None:
        allocator = self._allocator
        missing = self._reserve - allocator.warm_free_bytes
        if self._is_reserve_on and missing >= HUGE and not allocator.warming_bytes:
            cold = allocator.take_cold(min(missing, WARM_STEP_BYTES))
            if cold is not None:
                self._out.append(Warm(cold[0], cold[1] - cold[0]))
