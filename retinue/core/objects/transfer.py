"""Moves objects between machines: threads over connected, authenticated, blocking TCP sockets.

One thread per connection. A *link* pulls from one source: it sends what `PullBook` decides and receives
straight into the object's place. A *server* answers another node's link from the arena, also with chunks of
objects that are still being pulled here. Blocking sockets in threads keep the GIL and the agent's loop free:
3.8 GB/s over TCP on one machine, where one transfer would fill the loop.

Facts go to the agent as values through one callback, called in these threads; `tell` passes them to the book.
Lives here: sockets' threads, chunks in, chunks out. Does not: choosing sources and chunks (`pull`), space
and pins (`store`), handshakes, the bytes on the wire (`bulk_wire`).
"""

import logging
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable

from msgspec import Struct, field

from retinue.core.objects import bulk_wire as wire
from retinue.core.objects.decisions import ObjectId
from retinue.core.objects.pull import CHUNK_BYTES, Ask, Fetch, Leave, PullBook, PullDecision, SourceId

logger = logging.getLogger(__name__)

NEWS_WAIT_MS = 20  # how long a partial source waits for its next chunk before it answers "nothing new"


class ChunkArrived(Struct, frozen=True):
    source_id: SourceId
    object_id: ObjectId
    chunk: int


class ChunksKnown(Struct, frozen=True):
    source_id: SourceId
    object_id: ObjectId
    chunks: tuple[int, ...]
    is_complete: bool


class SourceGone(Struct, frozen=True):
    source_id: SourceId
    object_id: ObjectId


class SourceLost(Struct, frozen=True):
    """The link has ended; nothing more is written by it."""

    source_id: SourceId
    reason: str


class Released(Struct, frozen=True):
    """No server sends from a place that was ended (`Transfers.end`) any more: its space may go."""

    object_id: ObjectId


PullFact = ChunkArrived | ChunksKnown | SourceGone | SourceLost
Fact = PullFact | Released
Report = Callable[[Fact], object]

OpenObject = Callable[[ObjectId], memoryview | None]
"""A view of an object that is here, pinned while the view lives; None if it is not. May block, not long."""


def tell(book: PullBook, fact: PullFact) -> list[PullDecision]:
    """Pass a fact on to the pure half; returns what follows from it."""
    match fact:
        case ChunkArrived():
            return book.chunk_arrived(fact.source_id, fact.object_id, fact.chunk)
        case ChunksKnown():
            return book.chunks_known(
                fact.source_id, fact.object_id, fact.chunks, is_complete=fact.is_complete
            )
        case SourceGone():
            return book.source_gone(fact.source_id, fact.object_id)
        case SourceLost():
            return book.source_lost(fact.source_id)


class _Incoming(Struct, eq=False):
    """An object that is being pulled: where it goes, and which chunks are there, in their order."""

    target: memoryview
    arrived: list[int] = field(default_factory=list)
    have: set[int] = field(default_factory=set)
    readers: int = 0
    is_over: bool = False


