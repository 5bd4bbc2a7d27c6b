"""This process's side of the node's object store: writing objects, views of them, giving pins back.

Lives here: the arena's mappings, slabs, pins. Does not: bookkeeping (the agent's `objects.store`), which
objects exist (ownership).
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from retinue.core.errors import GetTimeoutError, RetinueSystemError
from retinue.core.objects.arena import Arena, map_file, map_file_writable
from retinue.core.objects.cursor import ClosedSlab, SlabCursor, is_single
from retinue.core.objects.views import Pin, copy_into
from retinue.core.ownership.table import STORED
from retinue.core.transport.threads import Connection
from retinue.core.wire.messages import (
    AbortObject,
    Address,
    CancelPin,
    CreateObject,
    PinObject,
    Sealed,
    SlabClosed,
    SlabRecall,
    SlabRequest,
    SpaceGranted,
    Unpin,
)

if TYPE_CHECKING:
    from retinue.core.client.runtime import Runtime
    from retinue.core.ownership.table import Entry
    from retinue.core.serialization import Serialized

ATTACH_TIMEOUT_S = 10.0
NOBODY = Address(b"", b"", "")  # as an owner: what outlives every process


class StoreClient:
    """Reads and writes the node's arena; fetches its descriptor on first use from where `attach` says."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._arena_path = ""
        self._arena: Arena | None = None
        self._lock = threading.Lock()
        self._unpin_lock = threading.Lock()
        self._cursor = SlabCursor()
        self._slabs: dict[int, tuple[int, memoryview]] = {}  # offset -> size, writable view
        self._released: deque[int] = deque()  # keys of pins whose last view is gone

    def attach(self, arena_path: str) -> None:
        self._arena_path = arena_path

    def _agent(self) -> Connection:
        agent = self._runtime.agent
        if agent is None or agent.is_closed:
            raise RetinueSystemError("the connection to the node agent is lost, and with it the object store")
        return agent

    def arena(self) -> Arena:
        """The mapped arena; fetches its descriptor the first time (one round trip)."""
        if self._arena is None:
            with self._lock:
                if self._arena is None:
                    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                        sock.settimeout(ATTACH_TIMEOUT_S)
                        sock.connect(self._arena_path)
                        _, descriptors, _, _ = socket.recv_fds(sock, 16, 1)
                    if not descriptors:
                        raise RetinueSystemError("the node agent did not hand out the object store")
                    os.set_inheritable(descriptors[0], False)
                    self._arena = Arena.attach(descriptors[0])
        return self._arena

    # --- writing

    def write(self, object_id: bytes, serialized: Serialized, owner: Address | None = None) -> None:
        """Write a value's blob and seal it. Raises ObjectStoreFullError, naming the largest holders.

        It goes when its owner dies: this process by default; NOBODY never does.
        """
        size = serialized.size
        if is_single(size):
            self._give_back()
            granted = self._ask_for_space(CreateObject(0, object_id, size))
            self._write_granted(object_id, serialized, granted, owner)
            return
        while True:
            with self._lock:
                offset = self._cursor.take(size)
                if offset is not None:
                    start, view = next((o, v) for o, (n, v) in self._slabs.items() if o <= offset < o + n)
                    break
                wanted = self._cursor.slab_size(size)
            self._give_back()
            granted = self._ask_for_space(SlabRequest(0, wanted, size))
            if not granted.is_slab:
                self._write_granted(object_id, serialized, granted, owner)
                return
            self._use_slab(granted)
        try:
            target = view[offset - start : offset - start + size]
            _copy_parts(target, serialized)
            self._agent().send(Sealed([(object_id, offset, size, 0)], owner))
        finally:
            with self._lock:
                closed = self._cursor.finished(offset)
                self._close_slabs(closed)

    def _give_back(self) -> None:
        """Say first what is not needed any more: its room is warm (a copy into it is ten times as fast)."""
        self._runtime.drain_dropped()
        self._unpin()

    def _ask_for_space(self, request: CreateObject | SlabRequest) -> Any:
        granted, _ = self._agent().call(request, on_abandoned=self._not_needed, check=self._check())
        return granted

    def _check(self) -> Callable[[], None] | None:
        """What tells a waiting thread that its task was cancelled, if it can be."""
        hook = self._runtime.context.hook
        return hook.check_interrupted if hook is not None else None

    def _use_slab(self, granted: SpaceGranted) -> None:
        view = self.arena().map_writable(granted.key, granted.size, is_warm=granted.is_warm)
        with self._lock:
            self._slabs[granted.key] = (granted.size, view)
            self._close_slabs(self._cursor.granted(granted.key, granted.size))

    def _close_slabs(self, closed: list[ClosedSlab]) -> None:
        for slab in closed:
            del self._slabs[slab.offset]
            self.arena().unmap_writable(slab.offset, slab.size)
            self._agent().send(SlabClosed(slab.offset, slab.used))

    def _write_granted(
        self, object_id: bytes, serialized: Serialized, granted: SpaceGranted, owner: Address | None
    ) -> None:
        agent = self._agent()
        size = serialized.size
        try:
            if granted.path:
                fd = os.open(granted.path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    _copy_parts(map_file_writable(fd, size), serialized)
                finally:
                    os.close(fd)
            else:
                arena = self.arena()
                view = arena.map_writable(granted.key, size, is_warm=granted.is_warm)
                try:
                    _copy_parts(view, serialized)
                finally:
                    arena.unmap_writable(granted.key, size)
        except BaseException:
            agent.send(AbortObject(granted.key))
            raise
        agent.send(Sealed([(object_id, granted.key, size, 0)], owner))

    def recalled(self, message: SlabRecall) -> None:
        """The agent wants a slab back; it goes when no write is in progress in it."""
        with self._lock:
            self._close_slabs(self._cursor.retire(message.offset))

    # --- reading

    def read(self, object_id: bytes, entry: Entry, deadline: float | None) -> memoryview:
        """A read-only view of a stored object, pinned while anything made of it lives.

        Raises ObjectLostError (no copy can be had), GetTimeoutError.
        """
        owner = entry.owner or self._runtime.address
        return self.read_stored(object_id, entry.size, owner, list(entry.nodes), deadline)

    def read_stored(
        self, object_id: bytes, size: int, owner: Any, nodes: list[bytes], deadline: float | None
    ) -> memoryview:
        request = PinObject(0, object_id, size, owner, nodes)
        timeout_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        agent = self._agent()
        try:
            pinned, _ = agent.call(
                request, timeout_s=timeout_s, on_abandoned=self._prefetched, check=self._check()
            )
        except (TimeoutError, KeyboardInterrupt) as error:
            agent.send(CancelPin(request.rid))
            if isinstance(error, KeyboardInterrupt):
                raise
            raise GetTimeoutError(f"object {object_id.hex()} did not arrive here in time") from error
        pin = Pin(pinned.key, self._released)
        if pinned.path:
            fd = os.open(pinned.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return map_file(fd, pinned.offset, pinned.size, pin)
            finally:
                os.close(fd)
        return self.arena().view(pinned.offset, pinned.size, pin)

    def private_view(self, view: memoryview) -> memoryview | None:
        """A writable copy-on-write view of the same bytes, for what knows no read-only; None if not ours."""
        return self._arena.private_of(view) if self._arena is not None else None

    def prefetch(self, entries: list[tuple[bytes, Entry]]) -> None:
        """Start to bring objects here that lie on other nodes only."""
        node_id = self._runtime.node_id
        for object_id, entry in entries:
            if entry.state == STORED and node_id not in entry.nodes:
                owner = entry.owner or self._runtime.address
                request = PinObject(0, object_id, entry.size, owner, list(entry.nodes))
                self._agent().request(request, self._prefetched)

    def _not_needed(self, response: Any, body: bytes) -> None:
        """Space came after whoever wanted it was interrupted."""
        if type(response) is SpaceGranted:
            self._agent().send(SlabClosed(response.key, 0) if response.is_slab else AbortObject(response.key))

    def _prefetched(self, response: Any, body: bytes) -> None:
        key = getattr(response, "key", None)
        if key is not None:
            self._released.append(key)

    # --- pins

    def tick(self, now: float) -> None:
        """Tell the agent about pins that ended."""
        self._unpin()

    def _unpin(self) -> None:
        released = self._released
        agent = self._runtime.agent
        if not released or agent is None or agent.is_closed:
            return
        with self._unpin_lock:  # the I/O thread and one that writes
            counts = Counter(released.popleft() for _ in range(len(released)))
            if counts:
                agent.send(Unpin(list(counts.items())))

    def close(self) -> None:
        """Close the descriptor. Views that the user still holds stay valid."""
        self._slabs.clear()
        if self._arena is not None:
            self._arena.close()


def _copy_parts(target: memoryview, serialized: Serialized) -> None:
    for offset, part in serialized.parts():
        copy_into(
            target[offset : offset + len(part)]
            if isinstance(part, bytes)
            else target[offset : offset + part.nbytes],
            part,
        )
