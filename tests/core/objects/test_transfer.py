"""Bulk connections over real sockets: the book, the links and the servers of several nodes together."""

import queue
import random
import socket
import threading
from collections.abc import Iterator

import pytest

from retinue.core.objects import bulk_wire as wire
from retinue.core.objects.arena import Arena
from retinue.core.objects.pull import (
    Ask,
    Fetch,
    Leave,
    NoSource,
    PullBook,
    PullCancelled,
    PullDecision,
    Pulled,
)
from retinue.core.objects.transfer import Fact, Released, SourceGone, SourceLost, Transfers, tell

CHUNK = 4096
OBJECT = b"o" * wire.ID_BYTES
OTHER = b"p" * wire.ID_BYTES


def connect() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    return client, accepted


class Node:
    """An agent's part: objects, the book, the facts as they come."""

    def __init__(self, name: str, chunk_bytes: int = CHUNK) -> None:
        self.name = name
        self.objects: dict[bytes, memoryview] = {}
        self.targets: dict[bytes, memoryview] = {}
        self.facts: queue.SimpleQueue[Fact] = queue.SimpleQueue()
        self.book = PullBook(rng=random.Random(name), chunk_bytes=chunk_bytes)
        self.transfers = Transfers(self.objects.get, self.facts.put, chunk_bytes=chunk_bytes)
        self.ends: dict[bytes, PullDecision] = {}
        self.without_source: list[bytes] = []

    def link_to(self, other: "Node") -> None:
        ours, theirs = connect()
        other.transfers.serve(theirs)
        self.transfers.add_source(other.name, ours)

    def begin(self, size: int, object_id: bytes = OBJECT, target: memoryview | None = None) -> None:
        self.targets[object_id] = memoryview(bytearray(size)) if target is None else target
        self.transfers.begin(object_id, self.targets[object_id])
        self.book.start(object_id, size)

    def find(self, source: str, *, is_complete: bool = True, object_id: bytes = OBJECT) -> None:
        self.carry_out(self.book.source_found(object_id, source, is_complete=is_complete))

    def carry_out(self, decisions: list[PullDecision]) -> None:
        for decision in decisions:
            match decision:
                case Fetch() | Ask() | Leave():
                    self.transfers.carry_out(decision)
                case Pulled():
                    self.objects[decision.object_id] = self.targets[decision.object_id].toreadonly()
                    self.ends[decision.object_id] = decision
                    self.transfers.end(decision.object_id)
                case PullCancelled():
                    self.ends[decision.object_id] = decision
                    self.transfers.end(decision.object_id)
                case NoSource():
                    self.without_source.append(decision.object_id)

    def step(self) -> Fact:
        fact = self.facts.get(timeout=20)
        if not isinstance(fact, Released):
            self.carry_out(tell(self.book, fact))
            self.book.check_invariants()
        return fact

    def run_until_ended(self, object_id: bytes = OBJECT) -> None:
        while object_id not in self.ends:
            self.step()


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    threads = threading.active_count()
    nodes = [Node(name) for name in ("a", "b", "c")]
    yield nodes
    for node in nodes:
        node.transfers.stop()
    assert threading.active_count() == threads


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", [1, CHUNK, CHUNK + 1, 50 * CHUNK - 7])
def test_pulled_objects_are_bit_exact(nodes: list[Node], size: int) -> None:
    a, b, _ = nodes
    a.objects[OBJECT] = memoryview(content(size))
    b.link_to(a)
    b.begin(size)
    b.find("a")
    b.run_until_ended()
    assert b.targets[OBJECT] == content(size)


def test_several_objects_share_a_link(nodes: list[Node]) -> None:
    a, b, _ = nodes
    ids = [bytes([index]) * wire.ID_BYTES for index in range(5)]
    b.link_to(a)
    for index, object_id in enumerate(ids):
        a.objects[object_id] = memoryview(content(10_000 + index))
        b.begin(10_000 + index, object_id)
        b.find("a", object_id=object_id)
    for index, object_id in enumerate(ids):
        b.run_until_ended(object_id)
        assert b.targets[object_id] == content(10_000 + index)


def test_chunks_go_from_arena_to_arena() -> None:
    size = 5 * (1 << 20) + 17
    a, b = Node("a", 1 << 20), Node("b", 1 << 20)
    with Arena.create(8 << 20) as from_arena, Arena.create(8 << 20) as to_arena:
        from_arena.map_writable(64, size)[:] = content(size)
        a.objects[OBJECT] = from_arena.view(64, size)
        b.link_to(a)
        b.begin(size, target=to_arena.map_writable(4096, size))
        b.find("a")
        b.run_until_ended()
        b.transfers.stop()
        a.transfers.stop()
        assert bytes(to_arena.view(4096, size)) == content(size)


def test_receiver_is_a_source_for_others_while_it_receives(nodes: list[Node]) -> None:
    a, b, c = nodes
    size = 40 * CHUNK
    b.link_to(a)
    c.link_to(b)
    a.objects[OBJECT] = memoryview(content(size))
    b.begin(size)
    c.begin(size)
    c.find("b", is_complete=False)  # asks before there is anything
    b.find("a")
    while not c.ends:
        if not b.ends:
            b.step()
        if not c.facts.empty() or b.ends:
            c.step()
    assert c.targets[OBJECT] == content(size)


