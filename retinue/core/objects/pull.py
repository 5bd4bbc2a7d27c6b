"""Decide which chunk of which object to ask of which node, while objects stream in from several at once.

Facts come in as method calls, decisions go out as values; `transfer.py` moves the bytes. A source is
*complete* (has the object) or *partial* (is pulling it itself; it is asked only for chunks that it said
it has, so two receivers never wait for each other). Each receiver starts at a random chunk: receivers of
one object soon have different chunks, and the first source sends most of them once.

A chunk is asked of one source at a time: nothing can write into the object after `Pulled`. A source that
dies gives its chunks back to the others.
"""

import random
from collections.abc import Hashable, Iterable

from msgspec import Struct, field

from retinue.core.objects.decisions import ObjectId

SourceId = Hashable

CHUNK_BYTES = 1 << 20  # 3.8 GB/s over TCP on one machine; 64 KiB: 2.8, 16 MiB: 3.4
WINDOW_CHUNKS = 8  # asked of one source at a time: enough to keep 10 ms at 800 MB/s busy
RUN_CHUNKS = 4  # consecutive chunks per request


class Fetch(Struct, frozen=True):
    """Ask the source for `count` chunks from `first` on; answer `chunk_arrived` for each."""

    source_id: SourceId
    object_id: ObjectId
    first: int
    count: int


class Ask(Struct, frozen=True):
    """Ask a partial source which chunks it has beyond the first `seen`; answer `chunks_known`."""

    source_id: SourceId
    object_id: ObjectId
    seen: int


class Leave(Struct, frozen=True):
    """The source may let go of the object: nothing more is asked of it."""

    source_id: SourceId
    object_id: ObjectId


class Pulled(Struct, frozen=True):
    """Every chunk is here and nothing is on its way any more: seal the object."""

    object_id: ObjectId


class PullCancelled(Struct, frozen=True):
    """Nothing is on its way any more: the object's space may go."""

    object_id: ObjectId


class NoSource(Struct, frozen=True):
    """Nobody who has all of it is left: find another (`source_found`) or `cancel`. What has arrived is kept.

    Partial sources alone could wait for each other for ever.
    """

    object_id: ObjectId


PullDecision = Fetch | Ask | Leave | Pulled | PullCancelled | NoSource


class _Source(Struct):
    """What one source has of one object, as a bitmap of chunks."""

    known: int = 0
    seen: int = 0  # how many chunks it has told of, in its order
    is_complete: bool = False
    is_being_asked: bool = False


class _Pull(Struct):
    object_id: ObjectId
    size: int
    chunks: int
    cursor: int
    missing: int  # bitmap: neither here nor asked for
    asked: dict[int, SourceId] = field(default_factory=dict)
    sources: dict[SourceId, _Source] = field(default_factory=dict)
    is_cancelled: bool = False


