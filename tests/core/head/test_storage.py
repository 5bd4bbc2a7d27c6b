import asyncio
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.core.head import storage as storage_module
from retinue.core.head.storage import Change, CommitLog, MemoryStorage, SqliteStorage, open_storage


def test_sqlite_gives_back_what_was_committed(tmp_path: Path) -> None:
    path = str(tmp_path / "head.db")
    storage = SqliteStorage(path)
    storage.commit([Change("t", b"a", b"1"), Change("t", b"b", b"2"), Change("u", b"a", b"3")])
    storage.commit([Change("t", b"a", None), Change("t", b"b", b"4")])
    storage.close()
    again = SqliteStorage(path)
    assert sorted(again.load()) == [("t", b"b", b"4"), ("u", b"a", b"3")]
    again.close()


def test_a_group_is_committed_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    storage = SqliteStorage(str(tmp_path / "head.db"))
    with pytest.raises(Exception, match="bind"):
        storage.commit([Change("t", b"a", b"1"), Change("t", b"b", object())])  # type: ignore[arg-type]
    assert list(storage.load()) == []
    storage.commit([Change("t", b"a", b"1")])
    assert len(list(storage.load())) == 1
    storage.close()


def test_storage_urls(tmp_path: Path) -> None:
    open_storage(f"sqlite:{tmp_path}/a.db?synchronous=full").close()
    for url in ("redis:host", "sqlite:", f"sqlite:{tmp_path}/a.db?fast=1"):
        with pytest.raises(ValueError, match="unknown storage"):
            open_storage(url)


@given(st.lists(st.tuples(st.sampled_from("tu"), st.binary(max_size=1), st.none() | st.binary(max_size=2))))
def test_sqlite_and_memory_agree(steps: list[tuple[str, bytes, bytes | None]]) -> None:
    sqlite, memory = SqliteStorage(":memory:"), MemoryStorage()
    for step in steps:
        sqlite.commit([Change(*step)])
        memory.commit([Change(*step)])
    assert sorted(sqlite.load()) == sorted(memory.load())
    sqlite.close()


class GatedStorage(MemoryStorage):
    """Commits only while the gate is open; may have failed `failures` times before."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.failures = 0

    def commit(self, changes: list[Change]) -> None:
        self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise OSError("disk full")
        super().commit(changes)


def test_actions_wait_for_what_was_written_before_them_in_order() -> None:
    async def main() -> None:
        storage = GatedStorage()
        log = CommitLog(storage)
        log.start(asyncio.get_running_loop())
        done: list[int] = []
        finished = asyncio.Event()
        log.when_durable(lambda: done.append(0))
        assert done == [0]
        log.write("t", b"a", b"1")
        log.when_durable(lambda: done.append(1))
        log.write("t", b"b", b"2")
        log.when_durable(lambda: (done.append(2), finished.set()))
        assert done == [0]
        storage.gate.set()
        await asyncio.wait_for(finished.wait(), 10)
        assert done == [0, 1, 2]
        assert len(storage.records) == 2
        log.stop()

    asyncio.run(main())


def test_a_disk_that_is_full_for_a_while_delays_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "RETRY_S", 0.001)

    async def main() -> None:
        storage = GatedStorage()
        storage.failures = 3
        storage.gate.set()
        log = CommitLog(storage)
        log.start(asyncio.get_running_loop())
        finished = asyncio.Event()
        log.write("t", b"a", b"1")
        log.when_durable(finished.set)
        await asyncio.wait_for(finished.wait(), 10)
        assert storage.records == {("t", b"a"): b"1"}
        log.stop()

    asyncio.run(main())


def test_stopping_writes_what_is_left() -> None:
    async def main() -> None:
        storage = MemoryStorage()
        log = CommitLog(storage)
        log.start(asyncio.get_running_loop())
        for i in range(100):
            log.write("t", b"%d" % i, b"")
        log.stop()
        assert len(storage.records) == 100

    asyncio.run(main())