def test_another_source_takes_over_when_one_dies(nodes: list[Node]) -> None:
    a, b, c = nodes
    size = 200 * CHUNK
    a.objects[OBJECT] = b.objects[OBJECT] = memoryview(content(size))
    c.link_to(a)
    c.link_to(b)
    c.begin(size)
    c.find("a")
    c.find("b")
    c.step()
    a.transfers.stop()
    c.run_until_ended()
    assert c.targets[OBJECT] == content(size)


def test_loss_of_the_last_source_is_told_and_a_new_one_goes_on(nodes: list[Node]) -> None:
    a, b, c = nodes
    size = 400 * CHUNK
    a.objects[OBJECT] = b.objects[OBJECT] = memoryview(content(size))
    c.link_to(a)
    c.begin(size)
    c.find("a")
    c.step()
    c.transfers.remove_source("a")
    while not c.without_source:
        c.step()
    c.link_to(b)
    c.find("b")
    c.run_until_ended()
    assert c.targets[OBJECT] == content(size)


def test_source_without_the_object_says_so_and_can_be_asked_again(nodes: list[Node]) -> None:
    a, b, _ = nodes
    size = 30 * CHUNK
    b.link_to(a)
    b.begin(size)
    b.find("a")
    assert b.step() == SourceGone("a", OBJECT)
    assert b.without_source == [OBJECT]
    a.objects[OBJECT] = memoryview(content(size))
    b.find("a")
    b.run_until_ended()
    assert b.targets[OBJECT] == content(size)


def test_cancelled_pull_writes_nothing_after_its_end(nodes: list[Node]) -> None:
    a, b, _ = nodes
    size = 100 * CHUNK
    a.objects[OBJECT] = memoryview(content(size))
    b.link_to(a)
    b.begin(size)
    b.find("a")
    b.step()
    b.carry_out(b.book.cancel(OBJECT))
    b.run_until_ended()
    assert b.ends[OBJECT] == PullCancelled(OBJECT)
    b.targets[OBJECT][:] = bytes(size)
    b.begin(10, OTHER)  # the link is in order
    a.objects[OTHER] = memoryview(content(10))
    b.find("a", object_id=OTHER)
    b.run_until_ended(OTHER)
    assert bytes(b.targets[OBJECT]) == bytes(size)


def test_served_views_are_let_go_after_the_pull(nodes: list[Node]) -> None:
    a, b, _ = nodes
    dropped = threading.Event()

    class Pin:
        def __del__(self) -> None:
            dropped.set()

    with Arena.create(1 << 20) as arena:
        a.transfers._open_object = lambda _: arena.view(0, 3 * CHUNK, Pin())
        b.link_to(a)
        b.begin(3 * CHUNK)
        b.find("a")
        b.run_until_ended()
        assert dropped.wait(timeout=20)


def test_place_is_released_when_the_last_server_has_sent_from_it() -> None:
    chunk = 16 << 20  # more than the sockets hold: the server is in the middle of it
    node = Node("a", chunk)
    ours, theirs = connect()
    node.transfers.serve(theirs)
    node.begin(chunk)
    incoming = node.transfers._find_incoming(OBJECT)
    assert incoming
    node.transfers._chunk_arrived("x", OBJECT, incoming, 0)
    node.facts.get(timeout=20)
    wire.send(ours, wire.Header(wire.FETCH, OBJECT, 0, 1))
    assert wire.receive(ours) == wire.Header(wire.DATA, OBJECT, 0, chunk)
    assert node.transfers.end(OBJECT) is False
    wire.receive_into(ours, memoryview(bytearray(chunk)))
    assert node.facts.get(timeout=20) == Released(OBJECT)
    ours.close()
    node.transfers.stop()


def test_server_ends_a_connection_that_speaks_nonsense(nodes: list[Node]) -> None:
    a, _, _ = nodes
    a.objects[OBJECT] = memoryview(bytes(10))
    for bad in (b"\xff" * 44, wire._HEADER.pack(wire.HAVE, 0, OBJECT, 0), wire._HEADER.pack(1, 5, OBJECT, 7)):
        ours, theirs = connect()
        a.transfers.serve(theirs)
        ours.sendall(bad)
        with pytest.raises(EOFError):
            wire.receive(ours)
        ours.close()


@pytest.mark.parametrize(
    "answer",
    [
        wire.Header(wire.DATA, OTHER, 0, CHUNK),
        wire.Header(wire.DATA, OBJECT, 1, CHUNK),
        wire.Header(wire.DATA, OBJECT, 0, CHUNK + 1),
        wire.Header(wire.HAVE, OBJECT, 0, 0),
        wire.Header(wire.FETCH, OBJECT, 0, 0),
    ],
)
def test_link_ends_when_the_source_speaks_nonsense(nodes: list[Node], answer: wire.Header) -> None:
    _, b, _ = nodes
    ours, theirs = connect()
    b.transfers.add_source("bad", ours)
    b.begin(CHUNK)
    b.find("bad")
    assert wire.receive(theirs).kind == wire.FETCH
    wire.send(theirs, answer)
    fact = b.step()
    assert isinstance(fact, SourceLost)
    assert fact.reason.startswith("BulkProtocolError")
    assert b.without_source == [OBJECT]
    theirs.close()


def test_chunk_numbers_survive_the_wire() -> None:
    ours, theirs = connect()
    ours.sendall(wire.pack_chunks([0, 1, 70_000, 2**32 - 1]))
    assert wire.receive_chunks(theirs, 4) == (0, 1, 70_000, 2**32 - 1)
    with pytest.raises(wire.BulkProtocolError):
        wire.receive_chunks(theirs, wire.MAX_HAVE + 1)
    ours.close()
    theirs.close()
