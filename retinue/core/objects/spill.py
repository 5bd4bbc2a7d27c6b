"""The spill thread: writes objects into fused files, reads them back, makes and deletes files.

Carries out Spill, Restore, MakeFile and DeleteFile off the agent's loop and hands each one's outcome back
through a callback; a full disk is an outcome, not an exception. One thread: two gain nothing on one disk
(O_DIRECT reads 3.3 GB/s with one, 3.5 with four). Reads that somebody waits for go before writes.

O_DIRECT, up to 64 MiB a call: steady 3.5 GB/s with 0.04 s of CPU per GiB, where buffered writes vary
between 0.2 and 1.4 GB/s and fill the cgroup with page cache. Whole pages go straight from and to the arena,
small objects through a buffer. File systems that refuse O_DIRECT (EINVAL) get buffered calls.

Lives here: files and the thread. Does not: choosing what to spill, and when (`store`).
"""

import errno
import itertools
import logging
import mmap
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path

from retinue.core.objects.arena import Arena
from retinue.core.objects.decisions import DeleteFile, MakeFile, Restore, Spill, SpillPart
from retinue.core.objects.layout import PAGE, round_up
from retinue.core.objects.views import copy_into

logger = logging.getLogger(__name__)

CALL_BYTES = 64 << 20
BUFFER_BYTES = 16 << 20
DIRECT_MIN = 1 << 20  # smaller parts are gathered in the buffer: fewer, larger calls
MIN_FREE_SHARE = 0.05  # of the disk; other programs need some too

SpillJob = Spill | Restore | MakeFile | DeleteFile
Finished = Callable[[SpillJob, str | None], object]
"""Called in the spill thread with the job and None, or why it failed; pass it on to the loop."""

_ORDER = {Restore: 1, MakeFile: 2, DeleteFile: 3, Spill: 4}  # 0: stop


class SpillThread:
    """Build, `start`, `submit` from any thread, `stop`. Owns `folder`'s files, not the folder."""

    def __init__(
        self, folder: Path, arena: Arena, finished: Finished, *, min_free_share: float = MIN_FREE_SHARE
    ) -> None:
        self._folder = folder
        self._arena = arena
        self._finished = finished
        self._min_free_share = min_free_share
        self._jobs: queue.PriorityQueue[tuple[int, int, SpillJob | None]] = queue.PriorityQueue()
        self._serial = itertools.count()
        self._file_ids: set[int] = set()
        self._is_direct = True
        self._buffer: mmap.mmap | None = None
        self._thread = threading.Thread(target=self._run, name="object-spill", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: SpillJob) -> None:
        self._jobs.put((_ORDER[type(job)], next(self._serial), job))

    def stop(self) -> None:
        """End after the job at hand, drop those that wait, delete all files. Waits for it."""
        self._jobs.put((0, next(self._serial), None))
        self._thread.join()
        for file_id in list(self._file_ids):
            self._delete(file_id)

    def path_of(self, file_id: int) -> Path:
        return self._folder / f"{file_id}.spill"

    def _run(self) -> None:
        while (job := self._jobs.get()[2]) is not None:
            self._finished(job, self._carry_out(job))

    def _carry_out(self, job: SpillJob) -> str | None:
        try:
            match job:
                case Spill():
                    self._check_disk(job.size)
                    self._directly_or_not(lambda: self._spill(job))
                case Restore():
                    self._directly_or_not(lambda: self._restore(job))
                case MakeFile():
                    self._check_disk(job.size)
                    self._make(job)
                case DeleteFile():
                    self._delete(job.file_id)
        except OSError as error:
            logger.warning("%s of file %d failed: %s", type(job).__name__, job.file_id, error)
            if isinstance(job, Spill | MakeFile):
                self._delete(job.file_id)
            return f"{error.strerror or error} ({self.path_of(job.file_id)})"
        except Exception as error:  # a mistake of ours; without this thread every full store would hang
            logger.exception("%s of file %d failed", type(job).__name__, job.file_id)
            return repr(error)
        return None

    def _check_disk(self, size: int) -> None:
        disk = os.statvfs(self._folder)
        if disk.f_bavail * disk.f_frsize - size < self._min_free_share * disk.f_blocks * disk.f_frsize:
            raise OSError(errno.ENOSPC, f"less than {self._min_free_share:.0%} of the disk would be free")

    def _directly_or_not(self, do: Callable[[], None]) -> None:
        try:
            do()
        except OSError as error:
            if error.errno != errno.EINVAL or not self._is_direct:
                raise
            logger.info("no O_DIRECT in %s: spilling through the page cache", self._folder)
            self._is_direct = False
            do()

    def _open(self, file_id: int, flags: int) -> int:
        if flags & os.O_CREAT:
            self._file_ids.add(file_id)
        direct = os.O_DIRECT if self._is_direct else 0
        return os.open(self.path_of(file_id), flags | direct | os.O_CLOEXEC, 0o600)

    def _make(self, job: MakeFile) -> None:
        self._file_ids.add(job.file_id)
        fd = os.open(self.path_of(job.file_id), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Blocks are reserved now: a full disk must be an answer here, not SIGBUS in the writer.
            os.posix_fallocate(fd, 0, job.size)
        finally:
            os.close(fd)

    def _delete(self, file_id: int) -> None:
        self._file_ids.discard(file_id)
        self.path_of(file_id).unlink(missing_ok=True)

    # Writing

    def _spill(self, job: Spill) -> None:
        fd = self._open(job.file_id, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            gathered: list[SpillPart] = []
            for part in job.parts:
                if part.size >= DIRECT_MIN and part.offset % PAGE == 0:
                    self._write_gathered(fd, gathered)
                    gathered = []
                    _write(fd, self._arena.view(part.offset, round_up(part.size, PAGE)), part.file_offset)
                else:
                    gathered.append(part)
            self._write_gathered(fd, gathered)
        finally:
            os.close(fd)
            for part in job.parts:  # read pages would count as the agent's memory
                self._arena.forget(part.offset, part.size)

    def _write_gathered(self, fd: int, parts: list[SpillPart]) -> None:
        """Write parts that lie one behind the other in the file, through the buffer."""
        if self._buffer is None:
            self._buffer = mmap.mmap(-1, BUFFER_BYTES)  # starts on a page, as O_DIRECT needs it
        buffer = memoryview(self._buffer)
        filled, start = 0, parts[0].file_offset if parts else 0
        for part in parts:
            done = 0
            while done < part.size:
                count = min(part.size - done, BUFFER_BYTES - filled)
                copy_into(buffer[filled : filled + count], self._arena.view(part.offset + done, count))
                done += count
                filled = round_up(filled + count, PAGE)
                if filled == BUFFER_BYTES:
                    _write(fd, buffer, start)
                    start += filled
                    filled = 0
        if filled:
            _write(fd, buffer[:filled], start)

    # Reading

    def _restore(self, job: Restore) -> None:
        size = round_up(job.size, PAGE)
        fd = self._open(job.file_id, os.O_RDONLY)
        try:
            target = self._arena.map_writable(job.offset, size)
            try:
                _read(fd, target, job.file_offset)
            finally:
                self._arena.unmap_writable(job.offset, size)
        finally:
            os.close(fd)


def _write(fd: int, data: memoryview, position: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done : done + CALL_BYTES], position + done)


def _read(fd: int, target: memoryview, position: int) -> None:
    done = 0
    while done < len(target):
        count = os.preadv(fd, [target[done : done + CALL_BYTES]], position + done)
        if count == 0:
            raise OSError(errno.EIO, f"the file ends {len(target) - done} bytes early")
        done += count
