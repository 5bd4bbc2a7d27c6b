"""The memory calls that Python lacks, or makes while it holds the GIL. The one adapter to ctypes' C library.

`mmap.madvise` keeps the GIL: populating 1 GiB froze other threads for 560 ms, 3-18 ms through ctypes.
"""

import ctypes
import errno
import os

PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2
MAP_SHARED, MAP_PRIVATE, MAP_FIXED = 0x01, 0x02, 0x10
MAP_ANONYMOUS, MAP_NORESERVE = 0x20, 0x4000
MADV_DONTNEED, MADV_DONTFORK = 4, 10
MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_COLLAPSE = 22, 23, 25
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
]
_munmap = _libc.munmap
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_madvise = _libc.madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_fallocate = _libc.fallocate64
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

_FAILED = ctypes.c_void_p(-1).value


def map_memory(address: int, size: int, protection: int, flags: int, fd: int = -1, offset: int = 0) -> int:
    """mmap(2). Returns the address; raises OSError."""
    result = _mmap(address, size, protection, flags, fd, offset)
    if result is None or result == _FAILED:
        raise _error("mmap", size)
    return int(result)


def unmap_memory(address: int, size: int) -> None:
    """munmap(2); raises OSError. Safe in finalizers: takes no lock of Python's."""
    if _munmap(address, size) != 0:
        raise _error("munmap", size)


def advise(address: int, size: int, advice: int) -> bool:
    """madvise(2). False if the kernel does not know the advice or cannot follow it now.

    Raises OSError for anything else (ENOMEM: the range is not mapped, or memory ran out).
    """
    while _madvise(address, size, advice) != 0:
        code = ctypes.get_errno()
        if code in (errno.EINVAL, errno.EAGAIN, errno.EBUSY):
            return False
        if code != errno.EINTR:
            raise OSError(code, f"madvise({advice}) of {size} bytes: {os.strerror(code)}")
    return True


def punch_hole(fd: int, offset: int, size: int) -> None:
    """Give the pages of a range of a file back, keeping its size; raises OSError."""
    if _fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, size) != 0:
        raise _error("fallocate(PUNCH_HOLE)", size)


def _error(call: str, size: int) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{call} of {size} bytes: {os.strerror(code)}")