class PullBook:
    """All pulls of one node."""

    def __init__(
        self,
        *,
        rng: random.Random,
        chunk_bytes: int = CHUNK_BYTES,
        window_chunks: int = WINDOW_CHUNKS,
        run_chunks: int = RUN_CHUNKS,
    ) -> None:
        self._rng = rng
        self._chunk_bytes = chunk_bytes
        self._window = window_chunks
        self._run = run_chunks
        self._pulls: dict[ObjectId, _Pull] = {}  # oldest first: those are served first
        self._on_the_way: dict[SourceId, int] = {}  # chunks asked of each source, all objects together

    def start(self, object_id: ObjectId, size: int) -> None:
        """Begin to pull an object that has its space; name its sources with `source_found`."""
        if object_id in self._pulls or size <= 0:
            raise ValueError(f"cannot start to pull {size} bytes of {object_id.hex()}")
        chunks = -(-size // self._chunk_bytes)
        cursor = self._rng.randrange(chunks)
        self._pulls[object_id] = _Pull(object_id, size, chunks, cursor, missing=(1 << chunks) - 1)

    def source_found(
        self, object_id: ObjectId, source_id: SourceId, *, is_complete: bool
    ) -> list[PullDecision]:
        """A node that has the object, or (partial) is pulling it too. Unknown objects are ignored."""
        pull = self._pulls.get(object_id)
        if pull is None or pull.is_cancelled:
            return []
        source = pull.sources.setdefault(source_id, _Source())
        source.is_complete = source.is_complete or is_complete
        return self._ask_for_more(source_id)

    def chunk_arrived(self, source_id: SourceId, object_id: ObjectId, chunk: int) -> list[PullDecision]:
        pull = self._pulls[object_id]
        del pull.asked[chunk]
        self._on_the_way[source_id] -= 1
        if not pull.asked and (pull.is_cancelled or not pull.missing):
            return [*self._finish(pull), *self._ask_for_more(source_id)]
        return self._ask_for_more(source_id)

    def chunks_known(
        self, source_id: SourceId, object_id: ObjectId, chunks: Iterable[int], *, is_complete: bool
    ) -> list[PullDecision]:
        """A source's answer to `Ask`: further chunks that it has, or that it has them all."""
        pull = self._pulls.get(object_id)
        source = pull.sources.get(source_id) if pull is not None else None
        if pull is None or source is None:
            return []
        source.is_being_asked = False
        source.is_complete = source.is_complete or is_complete
        for chunk in chunks:
            source.known |= 1 << chunk
            source.seen += 1
        return self._ask_for_more(source_id)

    def source_gone(self, source_id: SourceId, object_id: ObjectId) -> list[PullDecision]:
        """The source says that it does not have the object (any more); it sends nothing more of it."""
        pull = self._pulls.get(object_id)
        if pull is None or source_id not in pull.sources:
            return []
        return [Leave(source_id, object_id), *self._drop_source(pull, source_id)]

    def source_lost(self, source_id: SourceId) -> list[PullDecision]:
        """The connection is over, and the thread that wrote what came over it has ended."""
        decisions: list[PullDecision] = []
        for pull in list(self._pulls.values()):
            decisions += self._drop_source(pull, source_id)
        self._on_the_way.pop(source_id, None)
        return decisions

    def cancel(self, object_id: ObjectId) -> list[PullDecision]:
        """Give the pull up; PullCancelled follows when the chunks on their way have come. Idempotent."""
        pull = self._pulls.get(object_id)
        if pull is None or pull.is_cancelled:
            return []
        pull.is_cancelled = True
        return [] if pull.asked else self._finish(pull)

    def has_complete_source(self, object_id: ObjectId) -> bool:
        pull = self._pulls.get(object_id)
        return pull is not None and any(source.is_complete for source in pull.sources.values())

    def __contains__(self, object_id: ObjectId) -> bool:
        return object_id in self._pulls

    def chunk_range(self, object_id: ObjectId, chunk: int) -> tuple[int, int]:
        """Start and end of a chunk within its object, in bytes."""
        start = chunk * self._chunk_bytes
        return start, min(start + self._chunk_bytes, self._pulls[object_id].size)

    def check_invariants(self) -> None:
        on_the_way: dict[SourceId, int] = {}
        for pull in self._pulls.values():
            assert not any(pull.missing >> chunk & 1 for chunk in pull.asked), "asked for and missing"
            assert pull.missing >> pull.chunks == 0
            assert pull.missing or pull.asked or pull.is_cancelled, "complete, and nobody was told"
            for source_id in pull.asked.values():
                assert source_id in pull.sources, "asked of a source that is gone"
                on_the_way[source_id] = on_the_way.get(source_id, 0) + 1
        assert on_the_way == {source: count for source, count in self._on_the_way.items() if count}
        assert all(count <= self._window for count in on_the_way.values())

    def _drop_source(self, pull: _Pull, source_id: SourceId) -> list[PullDecision]:
        if pull.sources.pop(source_id, None) is None:
            return []
        for chunk in [chunk for chunk, source in pull.asked.items() if source == source_id]:
            del pull.asked[chunk]
            self._on_the_way[source_id] -= 1
            pull.missing |= 1 << chunk
        if pull.is_cancelled:
            return [] if pull.asked else self._finish(pull)
        decisions: list[PullDecision] = []
        if not self.has_complete_source(pull.object_id):
            decisions.append(NoSource(pull.object_id))
        for other in list(pull.sources):
            decisions += self._ask_for_more(other)
        return decisions

    def _finish(self, pull: _Pull) -> list[PullDecision]:
        del self._pulls[pull.object_id]
        decisions: list[PullDecision] = [Leave(source_id, pull.object_id) for source_id in pull.sources]
        end = PullCancelled if pull.is_cancelled else Pulled
        return [*decisions, end(pull.object_id)]

    def _ask_for_more(self, source_id: SourceId) -> list[PullDecision]:
        """Fill the source's window, the oldest pull first."""
        decisions: list[PullDecision] = []
        for pull in self._pulls.values():
            source = pull.sources.get(source_id)
            if source is None or pull.is_cancelled:
                continue
            while (room := self._window - self._on_the_way.get(source_id, 0)) > 0:
                run = self._next_run(pull, source, min(room, self._run))
                if run is None:
                    break
                decisions.append(Fetch(source_id, pull.object_id, *run))
                self._mark_asked(pull, source_id, *run)
            may_have_more = pull.missing and not source.is_complete and not source.is_being_asked
            if may_have_more and not pull.missing & source.known:
                source.is_being_asked = True
                decisions.append(Ask(source_id, pull.object_id, source.seen))
        return decisions

    def _next_run(self, pull: _Pull, source: _Source, limit: int) -> tuple[int, int] | None:
        """The next missing chunks that the source has, as (first, count), going round from the cursor."""
        here = pull.missing if source.is_complete else pull.missing & source.known
        if not here:
            return None
        ahead = here >> pull.cursor << pull.cursor
        first = _lowest_bit(ahead or here)
        count = 1
        while count < limit and here >> (first + count) & 1:
            count += 1
        return first, count

    def _mark_asked(self, pull: _Pull, source_id: SourceId, first: int, count: int) -> None:
        for chunk in range(first, first + count):
            pull.asked[chunk] = source_id
            pull.missing ^= 1 << chunk
        pull.cursor = (first + count) % pull.chunks
        self._on_the_way[source_id] = self._on_the_way.get(source_id, 0) + count


def _lowest_bit(bits: int) -> int:
    return (bits & -bits).bit_length() - 1
