"""How much of a call may be on its way, how items come out of their pieces, what another clock says.

Pure bookkeeping for one direction of one call: no socket, no task, no clock of its own. The sender may have
`WINDOW_ITEMS` items and `WINDOW_BYTES` bytes on their way that the receiver has not taken yet. An item
longer than a frame goes in pieces. Pieces of an unfinished item are credited as they come (else an item
above the window would wait for itself), whole items when the receiver takes them.
"""

from __future__ import annotations

from collections import deque

from retinue.core.doors.errors import DoorBodyTooLargeError
from retinue.core.wire.framing import MAX_FRAME_BYTES, ProtocolError

WINDOW_ITEMS = 64
WINDOW_BYTES = 4 << 20
# Of an item, in one frame. 1 GiB in items of 256 KiB came at 1,500 MB/s; pieces twice as long, that the
# kernel hands out in two reads, or half as long: 1,300 to 1,400.
PIECE_BYTES = MAX_FRAME_BYTES // 2
MAX_ITEM_BYTES = 1 << 30  # of a body, a reply or an item, which its receiver puts together in memory
SAMPLES = 8


class SendWindow:
    """What may be sent. The byte window may be passed by the one piece that finds a byte of room left."""

    __slots__ = ("bytes_left", "items_left")

    def __init__(self, items: int) -> None:
        self.items_left = items
        self.bytes_left = WINDOW_BYTES

    def has_room(self) -> bool:
        return self.items_left > 0 and self.bytes_left > 0

    def granted(self, items: int, size: int) -> None:
        self.items_left += items
        self.bytes_left += size


class Inbox:
    """Items that have come, `ready` to be taken, and the credit that is due for those that were."""

    __slots__ = (
        "_due_bytes",
        "_due_items",
        "_limit_bytes",
        "_part_bytes",
        "_parts",
        "_window_items",
        "ready",
    )

    def __init__(self, *, window_items: int = WINDOW_ITEMS, max_item_bytes: int = MAX_ITEM_BYTES) -> None:
        self.ready: deque[bytes] = deque()
        self._parts: list[bytes] = []
        self._part_bytes = 0
        self._due_items = 0
        self._due_bytes = 0
        self._window_items = window_items
        self._limit_bytes = max_item_bytes

    def part(self, data: bytes) -> None:
        """A piece of an item, not its last. Raises DoorBodyTooLargeError."""
        self._part_bytes += len(data)
        if self._part_bytes > self._limit_bytes:
            self._parts.clear()
            text = f"a body, reply or item is longer than {self._limit_bytes} bytes"
            raise DoorBodyTooLargeError(text)
        self._parts.append(data)
        self._due_bytes += len(data)

    def last(self, data: bytes) -> bytes:
        """The item that ends with this piece; it is not put among the others."""
        if not self._parts:
            return data
        parts, self._parts, self._part_bytes = self._parts, [], 0
        return b"".join((*parts, data))

    def item(self, data: bytes) -> None:
        """An item, or the last piece of one."""
        if self._parts:
            # Its pieces are credited already: whoever takes the item credits the rest of it.
            self._due_bytes -= self._part_bytes
            data = self.last(data)
        self.ready.append(data)
        self._check()

    def items(self, sizes: list[int], joined: bytes) -> None:
        """Several short ones in one frame."""
        position = 0
        for size in sizes:
            self.ready.append(joined[position : position + size])
            position += size
        self._check()

    def _check(self) -> None:
        if len(self.ready) > self._window_items:
            raise ProtocolError(f"{len(self.ready)} items came where {self._window_items} were allowed")

    def take(self) -> bytes:
        item = self.ready.popleft()
        self._due_items += 1
        self._due_bytes += len(item)
        return item

    def take_all(self) -> list[bytes]:
        items = list(self.ready)
        self.ready.clear()
        self._due_items += len(items)
        self._due_bytes += sum(map(len, items))
        return items

    def credit(self) -> tuple[int, int] | None:
        """Items and bytes to give back, once they are half of a window."""
        if self._due_items * 2 < self._window_items and self._due_bytes * 2 < WINDOW_BYTES:
            return None
        due = (self._due_items, self._due_bytes)
        self._due_items = self._due_bytes = 0
        return due


class ClockOffset:
    """What to add to a reading of our monotonic clock for the other machine's.

    From round trips, like NTP: the answer was given half-way, wrong by half of the trip at most. Of the last
    samples the quickest counts; older ones go, as clocks drift.
    """

    __slots__ = ("_samples", "offset_s")

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES)  # (trip, offset)
        self.offset_s = 0.0

    def sample(self, *, sent: float, received: float, theirs: float) -> None:
        self._samples.append((received - sent, theirs - (sent + received) / 2))
        self.offset_s = min(self._samples)[1]