class Transfers:
    """All bulk connections of one node. Call its methods from the agent's thread; none but `stop` waits."""

    def __init__(self, open_object: OpenObject, report: Report, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        """Both sides of a connection must use the same `chunk_bytes`."""
        self._open_object = open_object
        self._report = report
        self.chunk_bytes = chunk_bytes
        self._changed = threading.Condition()  # guards what follows, and tells of arrivals
        self._incoming: dict[ObjectId, _Incoming] = {}
        self._links: dict[SourceId, _Link] = {}
        self._servers: dict[threading.Thread, socket.socket] = {}
        self._is_stopped = False
        self.sent_bytes = 0  # to other nodes, since the start

    # Pulling

    def add_source(self, source_id: SourceId, sock: socket.socket) -> None:
        """Pull from this node over this connection from now on; takes the socket over."""
        link = _Link(self, source_id, sock)
        with self._changed:
            self._links[source_id] = link
        link.thread.start()

    def remove_source(self, source_id: SourceId) -> None:
        """End the link; SourceLost follows when its thread has ended."""
        if (link := self._links.get(source_id)) is not None:
            link.close()

    def begin(self, object_id: ObjectId, target: memoryview) -> None:
        """The object's chunks go to `target`, which must stay mapped until `end` says so."""
        with self._changed:
            self._incoming[object_id] = _Incoming(target)

    def carry_out(self, decision: Fetch | Ask | Leave) -> None:
        """Do what the book decided. A link that is gone ignores it: SourceLost is on its way."""
        if (link := self._links.get(decision.source_id)) is not None:
            link.commands.put(decision)

    def end(self, object_id: ObjectId) -> bool:
        """After Pulled (and the seal) or PullCancelled: forget the target.

        True if it may be unmapped and unpinned or aborted now; else Released will say when: until then a
        server still sends from it.
        """
        with self._changed:
            incoming = self._incoming.pop(object_id)
            incoming.is_over = True
            self._changed.notify_all()
            return incoming.readers == 0

    # Serving

    def serve(self, sock: socket.socket) -> None:
        """Answer another node's link over this connection; takes the socket over."""
        thread = threading.Thread(target=self._serve, args=(sock,), name="object-server", daemon=True)
        with self._changed:
            self._servers[thread] = sock
        thread.start()

    def stop(self) -> None:
        """End every connection and wait for the threads. `open_object` must return meanwhile."""
        with self._changed:
            self._is_stopped = True
            links, servers = list(self._links.values()), dict(self._servers)
            self._changed.notify_all()
        for link in links:
            link.close()
        for sock in servers.values():
            _shut_down(sock)
        for thread in (*servers, *(link.thread for link in links)):
            thread.join()

    # In the links' threads

    def _chunk_arrived(
        self, source_id: SourceId, object_id: ObjectId, incoming: _Incoming, chunk: int
    ) -> None:
        with self._changed:
            incoming.arrived.append(chunk)
            incoming.have.add(chunk)
            self._changed.notify_all()
        self._report(ChunkArrived(source_id, object_id, chunk))

    def _link_ended(self, link: "_Link", reason: str) -> None:
        with self._changed:
            if self._links.get(link.source_id) is link:
                del self._links[link.source_id]
        self._report(SourceLost(link.source_id, reason))

    def _find_incoming(self, object_id: ObjectId) -> _Incoming | None:
        with self._changed:
            return self._incoming.get(object_id)

    # In the servers' threads

    def _serve(self, sock: socket.socket) -> None:
        session = _Session(self, sock)
        try:
            while True:
                session.answer(wire.receive(sock))
        except (OSError, EOFError) as error:
            logger.debug("bulk connection ended: %s", error)
        except wire.BulkProtocolError as error:
            logger.warning("bulk connection closed: %s", error)
        finally:
            sock.close()
            with self._changed:
                del self._servers[threading.current_thread()]

    def _start_reading(self, object_id: ObjectId, chunks: range) -> _Incoming | None:
        """The object's place if it is being pulled and all these chunks are here; `_stop_reading` follows."""
        with self._changed:
            incoming = self._incoming.get(object_id)
            if incoming is None or not incoming.have.issuperset(chunks):
                return None
            incoming.readers += 1
            return incoming

    def _stop_reading(self, object_id: ObjectId, incoming: _Incoming) -> None:
        with self._changed:
            incoming.readers -= 1
            is_released = incoming.is_over and incoming.readers == 0
        if is_released:
            self._report(Released(object_id))

    def _chunk_sent(self, size: int) -> None:
        with self._changed:
            self.sent_bytes += size

    def _news_of(self, object_id: ObjectId, seen: int, wait_s: float) -> list[int] | None:
        """Chunks that arrived after the first `seen`, after a short wait if none; None: not being pulled."""
        with self._changed:
            incoming = self._incoming.get(object_id)
            if incoming is None:
                return None
            self._changed.wait_for(
                lambda: len(incoming.arrived) > seen or incoming.is_over or self._is_stopped, wait_s
            )
            return None if incoming.is_over else incoming.arrived[seen : seen + wire.MAX_HAVE]


class _Session:
    """One served connection: which objects it reads and which it was told are gone."""

    def __init__(self, transfers: Transfers, sock: socket.socket) -> None:
        self._transfers = transfers
        self._sock = sock
        self._views: dict[ObjectId, memoryview] = {}
        self._gone: set[ObjectId] = set()

    def answer(self, request: wire.Header) -> None:
        object_id = request.object_id
        if request.kind == wire.LEAVE:
            self._views.pop(object_id, None)
            self._gone.discard(object_id)
        elif object_id in self._gone:
            wire.send(self._sock, wire.Header(wire.GONE, object_id))
        elif request.kind == wire.FETCH:
            self._answer_fetch(request)
        elif request.kind == wire.ASK:
            self._answer_ask(request)
        else:
            raise wire.BulkProtocolError(f"a puller sent a message of kind {request.kind}")

    def _answer_fetch(self, request: wire.Header) -> None:
        object_id = request.object_id
        chunks = range(request.number, request.number + request.count)
        incoming = self._transfers._start_reading(object_id, chunks)
        if incoming is not None:
            try:
                self._send_chunks(object_id, incoming.target, chunks)
            finally:
                self._transfers._stop_reading(object_id, incoming)
        elif (view := self._open(object_id)) is not None:
            self._send_chunks(object_id, view, chunks)
        else:
            self._say_gone(object_id)

    def _send_chunks(self, object_id: ObjectId, view: memoryview, chunks: range) -> None:
        size = self._transfers.chunk_bytes
        for chunk in chunks:
            data = view[chunk * size : (chunk + 1) * size]
            if not data:
                raise wire.BulkProtocolError(f"chunk {chunk} of an object of {len(view)} bytes")
            wire.send(self._sock, wire.Header(wire.DATA, object_id, chunk, len(data)), data)
            self._transfers._chunk_sent(len(data))

    def _answer_ask(self, request: wire.Header) -> None:
        object_id = request.object_id
        news = self._transfers._news_of(object_id, request.number, request.count / 1000)
        if news is not None:
            header = wire.Header(wire.HAVE, object_id, 0, len(news))
            wire.send(self._sock, header, wire.pack_chunks(news))
        elif self._open(object_id) is not None:
            wire.send(self._sock, wire.Header(wire.HAVE, object_id, 1, 0))
        else:
            self._say_gone(object_id)

    def _open(self, object_id: ObjectId) -> memoryview | None:
        view = self._views.get(object_id)
        if view is None and (view := self._transfers._open_object(object_id)) is not None:
            self._views[object_id] = view
        return view

    def _say_gone(self, object_id: ObjectId) -> None:
        self._gone.add(object_id)
        wire.send(self._sock, wire.Header(wire.GONE, object_id))


class _Pending(Struct):
    """A request that was sent and not fully answered."""

    object_id: ObjectId
    incoming: _Incoming
    is_ask: bool
    next: int = 0
    end: int = 0


class _Link:
    """The thread that pulls from one source. Requests are few and small: sending them never blocks long."""

    def __init__(self, transfers: Transfers, source_id: SourceId, sock: socket.socket) -> None:
        self.source_id = source_id
        self.commands: queue.SimpleQueue[Fetch | Ask | Leave | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="object-link", daemon=True)
        self._transfers = transfers
        self._sock = sock
        self._pending: deque[_Pending] = deque()
        self._gone: set[ObjectId] = set()
        self._is_closed = False

    def close(self) -> None:
        self._is_closed = True
        _shut_down(self._sock)
        self.commands.put(None)

    def _run(self) -> None:
        reason = "closed"
        try:
            # While nothing is asked for, a dead peer is not noticed here; the next request notices.
            while (command := self.commands.get()) is not None:
                self._send(command)
                while self._pending:
                    self._receive_answer()
                    self._send_what_came()
        except (OSError, EOFError, wire.BulkProtocolError) as error:
            reason = reason if self._is_closed else f"{type(error).__name__}: {error}"
        finally:
            self._sock.close()
            self._pending.clear()
            self._transfers._link_ended(self, reason)

    def _send_what_came(self) -> None:
        while not self.commands.empty():
            command = self.commands.get()
            if command is None:
                raise EOFError("closed")
            self._send(command)

    def _send(self, command: Fetch | Ask | Leave) -> None:
        object_id = command.object_id
        if isinstance(command, Leave):
            self._gone.discard(object_id)
            wire.send(self._sock, wire.Header(wire.LEAVE, object_id))
            return
        incoming = self._transfers._find_incoming(object_id)
        # Decided before the book learned that the source has it no more: the book takes it back.
        if object_id in self._gone or incoming is None:
            return
        if isinstance(command, Ask):
            self._pending.append(_Pending(object_id, incoming, is_ask=True))
            wire.send(self._sock, wire.Header(wire.ASK, object_id, command.seen, NEWS_WAIT_MS))
        else:
            first, end = command.first, command.first + command.count
            self._pending.append(_Pending(object_id, incoming, is_ask=False, next=first, end=end))
            wire.send(self._sock, wire.Header(wire.FETCH, object_id, first, command.count))

    def _receive_answer(self) -> None:
        header = wire.receive(self._sock)
        pending = self._pending[0]
        if header.object_id != pending.object_id:
            raise wire.BulkProtocolError("an answer for an object that was not asked for")
        if header.kind == wire.GONE:
            self._pending.popleft()
            if pending.object_id not in self._gone:
                self._gone.add(pending.object_id)
                self._transfers._report(SourceGone(self.source_id, pending.object_id))
        elif header.kind == wire.HAVE and pending.is_ask:
            self._pending.popleft()
            chunks = wire.receive_chunks(self._sock, header.count)
            fact = ChunksKnown(self.source_id, pending.object_id, chunks, bool(header.number))
            self._transfers._report(fact)
        elif header.kind == wire.DATA and not pending.is_ask and header.number == pending.next:
            self._receive_chunk(pending, header.count)
        else:
            raise wire.BulkProtocolError(f"unexpected answer of kind {header.kind}")

    def _receive_chunk(self, pending: _Pending, size: int) -> None:
        chunk, step = pending.next, self._transfers.chunk_bytes
        place = pending.incoming.target[chunk * step : (chunk + 1) * step]
        if size != len(place):
            raise wire.BulkProtocolError(f"chunk of {size} bytes where {len(place)} were expected")
        wire.receive_into(self._sock, place)
        pending.next += 1
        if pending.next == pending.end:
            self._pending.popleft()
        self._transfers._chunk_arrived(self.source_id, pending.object_id, pending.incoming, chunk)


def _shut_down(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in it
    except OSError:
        pass  # closed already, or never connected
