"""A worker's parts without its process: nothing here listens, forks, or asks anybody."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from retinue.core.client.runtime import Context
from retinue.core.ownership.table import OwnershipTable
from retinue.core.serialization import Serialized, deserialize
from retinue.core.transport.threads import Connection, IoThread
from retinue.core.wire.framing import FrameDecoder
from retinue.core.wire.messages import Address, Call, CallOptions, Hello, RefCount

NODE = b"n" * 16
CALLER = Address(b"c" * 16, NODE, "")


class FakeOwnership:
    """Answers about references when the test says so."""

    note_borrowed: Callable[[list[bytes]], None]

    def __init__(self) -> None:
        self.held: list[bytes] = []  # what user code kept of a call's references
        self.registered: list[tuple[list[bytes], Callable[[], None]]] = []
        self.handed: list[Callable[[], None]] = []

    def load_in_scope(self, blob: bytes) -> tuple[Any, list[bytes]]:
        return deserialize(blob), []

    def uncounted(self, object_ids: Sequence[bytes]) -> list[bytes]:
        return [i for i in object_ids if i in self.held]

    def register(self, object_ids: list[bytes], then: Callable[[], None]) -> None:
        self.registered.append((object_ids, then))

    def hand_over(self, found: Any, receiver: Address, then: Callable[[list[RefCount]], None]) -> None:
        refs = [RefCount(object_id, owner or CALLER) for object_id, owner in found]
        self.handed.append(lambda: then(refs))


class FakeStore:
    def __init__(self) -> None:
        self.written: dict[bytes, int] = {}

    def write(self, object_id: bytes, part: Serialized, *owner: Address) -> None:
        self.written[object_id] = part.size


class FakeRuntime:
    """As much of a runtime as executors touch."""

    def __init__(self) -> None:
        self.ownership = FakeOwnership()
        self.store = FakeStore()
        self.context = Context()
        self.lock = threading.Lock()
        self.table = OwnershipTable()
        self.node_id = NODE
        self.agent = None
        self.io = IoThread("test", lambda now: 1.0)
        self.ids = self
        self._ids = itertools.count()

    def task_id(self) -> bytes:
        return b"fresh" + bytes(11) + next(self._ids).to_bytes(8, "little")

    def after_unlock(self) -> None:
        pass


class Caller:
    """The other end of a call connection: reads what a worker answered."""

    def __init__(self, io: IoThread) -> None:
        ours, theirs = socket.socketpair()
        self.sock = ours
        self.connection = Connection(io, theirs, lambda *_: None, lambda _: None)
        self.connection.hello = Hello("calls", CALLER)
        self._decoder = FrameDecoder()

    def answers(self) -> list[tuple[Any, bytes]]:
        """All messages that have arrived by now."""
        found = []
        while True:
            try:
                chunk = self.sock.recv(1 << 20, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            if not chunk:
                return found
            self._decoder.feed(chunk)
            found += list(self._decoder.frames())


def make_call(
    number: int = 1, *, method: str = "", options: CallOptions | None = None, num_returns: int = 1
) -> Call:
    task_id = number.to_bytes(24, "little")
    return Call(task_id, b"key", method, num_returns, 0, 0, 0, options)
