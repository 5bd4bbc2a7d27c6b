"""Decide which bytes of the arena an allocation gets.

The arena's address space is twice its budget: what runs out is the budget, not the room between live
allocations (64 MiB objects at 90 % full: 25 % of allocations fail in a space of the budget's size, none
in twice that). Memory is paid for when it is touched, so free space is *warm* (has pages; a copy into it
runs at 21 GB/s) or *cold* (has none; 1.3 GB/s). Warm space is used first. Touched bytes stay within the
budget: `take_excess` says which warm free ranges to punch when a cold allocation went past it.

Lives here: free holes, their warm pieces, the budget. Does not: objects, clients, system calls.
"""

from collections.abc import Iterator

from msgspec import Struct

from retinue.core.objects.layout import HUGE, PAGE, round_down, round_up

Piece = tuple[int, int]
"""[start, end), in bytes."""

BIN_PROBES = 8


class Allocation(Struct, frozen=True):
    offset: int
    size: int
    is_warm: bool
    """Every page of it has been touched before."""


class SizeBins:
    """Extents by size: add, discard, and find one that is large enough, in about constant time.

    Two-level segregated fit: eight bins per power of two of pages, a bitmap of the bins in use.
    """

    def __init__(self) -> None:
        self._bins: dict[int, dict[int, int]] = {}  # bin -> {start: size}, newest last
        self._used = 0  # bitmap of the bins that are not empty

    def add(self, start: int, size: int) -> None:
        index = _bin_of(size)
        extents = self._bins.get(index)
        if extents is None:
            extents = self._bins[index] = {}
            self._used |= 1 << index
        extents[start] = size

    def discard(self, start: int, size: int) -> None:
        index = _bin_of(size)
        extents = self._bins[index]
        del extents[start]
        if not extents:
            del self._bins[index]
            self._used ^= 1 << index

    def find(self, size: int) -> int | None:
        """The start of an extent of at least `size` bytes; None only if there is none."""
        index = _bin_of(size)
        extents = self._bins.get(index)
        if extents is not None and (start := _first_fit(extents, size, BIN_PROBES)) is not None:
            return start
        if larger := self._used >> (index + 1):
            lowest = index + (larger & -larger).bit_length()
            return next(reversed(self._bins[lowest]))
        return None if extents is None else _first_fit(extents, size, len(extents))

    def largest(self) -> int | None:
        """The start of an extent in the highest bin; None if there is no extent."""
        if not self._used:
            return None
        return next(reversed(self._bins[self._used.bit_length() - 1]))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for extents in self._bins.values():
            yield from extents.items()


def _bin_of(size: int) -> int:
    pages = size // PAGE
    shift = max(0, pages.bit_length() - 4)
    return (shift << 3) + (pages >> shift)


def _first_fit(extents: dict[int, int], size: int, probes: int) -> int | None:
    for start in reversed(extents):
        if extents[start] >= size:
            return start
        probes -= 1
        if probes <= 0:
            break
    return None


class _Hole:
    """A maximal free extent and the warm pieces in it, in address order and apart from each other."""

    __slots__ = ("end", "start", "warm")

    def __init__(self, start: int, end: int, warm: list[Piece]) -> None:
        self.start = start
        self.end = end
        self.warm = warm


