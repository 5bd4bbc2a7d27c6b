"""Nodes that pull from each other: store rooms on one loop, joined by socket pairs, and an owner."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from retinue.core.config import AgentConfig
from retinue.core.node.owners import OwnerRoom
from retinue.core.node.pulling import Pulling
from retinue.core.node.store import StoreRoom
from retinue.core.objects import bulk_wire as wire
from retinue.core.objects.pull import CHUNK_BYTES
from retinue.core.wire.messages import Address, CopyAdded, Locate, Located, PinObject

MIB = 1 << 20
NAME = b"o" * 28
OWNER = Address(b"owner-of-the-obj", b"", "/none")
READER = b"reader-reader-01"
SOURCE = b"A" * 16


class Source:
    """A node that has the object, and sends as many chunks to each receiver as the test allows."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.free = threading.Event()  # without a limit from now on
        self.limits: dict[bytes, int] = {}
        self.threads: list[threading.Thread] = []

    def connect(self, receiver: bytes) -> socket.socket:
        here, there = socket.socketpair()
        thread = threading.Thread(target=self._serve, args=(here, self.limits.get(receiver, 0)))
        self.threads.append(thread)
        thread.start()
        return there

    def _serve(self, sock: socket.socket, limit: int) -> None:
        sent = 0
        with sock:
            while True:
                try:
                    request = wire.receive(sock)
                except (EOFError, OSError):
                    return
                if request.kind == wire.LEAVE:
                    continue
                for chunk in range(request.number, request.number + request.count):
                    if sent >= limit:
                        self.free.wait()
                    data = self.data[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]
                    try:
                        wire.send(sock, wire.Header(wire.DATA, NAME, chunk, len(data)), data)
                    except OSError:
                        return
                    sent += 1


class Owner:
    """Knows who has the object and who pulls it, as `client.ownership` does."""

    is_closed = False

    def __init__(self) -> None:
        self.nodes = [SOURCE]
        self.pulling: list[bytes] = []

    async def request(self, message: Locate) -> tuple[Located, bytes]:
        others = [node for node in self.pulling if node != message.puller]
        if message.puller and message.puller not in self.pulling:
            self.pulling.append(message.puller)
        return Located(0, 2, self.nodes, 0, others), b""

    def send(self, message: object) -> None:
        assert isinstance(message, CopyAdded)
        self.nodes.append(message.node_id)


class Node:
    def __init__(self, name: bytes, folder: Path, cluster: Cluster) -> None:
        self.node_id = name * 16
        path = folder / name.decode()
        path.mkdir()
        address = Address(self.node_id, self.node_id, "", "127.0.0.1", 1)
        config = AgentConfig("c", self.node_id, address, address, b"", str(path), str(path), -1)
        self.room = StoreRoom(budget_bytes=32 * MIB, node_dir=str(path), spill_dir="")
        self.owners = OwnerRoom(config)
        self.owners.connection = self._find_owner  # type: ignore[assignment,method-assign]
        self.pulling = Pulling(config, self.room, self.owners, rng=random.Random(1))
        self.pulling.address_of_node = lambda node_id: Address(node_id, node_id, "", "127.0.0.1", 1)
        self.pulling._connect_blocking = lambda address: cluster.connect(  # type: ignore[method-assign]
            self, address.node_id
        )
        self._owner = cluster.owner
        self.answers: list[Any] = []
        self.room.run()
        self.room.joined(READER, self)  # type: ignore[arg-type]

    async def _find_owner(self, address: Address) -> Any:
        return self._owner

    def send(self, message: object) -> None:
        """What the room tells the reader."""
        self.answers.append(message)

    def pin(self, size: int) -> None:
        self.room.pin(READER, PinObject(1, NAME, size, OWNER, [SOURCE]))

    def read(self) -> bytes:
        (pinned,) = self.answers
        return bytes(self.room.arena.view(pinned.offset, pinned.size))

    def serve(self) -> socket.socket:
        """A bulk connection to this node; returns the puller's end."""
        here, there = socket.socketpair()
        self.pulling._transfers.serve(here)
        return there

    async def close(self) -> None:
        await self.pulling.close()
        self.owners.close()
        await self.room.close()


