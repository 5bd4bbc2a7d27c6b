"""The arena: one memfd per node that every process of it maps, and what they do with its bytes.

    reader   the whole arena, read-only: gets are views of it
    writer   an address range of the arena's size without access, into which granted ranges are mapped
             writable; so a process can write only where it was granted, and a forked child nowhere
    private  a copy-on-write mapping of one object, for torch, whose tensors know no read-only

Nothing to clean up: the memory goes with the last process that holds the descriptor, however it ends, and
/dev/shm's size does not matter. Lives here: descriptor, mappings, touching, punching. Does not: deciding
which range is whose (`store`). Calls on different ranges may come from several threads at once.
"""

import contextlib
import errno
import fcntl
import os
import threading
from types import TracebackType
from typing import Self

from retinue.core.objects import libc
from retinue.core.objects.allocator import Allocator
from retinue.core.objects.layout import HUGE, PAGE, round_down, round_up
from retinue.core.objects.views import Mapping, address_of, view_at

F_ADD_SEALS, F_SEAL_SHRINK, F_SEAL_GROW = 1033, 0x2, 0x4
TOUCH_STEP_BYTES = 64 << 20  # one system call; signals and other mappers of this process wait for it


class Arena:
    """A shared range of `size_bytes` (twice the budget), sparse until touched. Owns its descriptor.

    The mappings end when the arena is closed and the last view of them is gone.
    """

    def __init__(self, fd: int) -> None:
        """Take over the descriptor of an arena. Maps nothing yet; cheap."""
        self.fd = fd
        self.size_bytes = os.fstat(fd).st_size
        self._reader: Mapping | None = None
        self._writer: Mapping | None = None
        self._lock = threading.Lock()

    @classmethod
    def create(cls, budget_bytes: int) -> Self:
        """Make the arena for a store of this budget. Raises OSError."""
        fd = os.memfd_create("retinue-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, Allocator.space_for(budget_bytes))
            # No process can make the others' mappings raise SIGBUS. Punching holes stays possible.
            fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd)

    @classmethod
    def attach(cls, fd: int) -> Self:
        """Use an arena that was passed to this process; takes over the descriptor."""
        return cls(fd)

    # Reading

    def view(self, offset: int, size: int, pin: object = None) -> memoryview:
        """A read-only view without a copy; `pin` lives as long as anything made of it."""
        self._check(offset, size)
        return view_at(self._whole_reader(), offset, size, pin)

    def private_view(self, offset: int, size: int, pin: object = None) -> memoryview:
        """A writable view of which writes stay in this process (copy on write), otherwise as `view`.

        Each has a mapping of its own: pages written through a shared one would hide what is later put
        beside, or in place of, this object.
        """
        self._check(offset, size)
        return map_file_private(self.fd, offset, size, pin)

    def private_of(self, view: memoryview) -> memoryview | None:
        """A `private_view` of the bytes of a view of this arena, which it keeps; None for other memory."""
        if self._reader is None or not view.nbytes:
            return None
        offset = address_of(view) - self._reader.address
        if not 0 <= offset <= self.size_bytes - view.nbytes:
            return None
        return self.private_view(offset, view.nbytes, pin=view)

    def forget(self, offset: int, size: int) -> None:
        """Take what was read through this process's mapping out of its memory count (PSS)."""
        if self._reader is not None:
            start, end = round_down(offset, PAGE), round_up(offset + size, PAGE)
            libc.advise(self._reader.address + start, end - start, libc.MADV_DONTNEED)

    # Writing

    def map_writable(self, offset: int, size: int, *, is_warm: bool | None = None) -> memoryview:
        """Map a granted range and return it. With `is_warm`, first see to it that writing is fast:

        True: its pages exist, map them all at once (21 GB/s then, else 3.7). False: make huge pages (9 GB/s
        with the copy, else 1.3). None: leave it to the first write. Use the view only until `unmap_writable`.
        """
        self._check(offset, size)
        address = self._map_range(offset, size)
        if is_warm:
            libc.advise(address, round_up(size, PAGE), libc.MADV_POPULATE_READ)
        elif is_warm is False:
            _touch(address, size, must_fill=False)
        return view_at(self._window(), offset, size, None, is_writable=True)

    def unmap_writable(self, offset: int, size: int) -> None:
        """End the access that `map_writable` gave; a view of it must not be used again (SIGSEGV)."""
        flags = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_NORESERVE | libc.MAP_FIXED
        start, end = round_down(offset, PAGE), round_up(offset + size, PAGE)
        libc.map_memory(self._window().address + start, end - start, libc.PROT_NONE, flags)

    # Keeping

    def touch(self, offset: int, size: int) -> None:
        """Give a range pages, huge ones where the kernel can, without changing its bytes.

        16 GB/s where the machine has the memory, 0.46 where a virtual machine's host must find it first.
        Raises OSError when there is no memory. Counts in no process's PSS.
        """
        self._check(offset, size)
        address = self._map_range(offset, size)
        try:
            _touch(address, size, must_fill=True)
        finally:
            self.unmap_writable(offset, size)

    def punch(self, offset: int, size: int) -> bool:
        """Give a range's pages back; it reads as zeros. Raises OSError.

        False if some pages stay: the kernel cannot split a huge page while the rest of it is being written to
        disk, say (511 of 512 pages seen). Try again later.
        """
        self._check(offset, size)
        libc.punch_hole(self.fd, offset, size)
        try:
            return os.lseek(self.fd, offset, os.SEEK_DATA) >= offset + size
        except OSError as error:
            if error.errno != errno.ENXIO:  # no data from here to the end
                raise
            return True

    def resident_bytes(self) -> int:
        """How much memory the arena takes."""
        return os.fstat(self.fd).st_blocks * 512

    def close(self) -> None:
        """Close the descriptor. Views stay valid; the memory goes with them and all other holders."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self._reader = self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size <= 0 or offset + size > self.size_bytes:
            raise ValueError(f"{size} bytes at {offset} are not in an arena of {self.size_bytes} bytes")

    def _whole_reader(self) -> Mapping:
        if self._reader is None:
            reader = _reserve(self.size_bytes)
            flags = libc.MAP_SHARED | libc.MAP_FIXED | libc.MAP_NORESERVE
            libc.map_memory(reader.address, self.size_bytes, libc.PROT_READ, flags, self.fd)
            self._reader = reader
        return self._reader

    def _window(self) -> Mapping:
        with self._lock:  # two threads must not map into two windows
            if self._writer is None:
                self._writer = _reserve(self.size_bytes)
            return self._writer

    def _map_range(self, offset: int, size: int) -> int:
        start, end = round_down(offset, PAGE), round_up(offset + size, PAGE)
        address = self._window().address + start
        flags = libc.MAP_SHARED | libc.MAP_FIXED | libc.MAP_NORESERVE
        libc.map_memory(address, end - start, libc.PROT_READ | libc.PROT_WRITE, flags, self.fd, start)
        # A forked child outlives its parent's grants: it must not be able to write.
        libc.advise(address, end - start, libc.MADV_DONTFORK)
        return address + offset - start


def map_file(fd: int, offset: int, size: int, pin: object = None) -> memoryview:
    """A read-only view of part of a file, with a mapping of its own that ends with the last view."""
    return _map_pinned(fd, offset, size, pin, libc.PROT_READ, libc.MAP_SHARED)


def map_file_private(fd: int, offset: int, size: int, pin: object = None) -> memoryview:
    """As `map_file`, writable for this process alone (copy on write)."""
    return _map_pinned(fd, offset, size, pin, libc.PROT_READ | libc.PROT_WRITE, libc.MAP_PRIVATE)


def map_file_writable(fd: int, size: int) -> memoryview:
    """All of a file that was granted instead of arena space, to be written; unmapped with the last view."""
    return _map_pinned(fd, 0, size, None, libc.PROT_READ | libc.PROT_WRITE, libc.MAP_SHARED)


def _map_pinned(fd: int, offset: int, size: int, pin: object, protection: int, flags: int) -> memoryview:
    start, end = round_down(offset, PAGE), round_up(offset + size, PAGE)
    address = libc.map_memory(0, end - start, protection, flags | libc.MAP_NORESERVE, fd, start)
    mapping = Mapping(address, end - start)
    is_writable = bool(protection & libc.PROT_WRITE)
    if is_writable and flags == libc.MAP_SHARED:
        libc.advise(address, end - start, libc.MADV_DONTFORK)
    return view_at(mapping, offset - start, size, pin, is_writable=is_writable)


def _reserve(size: int) -> Mapping:
    """An address range without access, on a huge page boundary: MADV_COLLAPSE needs that."""
    flags = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_NORESERVE
    start = libc.map_memory(0, size + HUGE, libc.PROT_NONE, flags)
    return Mapping(start, size + HUGE, round_up(start, HUGE))


def _touch(address: int, size: int, *, must_fill: bool) -> None:
    """Make huge pages in a writable mapping; with `must_fill`, small ones where that fails."""
    start, end = round_up(address, HUGE), round_down(address + size, HUGE)
    while start < end:
        step = min(TOUCH_STEP_BYTES, end - start)
        for page in range(start, start + step, HUGE):  # COLLAPSE needs a page in each
            libc.advise(page, PAGE, libc.MADV_POPULATE_WRITE)
        is_huge = False
        with contextlib.suppress(OSError):  # no huge page free: small ones will do
            is_huge = libc.advise(start, step, libc.MADV_COLLAPSE)
        if not is_huge and must_fill:
            libc.advise(start, step, libc.MADV_POPULATE_WRITE)
        start += step
