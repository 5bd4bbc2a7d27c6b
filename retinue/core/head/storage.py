"""What the head keeps on disk, and how it gets there.

A `Storage` is a set of tables of byte strings that is read once, at the start, and then only written to:
the head answers from memory. `CommitLog` writes from a thread of its own, everything that has come
meanwhile in one transaction, and tells the loop what is durable, so the loop never waits for the disk.
Lives here: the interface, SQLite, memory (for tests), the thread. Does not: what the tables mean.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

logger = logging.getLogger(__name__)

RETRY_S = 1.0


class Change(NamedTuple):
    """Write one record; `value` None deletes it."""

    table: str
    key: bytes
    value: bytes | None


class Storage(Protocol):
    """Used from one thread at a time."""

    def load(self) -> Iterable[tuple[str, bytes, bytes]]:
        """Every record, as (table, key, value)."""
        ...

    def commit(self, changes: list[Change]) -> None:
        """Make all of them durable, in order, or none. Raises OSError if that cannot be done now."""
        ...

    def close(self) -> None: ...


class MemoryStorage:
    """For tests: a dictionary that outlives the heads that use it."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, bytes], bytes] = {}
        self.commits = 0

    def load(self) -> Iterable[tuple[str, bytes, bytes]]:
        return [(table, key, value) for (table, key), value in self.records.items()]

    def commit(self, changes: list[Change]) -> None:
        self.commits += 1
        for table, key, value in changes:
            if value is None:
                self.records.pop((table, key), None)
            else:
                self.records[table, key] = value

    def close(self) -> None:
        pass


class SqliteStorage:
    """One file in WAL mode: a commit survives the death of the process at any moment.

    With `is_synchronous` it survives a power cut too, at the price of a disk flush per group of commits.
    """

    def __init__(self, path: str, *, is_synchronous: bool = False) -> None:
        # Only one head at a time uses the file, and each kind of use has one thread at a time.
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=8)
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")  # no shared-memory file beside it
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute(f"PRAGMA synchronous={'FULL' if is_synchronous else 'NORMAL'}")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS records"
            "(tbl TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (tbl, key))"
        )

    def load(self) -> Iterable[tuple[str, bytes, bytes]]:
        return self._db.execute("SELECT tbl, key, value FROM records").fetchall()

    def commit(self, changes: list[Change]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for table, key, value in changes:
                    if value is None:
                        self._db.execute("DELETE FROM records WHERE tbl=? AND key=?", (table, key))
                    else:
                        self._db.execute(
                            "INSERT OR REPLACE INTO records VALUES(?, ?, ?)", (table, key, value)
                        )
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as error:
            raise OSError(f"cannot write the head's storage: {error}") from error

    def close(self) -> None:
        self._db.close()


def open_storage(url: str) -> Storage:
    """The storage that a HeadConfig names. Raises ValueError for a kind that there is not."""
    kind, _, rest = url.partition(":")
    if kind != "sqlite" or not rest:
        raise ValueError(f"unknown storage {url!r}: expected 'sqlite:<path>[?synchronous=full]'")
    path, _, options = rest.partition("?")
    if options not in ("", "synchronous=full"):
        raise ValueError(f"unknown storage option {options!r}: expected 'synchronous=full'")
    return SqliteStorage(path, is_synchronous=bool(options))


class CommitLog:
    """`write()` and `when_durable()` on the loop; the disk in a thread that `stop()` joins."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Condition()
        self._changes: list[Change] = []
        self._is_stopping = False
        self._written = 0
        self._durable = 0
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._thread = threading.Thread(target=self._run, name="retinue-storage", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread.start()

    def write(self, table: str, key: bytes, value: bytes | None) -> None:
        with self._lock:
            self._changes.append(Change(table, key, value))
            self._written += 1
            self._lock.notify()

    def when_durable(self, action: Callable[[], None]) -> None:
        """Run `action` on the loop once all that was written before is durable; now if it is."""
        if self._durable == self._written:
            action()
        else:
            self._waiting.append((self._written, action))

    def stop(self) -> None:
        """Write what is left, and end the thread. Actions that still wait are dropped."""
        with self._lock:
            self._is_stopping = True
            self._lock.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._storage.close()

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._changes and not self._is_stopping:
                    self._lock.wait()
                changes, self._changes = self._changes, []
                if not changes:
                    return
            if not self._commit(changes):
                return
            self._tell(len(changes))

    def _commit(self, changes: list[Change]) -> bool:
        """Until the disk takes it (it may be full for a while); False if told to stop meanwhile."""
        while True:
            try:
                self._storage.commit(changes)
            except OSError as error:
                logger.error("%s; trying again in %g s", error, RETRY_S)
                with self._lock:
                    if self._is_stopping or self._lock.wait_for(lambda: self._is_stopping, RETRY_S):
                        return False
            else:
                return True

    def _tell(self, count: int) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._committed, count)
        except RuntimeError:
            pass  # the loop has ended; nobody waits any more

    def _committed(self, count: int) -> None:
        self._durable += count
        while self._waiting and self._waiting[0][0] <= self._durable:
            self._waiting.popleft()[1]()
