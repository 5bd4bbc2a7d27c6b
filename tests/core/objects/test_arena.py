"""The arena's mappings, with real memory and, where it matters, real processes."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from retinue.core.objects.arena import Arena, map_file, map_file_private, map_file_writable
from retinue.core.objects.decisions import Punch, Warm
from retinue.core.objects.keeper import Keeper
from retinue.core.objects.layout import HUGE, PAGE

MIB = 1 << 20


@pytest.fixture
def arena() -> Iterator[Arena]:
    with Arena.create(32 * MIB) as arena:
        yield arena


def test_space_is_twice_the_budget_and_takes_no_memory(arena: Arena) -> None:
    assert arena.size_bytes == 64 * MIB
    assert arena.resident_bytes() == 0


def test_size_cannot_be_changed_by_anyone(arena: Arena) -> None:
    for size in (0, 128 * MIB):
        with pytest.raises(PermissionError):
            os.ftruncate(arena.fd, size)


def test_written_bytes_are_read_through_a_view(arena: Arena) -> None:
    target = arena.map_writable(4 * MIB, 2 * MIB)
    target[:5] = b"hello"
    assert bytes(arena.view(4 * MIB, 5)) == b"hello"
    arena.unmap_writable(4 * MIB, 2 * MIB)
    assert bytes(arena.view(4 * MIB, 5)) == b"hello"


@pytest.mark.parametrize("is_warm", [True, False, None])
def test_mapping_keeps_what_was_there(arena: Arena, is_warm: bool | None) -> None:
    arena.map_writable(0, 4 * MIB)[MIB : MIB + 4] = b"kept"
    target = arena.map_writable(0, 4 * MIB + PAGE, is_warm=is_warm)
    assert bytes(target[MIB : MIB + 4]) == b"kept"


def test_views_are_read_only_and_bounded(arena: Arena) -> None:
    view = arena.view(64, 10)
    assert (view.readonly, view.format, len(view)) == (True, "B", 10)
    with pytest.raises(TypeError):
        view[0] = 1
    for offset, size in ((-64, 10), (64 * MIB - 5, 10), (0, 0)):
        with pytest.raises(ValueError, match="not in an arena"):
            arena.view(offset, size)


def test_private_views_keep_writes_to_themselves(arena: Arena) -> None:
    target = arena.map_writable(0, HUGE)
    target[100:103] = b"abc"
    private = arena.private_view(100, 3)
    private[:] = b"xyz"
    assert bytes(arena.view(100, 3)) == b"abc"
    assert bytes(private) == b"xyz"


def test_private_views_see_what_is_put_beside_an_object_later(arena: Arena) -> None:
    target = arena.map_writable(0, HUGE)
    first = arena.private_view(0, 64)
    first[:] = bytes([1]) * 64  # makes the page private to that view
    target[64:128] = bytes([2]) * 64
    assert bytes(arena.private_view(64, 64)) == bytes([2]) * 64


def test_touching_gives_pages_without_changing_bytes(arena: Arena) -> None:
    arena.map_writable(0, HUGE)[:4] = b"data"
    arena.touch(0, 8 * MIB)
    assert arena.resident_bytes() == 8 * MIB
    assert bytes(arena.view(0, 4)) == b"data"


def test_punching_gives_pages_back(arena: Arena) -> None:
    arena.touch(0, 8 * MIB)
    arena.map_writable(2 * MIB, 4)[:] = b"gone"
    assert arena.punch(2 * MIB, 4 * MIB) is True
    assert arena.resident_bytes() == 4 * MIB
    assert arena.punch(6 * MIB, 58 * MIB) is True, "up to the end"
    assert bytes(arena.view(2 * MIB, 4)) == bytes(4)


def test_touched_and_read_memory_is_not_counted_as_ours_after_forget(arena: Arena) -> None:
    arena.touch(0, 16 * MIB)
    assert sum(bytes(arena.view(0, 16 * MIB))) == 0
    assert _pss_of("retinue-arena") >= 15 * MIB
    arena.forget(0, 16 * MIB)
    assert _pss_of("retinue-arena") == 0


def test_keeper_touches_and_punches_in_order(arena: Arena) -> None:
    done: list[tuple[object, str | None]] = []
    keeper = Keeper(arena, lambda job, reason: done.append((job, reason)))
    keeper.start()
    jobs = [Warm(0, 4 * MIB), Punch(2 * MIB, 2 * MIB), Warm(62 * MIB, HUGE)]
    for job in jobs:
        keeper.submit(job)
    keeper.stop()
    assert done == [(job, None) for job in jobs]
    assert arena.resident_bytes() <= 4 * MIB


def test_keeper_reports_what_cannot_be_done_and_goes_on(arena: Arena) -> None:
    done: list[str | None] = []
    read_only = Arena(os.open(f"/proc/self/fd/{arena.fd}", os.O_RDONLY))
    keeper = Keeper(read_only, lambda _, reason: done.append(reason))
    keeper.start()
    keeper.submit(Punch(0, HUGE))
    keeper.submit(Punch(0, HUGE))
    keeper.stop()
    read_only.close()
    assert [str(reason).endswith(os.strerror(errno.EBADF)) for reason in done] == [True, True]


def test_memory_goes_when_arena_and_views_are_gone() -> None:
    before = _maps().count("retinue-arena")
    arena = Arena.create(8 * MIB)
    arena.map_writable(0, HUGE)[:4] = b"data"
    part = arena.view(0, 4)[1:]
    arena.close()
    assert bytes(part) == b"ata"
    del part
    assert _maps().count("retinue-arena") == before


def test_files_are_mapped_until_the_last_view_goes(tmp_path) -> None:
    path = tmp_path / "spilled"
    path.write_bytes(bytes(PAGE) + b"object" + bytes(PAGE))
    gone: list[bool] = []

    class Pin:
        def __del__(self) -> None:
            gone.append(True)

    fd = os.open(path, os.O_RDWR)
    view = map_file(fd, PAGE, 6, Pin())
    private = map_file_private(fd, PAGE + 1, 4)
    os.close(fd)
    assert bytes(view) == b"object"
    private[:] = b"BJEC"
    assert bytes(view) == b"object"
    part = view[2:4]
    del view
    assert not gone
    assert bytes(part) == b"je"
    del part
    assert gone
    assert str(path) in _maps()  # the private one
    del private
    assert str(path) not in _maps()


def test_granted_files_are_written_through_a_mapping(tmp_path) -> None:
    path = tmp_path / "granted"
    path.write_bytes(bytes(100))
    fd = os.open(path, os.O_RDWR)
    view = map_file_writable(fd, 100)
    os.close(fd)
    view[:4] = b"data"
    del view
    assert path.read_bytes()[:4] == b"data"


CHILD = """
import sys
from retinue.core.objects.arena import Arena
arena = Arena.attach(int(sys.argv[1]))
target = arena.map_writable(0, 8 << 20, is_warm=False)
target[:6] = b"sealed"
print("written", flush=True)
while True:
    target[4 << 20:] = bytes([7]) * (4 << 20)
