"""Pulling from several sources: examples, then whole networks with random deaths."""

import random
from collections.abc import Iterator

import pytest

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


class FixedStart(random.Random):
    def randrange(self, *_: int) -> int:  # type: ignore[override]
        return 0


@pytest.fixture
def book() -> Iterator[PullBook]:
    book = PullBook(rng=FixedStart(), chunk_bytes=10, window_chunks=4, run_chunks=2)
    yield book
    book.check_invariants()


def test_one_source_sends_all_within_its_window(book: PullBook) -> None:
    book.start(b"x", 55)
    assert book.source_found(b"x", "n1", is_complete=True) == [
        Fetch("n1", b"x", 0, 2),
        Fetch("n1", b"x", 2, 2),
    ]
    assert book.chunk_range(b"x", 5) == (50, 55)
    assert book.chunk_arrived("n1", b"x", 0) == [Fetch("n1", b"x", 4, 1)]
    assert book.chunk_arrived("n1", b"x", 1) == [Fetch("n1", b"x", 5, 1)]
    for chunk in (2, 3, 4):
        assert book.chunk_arrived("n1", b"x", chunk) == []
    assert book.chunk_arrived("n1", b"x", 5) == [Leave("n1", b"x"), Pulled(b"x")]
    assert b"x" not in book


def test_two_sources_share_the_chunks(book: PullBook) -> None:
    book.start(b"x", 80)
    assert [f.first for f in book.source_found(b"x", "n1", is_complete=True)] == [0, 2]
    assert [f.first for f in book.source_found(b"x", "n2", is_complete=True)] == [4, 6]


def test_chunks_of_a_dead_source_are_asked_of_another(book: PullBook) -> None:
    book.start(b"x", 40)
    book.source_found(b"x", "n1", is_complete=True)
    assert book.source_found(b"x", "n2", is_complete=True) == []
    book.chunk_arrived("n1", b"x", 0)
    assert book.source_lost("n1") == [Fetch("n2", b"x", 1, 2), Fetch("n2", b"x", 3, 1)]


def test_without_a_source_somebody_must_find_one(book: PullBook) -> None:
    book.start(b"x", 20)
    book.source_found(b"x", "n1", is_complete=True)
    book.chunk_arrived("n1", b"x", 0)
    assert book.source_lost("n1") == [NoSource(b"x")]
    assert book.source_found(b"x", "n2", is_complete=True) == [Fetch("n2", b"x", 1, 1)]


def test_partial_sources_alone_are_not_enough(book: PullBook) -> None:
    book.start(b"x", 20)
    book.source_found(b"x", "n1", is_complete=True)
    book.source_found(b"x", "n2", is_complete=False)
    assert NoSource(b"x") in book.source_lost("n1")
    assert not book.has_complete_source(b"x")
    book.chunks_known("n2", b"x", (), is_complete=True)
    assert book.has_complete_source(b"x")


def test_partial_source_is_asked_only_for_what_it_has(book: PullBook) -> None:
    book.start(b"x", 50)
    assert book.source_found(b"x", "n1", is_complete=False) == [Ask("n1", b"x", 0)]
    assert book.chunks_known("n1", b"x", [3, 1], is_complete=False) == [
        Fetch("n1", b"x", 1, 1),
        Fetch("n1", b"x", 3, 1),
        Ask("n1", b"x", 2),
    ]
    assert book.chunk_arrived("n1", b"x", 1) == []
    assert book.chunks_known("n1", b"x", [], is_complete=True) == [
        Fetch("n1", b"x", 4, 1),
        Fetch("n1", b"x", 0, 1),
        Fetch("n1", b"x", 2, 1),
    ]


def test_source_that_has_it_no_more_is_dropped_for_that_object_only(book: PullBook) -> None:
    book.start(b"x", 10)
    book.start(b"y", 10)
    book.source_found(b"x", "n1", is_complete=True)
    book.source_found(b"y", "n1", is_complete=True)
    assert book.source_gone("n1", b"x") == [Leave("n1", b"x"), NoSource(b"x")]
    assert book.chunk_arrived("n1", b"y", 0) == [Leave("n1", b"y"), Pulled(b"y")]


