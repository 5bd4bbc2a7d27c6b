"""Where copies of objects lie and who uses them: extents of the arena, files, places, pins.

The mechanical half of the store's bookkeeping: `store` decides, this keeps count. It knows at any time which
extents are idle (closed, nothing in them pinned or held), least recently used first: the *clean* ones, whose
objects exist elsewhere, and the *dirty* ones, which must be spilled before their space can be used.
"""

from collections import OrderedDict
from collections.abc import Callable

from retinue.core.objects.allocator import Allocation, Allocator
from retinue.core.objects.decisions import FILE_KEYS, Decision, DeleteFile, ObjectId
from retinue.core.objects.layout import PAGE, round_up
from retinue.core.objects.records import Client, Entry, Extent, Place, SpillFile


class StoreProtocolError(Exception):
    """A client said something that contradicts the books; its own fault, and nothing was changed."""


class Shelves:
    def __init__(self, allocator: Allocator, emit: Callable[[Decision], None]) -> None:
        self._allocator = allocator
        self._emit = emit
        self._serial = 0
        self.places: dict[int, Place] = {}  # by key
        self.extents: dict[int, Extent] = {}  # by offset
        self.files: dict[int, SpillFile] = {}
        self.clean: OrderedDict[int, Extent] = OrderedDict()
        self.dirty: OrderedDict[int, Extent] = OrderedDict()
        self.pinned_bytes = 0
        self.filed_bytes = 0

    # Extents

    def open_extent(self, allocation: Allocation, *, is_slab: bool, writer: Client | None) -> Extent:
        extent = Extent(allocation.offset, allocation.size, is_slab, writer)
        self.extents[extent.offset] = extent
        if writer is not None:
            writer.extents[extent.offset] = extent
        return extent

    def close_extent(self, client: Client, extent: Extent, *, used: int) -> None:
        """Nobody writes into the extent any more: free it, or what lies behind its live objects."""
        del client.extents[extent.offset]
        extent.writer = None
        if not extent.places:
            self._free_extent(extent)
            return
        sealed = max(place.key + place.size for place in extent.places.values()) - extent.offset
        extent.size -= self._allocator.shrink(extent.offset, max(sealed, min(used, extent.size)))
        self.classify(extent)

    def _free_extent(self, extent: Extent) -> None:
        del self.extents[extent.offset]
        self.clean.pop(extent.offset, None)
        self.dirty.pop(extent.offset, None)
        self._allocator.free(extent.offset)

    def classify(self, extent: Extent) -> None:
        """Put the extent into the idle list where it belongs, or into none."""
        target = None
        if extent.writer is None and extent.places and not extent.used_places:
            target = self.dirty if extent.dirty_places else self.clean
        for idle in (self.clean, self.dirty):
            if idle is not target:
                idle.pop(extent.offset, None)
        if target is not None:
            target.setdefault(extent.offset, extent)

    # Files

    def new_file(self, size: int) -> SpillFile:
        self._serial += 1
        file = self.files[self._serial] = SpillFile(self._serial, size)
        return file

    def grant_file(self, client: Client, file: SpillFile) -> int:
        """Let the client write the file; returns the key to seal it by."""
        key = self._new_key()
        file.writer = client
        client.files[key] = file
        return key

    def drop_unsealed_file(self, client: Client, key: int) -> None:
        file = client.files.pop(key)
        file.writer = None
        self.delete_if_empty(file)

    def delete_if_empty(self, file: SpillFile) -> None:
        if not (file.places or file.is_pending or file.writer):
            del self.files[file.file_id]
            self._emit(DeleteFile(file.file_id))

    def _new_key(self) -> int:
        self._serial += 1
        return FILE_KEYS + self._serial

    # Places

    def place_sealed(self, client: Client, object_id: ObjectId, key: int, size: int) -> Place:
        """A place, nobody's yet, for what the client wrote at `key`. Raises StoreProtocolError."""
        if key >= FILE_KEYS:
            return self._place_file(client, object_id, key, size)
        extent = _extent_at(client, key)
        if extent is None or size <= 0 or key + size > extent.offset + extent.size:
            raise StoreProtocolError(f"client {client.client_id!r} sealed what it was not granted: {key}")
        # Other overlaps inside a slab are not looked for: they hurt only the client's own objects.
        if key in self.places:
            raise StoreProtocolError(f"client {client.client_id!r} sealed {key} twice")
        place = Place(key, object_id, size, None, extent=extent)
        self.places[key] = extent.places[key] = place
        if not extent.is_slab:
            del client.extents[key]
            extent.writer = None
            extent.size -= self._allocator.shrink(key, size)
        return place

    def _place_file(self, client: Client, object_id: ObjectId, key: int, size: int) -> Place:
        file = client.files.get(key)
        if file is None or not 0 < size <= file.size:
            raise StoreProtocolError(f"client {client.client_id!r} sealed a file that it was not granted")
        del client.files[key]
        file.writer = None
        return self._add_to_file(Place(key, object_id, size, None, file=file), file)

    def place_restored(self, entry: Entry, extent: Extent) -> Place:
        """A place for an object that will be read back from its file."""
        place = Place(extent.offset, entry.object_id, entry.size, entry, extent=extent)
        self.places[place.key] = extent.places[place.key] = place
        return place

    def place_spilled(self, entry: Entry, file: SpillFile, file_offset: int) -> None:
        """The object has a copy in this file now."""
        slot = Place(self._new_key(), entry.object_id, entry.size, entry, file=file, file_offset=file_offset)
        self.change(entry, slot=self._add_to_file(slot, file))

    def _add_to_file(self, place: Place, file: SpillFile) -> Place:
        self.places[place.key] = file.places[place.key] = place
        self.filed_bytes += place.size
        return place

    def settle(self, place: Place) -> None:
        """Release a place that nobody names or uses; else see to which idle list its extent belongs."""
        if place.entry is None and not place.is_used:
            self._release(place)
        elif place.extent is not None:
            self.classify(place.extent)

    def _release(self, place: Place) -> None:
        del self.places[place.key]
        if (extent := place.extent) is not None:
            del extent.places[place.key]
            if not extent.places and extent.writer is None:
                self._free_extent(extent)
            else:
                self.classify(extent)
        elif (file := place.file) is not None:
            del file.places[place.key]
            self.filed_bytes -= place.size
            self.delete_if_empty(file)

    # Objects' places

    def change(
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
        if entry.memory is not None:
            self.settle(entry.memory)

    def _count_dirty(self, entry: Entry, step: int) -> None:
        if entry.memory is not None and entry.memory.extent is not None and entry.is_dirty:
            entry.memory.extent.dirty_places += step

    def drop_memory(self, entry: Entry) -> None:
        """Let go of an object's copy in the arena; it has one in a file."""
        place = entry.memory
        assert place is not None
        assert entry.slot is not None
        entry.memory = place.entry = None
        self.settle(place)

    def dissolve(self, entry: Entry) -> None:
        """Let go of all of an object's places; each is released when its last use ends."""
        self._count_dirty(entry, -1)
        for place in (entry.memory, entry.slot, entry.restoring):
            if place is not None:
                place.entry = None
                self.settle(place)

    # Uses: pins of clients, holds of our own reads and writes

    def pin(self, place: Place, client: Client, count: int) -> None:
        if not place.pins:
            self.pinned_bytes += place.size
        self._count_use(place)
        place.pins[client.client_id] = place.pins.get(client.client_id, 0) + count
        client.pinned[place.key] = place

    def unpin(self, place: Place, client: Client, count: int) -> None:
        left = place.pins[client.client_id] - count
        if left:
            place.pins[client.client_id] = left
            return
        del place.pins[client.client_id], client.pinned[place.key]
        if not place.pins:
            self.pinned_bytes -= place.size
        self._count_end_of_use(place)
        self.settle(place)

    def hold(self, place: Place) -> None:
        self._count_use(place)
        place.holds += 1

    def end_hold(self, place: Place) -> None:
        """The caller settles the place, when it has done with it what it held it for."""
        place.holds -= 1
        self._count_end_of_use(place)

    def _count_use(self, place: Place) -> None:
        if place.extent is not None and not place.is_used:
            place.extent.used_places += 1
            self.classify(place.extent)

    def _count_end_of_use(self, place: Place) -> None:
        if place.extent is not None and not place.is_used:
            place.extent.used_places -= 1

    def check_invariants(self) -> None:
        """Assert that the counts agree with what is counted. Slow: for tests."""
        sizes = {extent.offset: extent.size for extent in self.extents.values()}
        assert sizes == self._allocator.allocations()
        for key, place in self.places.items():
            assert place.entry is not None or place.is_used, "a place that nobody names or uses"
            holder = place.extent or place.file
            assert holder is not None
            assert place.key == key
            assert holder.places[key] is place
        for extent in self.extents.values():
            self._check_extent(extent)
        for file in self.files.values():
            assert file.places or file.is_pending or file.writer, "a file that nobody needs"
        in_extents = sum(len(extent.places) for extent in self.extents.values())
        in_files = sum(len(file.places) for file in self.files.values())
        assert in_extents + in_files == len(self.places)
        assert self.filed_bytes == sum(p.size for p in self.places.values() if p.file is not None)
        assert self.pinned_bytes == sum(p.size for p in self.places.values() if p.pins)

    def _check_extent(self, extent: Extent) -> None:
        position = extent.offset
        for place in sorted(extent.places.values(), key=lambda place: place.key):
            assert place.key >= position, "two live objects overlap"
            position = place.key + place.size
        assert position <= extent.offset + extent.size
        assert extent.size == round_up(extent.size, PAGE)
        assert extent.places or extent.writer, "space that nobody holds"
        assert extent.used_places == sum(place.is_used for place in extent.places.values())
        dirty = [p for p in extent.places.values() if p.entry and p.entry.is_dirty and p.entry.memory is p]
        assert extent.dirty_places == len(dirty)
        is_idle = extent.writer is None and not extent.used_places
        assert (extent.offset in self.dirty) == (is_idle and bool(dirty))
        assert (extent.offset in self.clean) == (is_idle and not dirty)


def _extent_at(client: Client, offset: int) -> Extent | None:
    """The client's open extent where an object may start at `offset`: any place in a slab, or a single's."""
    if (extent := client.extents.get(offset)) is not None:
        return extent
    for extent in client.extents.values():
        if extent.is_slab and extent.offset <= offset < extent.offset + extent.size:
            return extent
    return None