class Cluster:
    def __init__(self, data: bytes) -> None:
        self.source = Source(data)
        self.owner = Owner()
        self.nodes: dict[bytes, Node] = {}

    def connect(self, node: Node, other: bytes) -> socket.socket:
        return self.source.connect(node.node_id) if other == SOURCE else self.nodes[other].serve()


@asynccontextmanager
async def _cluster(tmp_path: Path, data: bytes, *names: bytes) -> AsyncIterator[tuple[Cluster, list[Node]]]:
    cluster = Cluster(data)
    nodes = [Node(name, tmp_path, cluster) for name in names]
    cluster.nodes = {node.node_id: node for node in nodes}
    try:
        yield cluster, nodes
    finally:
        cluster.source.free.set()
        for node in nodes:
            await node.close()
        for thread in cluster.source.threads:
            thread.join()


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110 - other threads change it
            await asyncio.sleep(0.001)


def _run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


def test_each_receiver_is_at_once_a_source_for_the_others(tmp_path: Path) -> None:
    data = os.urandom(24 * MIB)

    async def scenario() -> None:
        async with _cluster(tmp_path, data, b"B", b"C") as (cluster, (first, second)):
            cluster.source.limits = {first.node_id: 16}  # of 24 chunks, and none for the second
            first.pin(len(data))
            second.pin(len(data))
            await _until(lambda: first.pulling._transfers.sent_bytes > 0)
            assert not first.answers
            cluster.source.free.set()
            await _until(lambda: bool(first.answers and second.answers))
            assert first.read() == second.read() == data

    _run(scenario)


def test_what_is_sent_on_is_not_used_for_something_else_meanwhile(tmp_path: Path) -> None:
    data = os.urandom(8 * MIB)

    async def scenario() -> None:
        async with _cluster(tmp_path, data, b"B") as (cluster, (node,)):
            cluster.source.limits = {node.node_id: 1}
            node.pin(len(data))
            incoming = node.pulling._transfers._incoming
            await _until(lambda: NAME in incoming and bool(incoming[NAME].have))
            (chunk,) = incoming[NAME].have
            slow = node.serve()  # asks for a chunk, and leaves it in the socket for now
            wire.send(slow, wire.Header(wire.FETCH, NAME, chunk, 1))
            await _until(lambda: incoming[NAME].readers == 1)
            cluster.source.free.set()
            await _until(lambda: bool(node.answers))
            node.room.died(READER)  # nobody here wants it any more; and somebody wants all of the store
            node.room.joined(b"writer", node)  # type: ignore[arg-type]
            granted = node.room.books.request_single(b"writer", 1, 32 * MIB, now=0.0)
            assert granted == []
            header = await asyncio.to_thread(wire.receive, slow)
            read = bytearray(header.count)
            await asyncio.to_thread(wire.receive_into, slow, memoryview(read))
            assert read == data[chunk * MIB : (chunk + 1) * MIB]
            await _until(lambda: NAME not in node.room.books)
            slow.close()

    _run(scenario)


def test_a_served_object_is_unpinned_once_its_receiver_leaves(tmp_path: Path) -> None:
    data = os.urandom(3 * MIB)

    async def scenario() -> None:
        async with _cluster(tmp_path, data, b"B") as (cluster, (node,)):
            cluster.source.free.set()
            node.pin(len(data))
            await _until(lambda: bool(node.answers))
            node.room.died(READER)
            assert node.room.books.pinned_bytes in (0, len(data))  # the pull itself may still end
            with node.serve() as receiver:
                wire.send(receiver, wire.Header(wire.FETCH, NAME, 0, 1))
                header = await asyncio.to_thread(wire.receive, receiver)
                await asyncio.to_thread(wire.receive_into, receiver, memoryview(bytearray(header.count)))
                assert node.room.books.pinned_bytes == len(data)
                wire.send(receiver, wire.Header(wire.LEAVE, NAME))
                await _until(lambda: node.room.books.pinned_bytes == 0)

    _run(scenario)