def test_cancelled_pull_ends_when_nothing_is_on_its_way(book: PullBook) -> None:
    book.start(b"x", 50)
    book.source_found(b"x", "n1", is_complete=True)
    assert book.cancel(b"x") == []
    assert book.cancel(b"x") == []
    for chunk in (0, 1, 2):
        assert book.chunk_arrived("n1", b"x", chunk) == []
    assert book.chunk_arrived("n1", b"x", 3) == [Leave("n1", b"x"), PullCancelled(b"x")]
    book.start(b"x", 50)
    assert book.cancel(b"x") == [PullCancelled(b"x")]


def test_cancelled_pull_ends_when_its_last_source_dies(book: PullBook) -> None:
    book.start(b"x", 50)
    book.source_found(b"x", "n1", is_complete=True)
    book.cancel(b"x")
    assert book.source_lost("n1") == [PullCancelled(b"x")]


class Network:
    """Nodes that pull one object from each other. Messages are delivered in random order per link."""

    def __init__(self, rng: random.Random, nodes: int, chunks: int) -> None:
        self.rng = rng
        self.size = chunks * 10 - 3
        self.chunks = chunks
        self.books = {f"n{i}": PullBook(rng=rng, chunk_bytes=10, window_chunks=3) for i in range(1, nodes)}
        self.here: dict[str, list[int]] = {name: [] for name in self.books}
        self.origins = {"origin1", "origin2"}
        self.messages: list[tuple[str, PullDecision]] = []
        self.done: set[str] = set()
        self.sent = {"origin1": 0, "origin2": 0, **dict.fromkeys(self.books, 0)}

    def begin(self) -> None:
        for name, book in self.books.items():
            book.start(b"x", self.size)
            for origin in sorted(self.origins):
                self.carry_out(name, book.source_found(b"x", origin, is_complete=True))
            for other in self.books:
                if other != name:
                    self.carry_out(name, book.source_found(b"x", other, is_complete=False))

    def carry_out(self, name: str, decisions: list[PullDecision]) -> None:
        for decision in decisions:
            match decision:
                case Fetch() | Ask():
                    self.messages.append((name, decision))
                case Pulled():
                    assert sorted(self.here[name]) == list(range(self.chunks))
                    self.done.add(name)
                case NoSource():
                    raise AssertionError("an origin lives")

    def step(self) -> None:
        name, decision = self.messages.pop(self.rng.randrange(len(self.messages)))
        book, source = self.books.get(name), getattr(decision, "source_id", "")
        if book is None:
            return
        is_origin = source in self.origins
        if not is_origin and source not in self.books:
            return  # died; the asker was told
        if isinstance(decision, Fetch):
            for chunk in range(decision.first, decision.first + decision.count):
                assert is_origin or chunk in self.here[source]
                assert chunk not in self.here[name], "a chunk came twice"
                self.here[name].append(chunk)
                self.sent[source] += 1
                self.carry_out(name, book.chunk_arrived(source, b"x", chunk))
        elif isinstance(decision, Ask):
            complete = is_origin or source in self.done
            new = self.here[source][decision.seen :] if not is_origin else []
            if not new and not complete:
                self.messages.append((name, decision))  # a long poll
                return
            self.carry_out(name, book.chunks_known(source, b"x", new, is_complete=complete))
        book.check_invariants()

    def kill(self, victim: str) -> None:
        self.origins.discard(victim)
        self.books.pop(victim, None)
        self.messages = [
            (name, m) for name, m in self.messages if name != victim and getattr(m, "source_id", "") != victim
        ]
        for name, book in list(self.books.items()):
            self.carry_out(name, book.source_lost(victim))


@pytest.mark.parametrize("seed", range(100))
def test_every_living_node_gets_every_chunk_once(seed: int) -> None:
    rng = random.Random(seed)
    network = Network(rng, nodes=rng.randint(3, 7), chunks=rng.randint(1, 60))
    deaths = rng.randint(0, 4)
    network.begin()
    while network.messages:
        network.step()
        if deaths and rng.random() < 0.03:
            deaths -= 1
            network.kill(rng.choice(["origin1", *network.books]))
    assert network.done >= set(network.books)


def test_receivers_relieve_the_origins() -> None:
    network = Network(random.Random(3), nodes=9, chunks=200)
    network.begin()
    while network.messages:
        network.step()
    from_origins = network.sent["origin1"] + network.sent["origin2"]
    assert from_origins < 0.6 * sum(network.sent.values())