"""


def test_bytes_survive_the_sigkill_of_the_process_that_wrote_them(arena: Arena) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(arena.fd)], pass_fds=[arena.fd], stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"written\n"
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert bytes(arena.view(0, 6)) == b"sealed"
    before = bytes(arena.view(4 * MIB, 4 * MIB))
    assert bytes(arena.view(4 * MIB, 4 * MIB)) == before, "bytes changed after the writer's death"
    arena.punch(0, 8 * MIB)
    assert arena.resident_bytes() == 0


def test_forked_children_read_but_cannot_write(arena: Arena) -> None:
    target = arena.map_writable(0, HUGE)
    target[:2] = b"ok"
    view = arena.view(0, 2)
    reader = os.fork()
    if reader == 0:
        os._exit(0 if bytes(view) == b"ok" else 1)
    writer = os.fork()
    if writer == 0:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        target[:2] = b"no"
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1]) == 0
    assert os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]) == -signal.SIGSEGV
    assert bytes(view) == b"ok"


def _maps() -> str:
    with open("/proc/self/maps") as maps:
        return maps.read()


def _pss_of(name: str) -> int:
    total, is_ours = 0, False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            if not line.split(maxsplit=1)[0].endswith(":"):
                is_ours = name in line
            elif is_ours and line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total