class Allocator:
    """Allocations over `[0, size_bytes)`, in pages; those of a huge page and more start on one.

    All sizes and offsets are bytes. Not thread safe: one owner.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = self.space_for(budget_bytes) // 2
        self.size_bytes = self.space_for(budget_bytes)
        self.used_bytes = 0
        self.warm_free_bytes = 0
        self.warming_bytes = 0
        self.punching_bytes = 0
        self._allocated: dict[int, int] = {}  # offset -> size
        self._warming: dict[int, int] = {}
        self._punching: dict[int, int] = {}
        self._by_start: dict[int, _Hole] = {}
        self._by_end: dict[int, _Hole] = {}
        self._warm_hole: dict[int, _Hole] = {}  # start of a warm piece -> its hole
        # "Huge" bins hold what is left of an extent from its first huge page boundary on.
        self._holes, self._huge_holes = SizeBins(), SizeBins()
        self._warm, self._huge_warm = SizeBins(), SizeBins()
        self._insert(_Hole(0, self.size_bytes, []))

    @staticmethod
    def space_for(budget_bytes: int) -> int:
        """The size of the address space for a budget, which is rounded up to whole huge pages."""
        return 2 * round_up(max(budget_bytes, HUGE), HUGE)

    @property
    def touched_bytes(self) -> int:
        """Bytes that have pages, or are about to: allocated, warm and free, being warmed."""
        return self.used_bytes + self.warm_free_bytes + self.warming_bytes

    def allocate(self, size: int) -> Allocation | None:
        """Take `size` bytes (rounded up to pages); None when the budget or every hole is too small."""
        size = round_up(max(size, 1), PAGE)
        if self.used_bytes + size > self.budget_bytes:
            return None
        place = self._place(size)
        if place is None:
            return None
        hole, offset = place
        warm = self._carve(hole, offset, offset + size)
        self._allocated[offset] = size
        self.used_bytes += size
        return Allocation(offset, size, is_warm=warm == size)

    def free(self, offset: int) -> int:
        """Give an allocation back; its pages stay warm. Returns its size."""
        size = self._allocated.pop(offset)
        self.used_bytes -= size
        self._release(offset, offset + size, is_warm=True)
        return size

    def shrink(self, offset: int, size: int) -> int:
        """Give back what lies behind the first `size` bytes of an allocation. Returns the bytes given back.

        That rest counts as warm: a slab is populated when its client receives it.
        """
        keep = round_up(max(size, 1), PAGE)
        rest = self._allocated[offset] - keep
        if rest <= 0:
            return 0
        self._allocated[offset] = keep
        self.used_bytes -= rest
        self._release(offset + keep, offset + keep + rest, is_warm=True)
        return rest

    def allocations(self) -> dict[int, int]:
        """Offset and size of every allocation. A copy."""
        return dict(self._allocated)

    def take_cold(self, max_bytes: int) -> Piece | None:
        """Reserve a cold free range of whole huge pages, to be touched ahead; `warmed` gives it back.

        None when the budget has no room for it, or no cold range is at hand.
        """
        room = round_down(min(max_bytes, self.budget_bytes - self.touched_bytes), HUGE)
        if room <= 0 or (start := self._huge_holes.largest()) is None:
            return None
        hole = self._by_start[start]
        cold = _first_cold(hole, room)
        if cold is None:
            return None
        self._carve(hole, *cold)
        self._warming[cold[0]] = cold[1] - cold[0]
        self.warming_bytes += cold[1] - cold[0]
        return cold

    def warmed(self, offset: int, *, is_warm: bool = True) -> None:
        """A range from `take_cold` is free again: touched, or (`is_warm=False`) not."""
        size = self._warming.pop(offset)
        self.warming_bytes -= size
        self._release(offset, offset + size, is_warm=is_warm)

    def take_excess(self, keep_bytes: int | None = None) -> list[Piece]:
        """Reserve warm free ranges to punch until `keep_bytes` (the budget) are touched; see `punched`."""
        limit = self.budget_bytes if keep_bytes is None else keep_bytes
        ranges: list[Piece] = []
        while self.touched_bytes > limit and self.warm_free_bytes:
            ranges.append(self._take_warm(self.touched_bytes - limit))
        return ranges

    def punched(self, offset: int, *, is_cold: bool = True) -> None:
        """A range from `take_excess` is free again: without pages, or (`is_cold=False`) still with some."""
        size = self._punching.pop(offset)
        self.punching_bytes -= size
        self._release(offset, offset + size, is_warm=not is_cold)

    def check_invariants(self) -> None:
        """Assert that every byte is in exactly one state and that every index agrees. Slow: for tests."""
        taken = [*self._allocated.items(), *self._warming.items(), *self._punching.items()]
        extents = [(start, start + size, "taken") for start, size in taken]
        extents += [(hole.start, hole.end, "free") for hole in self._by_start.values()]
        position, before = 0, ""
        for start, end, kind in sorted(extents):
            assert start == position, f"bytes {position} to {start} are lost or held twice"
            assert end > start
            assert start % PAGE == 0
            assert end % PAGE == 0
            assert not (kind == before == "free"), f"free extents at {start} were not joined"
            position, before = end, kind
        assert position == self.size_bytes
        assert self.used_bytes == sum(self._allocated.values()) <= self.budget_bytes
        assert self.warming_bytes == sum(self._warming.values())
        assert self.punching_bytes == sum(self._punching.values())
        self._check_indexes()

    def _check_indexes(self) -> None:
        assert {hole.end for hole in self._by_start.values()} == set(self._by_end)
        holes = {(hole.start, hole.end - hole.start) for hole in self._by_start.values()}
        warm = {(s, e - s) for hole in self._by_start.values() for s, e in hole.warm}
        assert set(self._holes) == holes
        assert set(self._warm) == warm
        assert set(self._huge_holes) == {(s, n) for s, size in holes if (n := _huge_room(s, size))}
        assert set(self._huge_warm) == {(s, n) for s, size in warm if (n := _huge_room(s, size))}
        assert self.warm_free_bytes == sum(size for _, size in warm)
        assert set(self._warm_hole) == {start for start, _ in warm}
        for hole in self._by_start.values():
            edges = [hole.start - 1, *(edge for piece in hole.warm for edge in piece), hole.end + 1]
            assert edges == sorted(set(edges)), "warm pieces overlap or touch each other"

    def _place(self, size: int) -> tuple[_Hole, int] | None:
        is_huge = size >= HUGE
        step = HUGE if is_huge else PAGE
        piece = (self._huge_warm if is_huge else self._warm).find(size)
        if piece is not None:
            return self._warm_hole[piece], round_up(piece, step)
        start = (self._huge_holes if is_huge else self._holes).find(size)
        if start is None:
            return None
        hole = self._by_start[start]
        # A hole that is warm at its end only is filled from there.
        if hole.warm and hole.warm[-1][1] == hole.end and hole.warm[0][0] != hole.start:
            return hole, round_down(hole.end - size, step)
        return hole, round_up(start, step)

    def _take_warm(self, excess: int) -> Piece:
        # Whole huge pages from the end of a piece: punching those is 70 times as fast as small pages.
        wanted = round_up(excess, HUGE)
        start = self._huge_warm.find(wanted)
        if start is None:
            start = self._huge_warm.largest()
        if start is not None:
            end = round_down(self._warm_end(start), HUGE)
            piece = (max(round_up(start, HUGE), end - wanted), end)
        else:
            start = self._warm.largest()
            assert start is not None
            end = self._warm_end(start)
            piece = (max(start, end - round_up(excess, PAGE)), end)
        self._carve(self._warm_hole[start], *piece)
        self._punching[piece[0]] = piece[1] - piece[0]
        self.punching_bytes += piece[1] - piece[0]
        return piece

    def _warm_end(self, start: int) -> int:
        return next(end for s, end in self._warm_hole[start].warm if s == start)

    def _carve(self, hole: _Hole, start: int, end: int) -> int:
        """Take [start, end) out of a hole; returns how many warm bytes that were."""
        self._remove(hole)
        before = sum(e - s for s, e in hole.warm)
        after = 0
        for left, right in ((hole.start, start), (end, hole.end)):
            if left < right:
                rest = _Hole(left, right, _clip(hole.warm, left, right))
                after += sum(e - s for s, e in rest.warm)
                self._insert(rest)
        return before - after

    def _release(self, start: int, end: int, *, is_warm: bool) -> None:
        """Make [start, end) free and join it with the holes beside it."""
        warm = [(start, end)] if is_warm else []
        if (left := self._by_end.get(start)) is not None:
            self._remove(left)
            start, warm = left.start, _join(left.warm, warm)
        if (right := self._by_start.get(end)) is not None:
            self._remove(right)
            end, warm = right.end, _join(warm, right.warm)
        self._insert(_Hole(start, end, warm))

    def _insert(self, hole: _Hole) -> None:
        self._by_start[hole.start] = self._by_end[hole.end] = hole
        self._holes.add(hole.start, hole.end - hole.start)
        if room := _huge_room(hole.start, hole.end - hole.start):
            self._huge_holes.add(hole.start, room)
        for start, end in hole.warm:
            self._warm_hole[start] = hole
            self.warm_free_bytes += end - start
            self._warm.add(start, end - start)
            if room := _huge_room(start, end - start):
                self._huge_warm.add(start, room)

    def _remove(self, hole: _Hole) -> None:
        del self._by_start[hole.start], self._by_end[hole.end]
        self._holes.discard(hole.start, hole.end - hole.start)
        if room := _huge_room(hole.start, hole.end - hole.start):
            self._huge_holes.discard(hole.start, room)
        for start, end in hole.warm:
            del self._warm_hole[start]
            self.warm_free_bytes -= end - start
            self._warm.discard(start, end - start)
            if room := _huge_room(start, end - start):
                self._huge_warm.discard(start, room)


def _huge_room(start: int, size: int) -> int:
    """What an extent offers from its first huge page boundary on; 0 if that is less than a huge page."""
    room = start + size - round_up(start, HUGE)
    return room if room >= HUGE else 0


def _clip(pieces: list[Piece], start: int, end: int) -> list[Piece]:
    return [(max(s, start), min(e, end)) for s, e in pieces if s < end and e > start]


def _join(left: list[Piece], right: list[Piece]) -> list[Piece]:
    if left and right and left[-1][1] == right[0][0]:
        return [*left[:-1], (left[-1][0], right[0][1]), *right[1:]]
    return left + right


def _first_cold(hole: _Hole, max_bytes: int) -> Piece | None:
    """The first cold range of whole huge pages in a hole, at most `max_bytes` long."""
    position = hole.start
    for start, end in [*hole.warm, (hole.end, hole.end)]:
        first, last = round_up(position, HUGE), round_down(start, HUGE)
        if first < last:
            return first, min(last, first + max_bytes)
        position = end
    return None
