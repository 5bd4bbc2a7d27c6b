"""Bump allocation inside the slabs that the agent granted: where a client puts its next small object.

Lives here: positions, and which slab may be closed when. Does not: mappings, messages, locks (the caller
holds one around each call; writing happens outside it).

    offset = cursor.take(size)           # None: ask the agent for a slab of cursor.slab_size(size) bytes
    ... write, put the seal notice into the batch ...
    closed = cursor.finished(offset)     # slabs to unmap and close, *behind* that notice
"""

from msgspec import Struct

from retinue.core.objects.layout import ALIGN, HUGE, SINGLE_MIN, round_up

FIRST_SLAB_BYTES = HUGE
MAX_SLAB_BYTES = 16 << 20


class ClosedSlab(Struct, frozen=True):
    """Tell the agent (`close_slab`) once every seal of an object in it was sent."""

    offset: int
    size: int
    used: int


class _Slab(Struct):
    offset: int
    size: int
    used: int = 0
    open_writes: int = 0
    is_retired: bool = False


def is_single(size: int) -> bool:
    """Whether an object of this size gets space of its own instead of a place in a slab."""
    return size > SINGLE_MIN


class SlabCursor:
    def __init__(self) -> None:
        self._slabs: list[_Slab] = []  # the one being filled comes last
        self._next_size = FIRST_SLAB_BYTES

    def slab_size(self, size: int) -> int:
        """How large a slab to ask for, for an object of `size` bytes: twice the last one, 16 MiB at most."""
        return max(self._next_size, round_up(size, HUGE))

    def granted(self, offset: int, size: int) -> list[ClosedSlab]:
        """Fill this slab from now on. Returns the slabs that are done with."""
        self._next_size = min(2 * self._next_size, MAX_SLAB_BYTES)
        for slab in self._slabs:
            slab.is_retired = True
        self._slabs.append(_Slab(offset, size))
        return self._closed()

    def take(self, size: int) -> int | None:
        """A place for `size` bytes, on a multiple of 64; None if the current slab has no room for it."""
        if not self._slabs or (slab := self._slabs[-1]).is_retired:
            return None
        needed = round_up(max(size, 1), ALIGN)
        if slab.used + needed > slab.size:
            return None
        offset = slab.offset + slab.used
        slab.used += needed
        slab.open_writes += 1
        return offset

    def finished(self, offset: int) -> list[ClosedSlab]:
        """The object at `offset` was written and its seal is on its way (or it was given up)."""
        slab = next(s for s in self._slabs if s.offset <= offset < s.offset + s.size)
        slab.open_writes -= 1
        return self._closed() if slab.is_retired else []

    def retire(self, offset: int | None = None) -> list[ClosedSlab]:
        """Stop filling the slab at `offset` (the agent recalled it), or every slab."""
        for slab in self._slabs:
            slab.is_retired = slab.is_retired or offset is None or slab.offset == offset
        return self._closed()

    def _closed(self) -> list[ClosedSlab]:
        done = [slab for slab in self._slabs if slab.is_retired and not slab.open_writes]
        for slab in done:
            self._slabs.remove(slab)
        return [ClosedSlab(slab.offset, slab.size, slab.used) for slab in done]

    def check_invariants(self) -> None:
        assert all(0 <= slab.used <= slab.size for slab in self._slabs)
        assert all(slab.is_retired for slab in self._slabs[:-1])
        assert all(slab.open_writes or not slab.is_retired for slab in self._slabs)
