"""The spill thread with real files: bit-exact round trips, fallbacks, full disks."""

import errno
import os
import queue
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from retinue.core.objects import spill as spill_module
from retinue.core.objects.arena import Arena
from retinue.core.objects.decisions import DeleteFile, MakeFile, Restore, Spill, SpillPart
from retinue.core.objects.layout import PAGE, round_up
from retinue.core.objects.spill import BUFFER_BYTES, DIRECT_MIN, SpillJob, SpillThread

MIB = 1 << 20


class Bench:
    """An arena, the thread, and what it reported."""

    def __init__(self, folder: Path) -> None:
        self.arena = Arena.create(64 * MIB)
        self.reports: queue.SimpleQueue[tuple[SpillJob, str | None]] = queue.SimpleQueue()
        self.thread = SpillThread(folder, self.arena, lambda job, reason: self.reports.put((job, reason)))

    def do(self, job: SpillJob) -> str | None:
        self.thread.submit(job)
        done, reason = self.reports.get(timeout=20)
        assert done is job
        return reason

    def write(self, offset: int, data: bytes) -> None:
        self.arena.map_writable(offset, len(data))[:] = data
        self.arena.unmap_writable(offset, len(data))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    bench.thread.start()
    yield bench
    bench.thread.stop()
    bench.arena.close()
    assert list(tmp_path.iterdir()) == [], "files are left"


# Offsets in the arena: pages take the direct way, cache lines the buffer.
LAYOUTS = {
    "one byte": [(64, 1)],
    "one page": [(PAGE, PAGE)],
    "small ones": [(64 + 10_048 * index, 9_999) for index in range(300)],
    "large pages": [(2 * MIB, 5 * MIB + 77), (8 * MIB, DIRECT_MIN)],
    "large off pages": [(64, BUFFER_BYTES + 3 * MIB + 5), (30 * MIB + 64, 7)],
    "mixed": [(64, 100), (2 * MIB, 3 * MIB), (5 * MIB + 64, 5000), (6 * MIB, 4 * MIB + 1), (11 * MIB, 9)],
    "buffer exactly": [(64, BUFFER_BYTES - PAGE), (BUFFER_BYTES + 64, PAGE), (2 * BUFFER_BYTES, 1)],
}


def plan(layout: list[tuple[int, int]]) -> Spill:
    parts, position = [], 0
    for index, (offset, size) in enumerate(layout):
        parts.append(SpillPart(b"%d" % index, offset, size, position))
        position += round_up(size, PAGE)
    return Spill(1, position, tuple(parts))


@pytest.mark.parametrize("is_direct", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_spilled_objects_come_back_bit_for_bit(
    bench: Bench, layout: list[tuple[int, int]], is_direct: bool
) -> None:
    bench.thread._is_direct = is_direct
    rng = random.Random(5)
    data = {offset: rng.randbytes(size) for offset, size in layout}
    for offset, content in data.items():
        bench.write(offset, content)
    job = plan(layout)
    assert bench.do(job) is None
    assert bench.thread.path_of(1).stat().st_size == job.size
    bench.arena.punch(0, bench.arena.size_bytes)
    target = 64 * MIB
    for part in job.parts:
        restore = Restore(part.object_id, 1, part.file_offset, target, part.size)
        assert bench.do(restore) is None
        assert bytes(bench.arena.view(target, part.size)) == data[part.offset]
    assert bench.do(DeleteFile(1)) is None
    assert not bench.thread.path_of(1).exists()


def test_file_systems_without_direct_access_get_buffered_calls(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def refuse_direct(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no O_DIRECT here")
        return opened(path, flags, mode)

    monkeypatch.setattr(spill_module.os, "open", refuse_direct)
    bench.write(0, b"data" * MIB)
    assert bench.do(Spill(1, 4 * MIB, (SpillPart(b"x", 0, 4 * MIB, 0),))) is None
    assert bench.do(Restore(b"x", 1, 0, 8 * MIB, 4 * MIB)) is None
    assert bytes(bench.arena.view(8 * MIB, 4 * MIB)) == b"data" * MIB


def test_full_disk_is_an_outcome_and_leaves_no_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(spill_module.os, "pwrite", full)
    monkeypatch.setattr(spill_module.os, "posix_fallocate", full)
    for job in (Spill(1, MIB, (SpillPart(b"x", 0, MIB, 0),)), MakeFile(2, MIB)):
        reason = bench.do(job)
        assert reason is not None
        assert reason.startswith("No space left on device")
        assert not bench.thread.path_of(job.file_id).exists()
    monkeypatch.undo()
    assert bench.do(MakeFile(3, MIB)) is None, "the thread goes on"


def test_the_last_of_the_disk_is_left_to_others(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.thread = SpillThread(
        tmp_path, bench.arena, lambda job, reason: bench.reports.put((job, reason)), min_free_share=1.0
    )
    bench.thread.start()
    reason = bench.do(MakeFile(1, PAGE))
    assert reason is not None
    assert "100% of the disk would be free" in reason
    bench.thread.stop()
    bench.arena.close()


def test_missing_or_short_file_is_an_outcome(bench: Bench) -> None:
    assert "No such file" in str(bench.do(Restore(b"x", 9, 0, 0, PAGE)))
    assert bench.do(MakeFile(1, PAGE)) is None
    assert "bytes early" in str(bench.do(Restore(b"x", 1, 0, 0, 3 * PAGE)))


def test_thread_outlives_a_mistake_of_ours(bench: Bench) -> None:
    outside = bench.arena.size_bytes
    assert "not in an arena" in str(bench.do(Spill(1, PAGE, (SpillPart(b"x", outside, PAGE, 0),))))
    assert bench.do(DeleteFile(1)) is None
    assert bench.do(MakeFile(2, PAGE)) is None


def test_made_files_have_their_blocks(bench: Bench) -> None:
    assert bench.do(MakeFile(1, 3 * MIB)) is None
    status = bench.thread.path_of(1).stat()
    assert status.st_size == 3 * MIB
    assert status.st_blocks * 512 >= 3 * MIB
    assert status.st_mode & 0o777 == 0o600


def test_restores_go_before_spills(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(0, b"x" * PAGE)
    spills = [Spill(index, PAGE, (SpillPart(b"x", 0, PAGE, 0),)) for index in (1, 2)]
    restore = Restore(b"y", 9, 0, 0, PAGE)
    for job in (*spills, restore):
        bench.thread.submit(job)
    bench.thread.start()
    assert [bench.reports.get(timeout=20)[0] for _ in range(3)] == [restore, *spills]
    bench.thread.stop()
    bench.arena.close()
    assert list(tmp_path.iterdir()) == []
