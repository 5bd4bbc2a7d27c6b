"""Connections to other processes' control threads, and the ownership messages on them.

Every process listens; its I/O thread accepts. Connections of kind "peer" carry ownership, cancelling and
queries and are served here even while user code computes. Connections of kind "calls" are handed to the
executor, those of kind "door" to the loop of `core.doors`. A process whose peer connection breaks is dead
to us: its holds end.

Lives here: accepting, connecting, dispatch of peer messages. Does not: what cancelling does (executor),
the counts (ownership.table).
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from retinue.core.errors import AuthenticationError
from retinue.core.transport import endpoints
from retinue.core.transport.threads import Connection, Watcher
from retinue.core.wire.failures import to_failure
from retinue.core.wire.handshake import HANDSHAKE_TIMEOUT_S, ServerHandshake
from retinue.core.wire.messages import Address, DoorWelcome, Failure, Hello

if TYPE_CHECKING:
    from retinue.core.client.runtime import Runtime

logger = logging.getLogger(__name__)

Handler = Callable[[Connection, Any, bytes], None]


class Peers:
    """The process's listening sockets and its control connections to other processes."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._io = runtime.io
        self.handlers: dict[type, Handler] = {}
        self.adopt_calls: Callable[[Connection], None] | None = None  # set by a worker's executor
        self.adopt_door: Callable[[socket.socket, Hello], None] | None = None  # set where doors are open
        self._connections: dict[bytes, Connection] = {}  # outgoing, by worker id
        self._accepted: set[Connection] = set()
        self._connecting: dict[bytes, list[Callable[[Connection | None], None]]] = {}
        self._lock = threading.Lock()
        self._listeners: list[tuple[socket.socket, Watcher]] = []
        self._arriving: set[socket.socket] = set()  # proven on a thread of their own, not taken over yet

    # --- accepting

    def listen(self, listener: socket.socket) -> None:
        watcher = Watcher(listener.fileno(), lambda: self._accept(listener))
        self._listeners.append((listener, watcher))
        self._io.watch(watcher, add=select.EPOLLIN)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                logger.warning("could not accept a connection: %s", error)
                self._pause(listener)
                return
            if sock.family == socket.AF_UNIX:
                self._serve(sock, b"")
            else:
                # The proof takes a round trip: never on the I/O thread.
                threading.Thread(
                    target=self._prove, args=(sock,), name="retinue-handshake", daemon=True
                ).start()

    def _pause(self, listener: socket.socket) -> None:
        """Out of descriptors, probably: the event would come again at once, and for ever."""
        watcher = next(w for sock, w in self._listeners if sock is listener)
        self._io.watch(watcher, remove=select.EPOLLIN)
        self._io.call_later(0.1, lambda: self._io.watch(watcher, add=select.EPOLLIN))

    def _prove(self, sock: socket.socket) -> None:
        handshake = ServerHandshake(self._runtime.token)
        sock.settimeout(HANDSHAKE_TIMEOUT_S)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while not handshake.is_done:
                chunk = sock.recv(4096)
                if not chunk:
                    raise ConnectionError("closed during the handshake")
                answer = handshake.feed(chunk)
                if answer:
                    sock.sendall(answer)
        except (OSError, AuthenticationError) as error:
            logger.warning("refused a connection: %s", error)
            sock.close()
            return
        self.take_over(sock, lambda: self._serve(sock, handshake.rest))

    def take_over(self, sock: socket.socket, then: Callable[[], None]) -> None:
        """Bring a socket from a thread of its own to the I/O thread; if that has ended, close it."""

        def arrived() -> None:
            if sock in self._arriving:
                self._arriving.discard(sock)
                then()

        self._arriving.add(sock)
        self._io.post(arrived)
        if self._runtime.is_stopping:
            self._close_arriving()

    def _close_arriving(self) -> None:
        while self._arriving:
            try:
                self._arriving.pop().close()
            except KeyError:
                return  # another thread was faster

    def _serve(self, sock: socket.socket, rest: bytes) -> None:
        connection = Connection(self._io, sock, self._first_message, self._accepted_lost)
        self._accepted.add(connection)
        self._io.watch(connection, add=select.EPOLLIN)
        if rest:
            connection.inbox.append(rest)
            with connection.read_lock:  # the Hello in it may hand the connection to another reader
                connection.process()

    def _first_message(self, connection: Connection, message: Any, payload: bytes) -> None:
        if type(message) is not Hello:
            raise ConnectionError(f"expected Hello first, got {type(message).__name__}")
        connection.hello = message
        if message.kind == "calls" and self.adopt_calls is not None:
            self._io.watch(connection, remove=select.EPOLLIN)
            self._accepted.discard(connection)
            self.adopt_calls(connection)
        elif message.kind == "door":
            self._hand_to_doors(connection, message)
        else:
            connection.on_message = self._on_message

    def _hand_to_doors(self, connection: Connection, hello: Hello) -> None:
        """To the loop that has this process's doors; the caller sends nothing until that welcomes him."""
        if self.adopt_door is None:
            connection.hello = None  # its end says nothing about that process
            connection.send(DoorWelcome(0.0, "no door is open in this process"))
            connection.close()
            return
        self._accepted.discard(connection)
        self.adopt_door(connection.detach(), hello)

    def _accepted_lost(self, connection: Connection) -> None:
        self._accepted.discard(connection)
        if connection.hello is not None:
            self._runtime.process_gone(connection.hello.sender.worker_id)

    # --- connecting

    def connect(self, address: Address, then: Callable[[Connection | None], None]) -> None:
        """Have a control connection to a process; `then` gets it, or None if nobody listens there.

        Any thread; `then` may run at once, or later on the I/O thread.
        """
        with self._lock:
            existing = self._connections.get(address.worker_id)
            is_open = existing is not None and not existing.is_closed
            if not is_open:
                waiting = self._connecting.get(address.worker_id)
                if waiting is not None:
                    waiting.append(then)
                    return
                self._connecting[address.worker_id] = [then]
        if is_open:
            then(existing)
        else:
            self._io.post(lambda: self._open(address))

    def _open(self, address: Address) -> None:
        open_connection(
            self._runtime,
            address,
            "peer",
            self._on_message,
            self._outgoing_lost,
            lambda c: self._opened(address, c),
        )

    def _opened(self, address: Address, connection: Connection | None) -> None:
        with self._lock:
            if connection is not None:
                self._connections[address.worker_id] = connection
                connection.context = address.worker_id
            waiting = self._connecting.pop(address.worker_id, [])
        if connection is not None:
            self._io.watch(connection, add=select.EPOLLIN)
        for then in waiting:
            self._io.guard(lambda then=then: then(connection))  # type: ignore[misc]

    def _outgoing_lost(self, connection: Connection) -> None:
        with self._lock:
            if self._connections.get(connection.context) is connection:
                del self._connections[connection.context]
        self._runtime.process_gone(connection.context)

    def send(self, address: Address, message: Any, payload: bytes = b"") -> None:
        """Send one-way; lost if the process is gone."""
        self.connect(address, lambda c: c.send(message, payload) if c is not None else None)

    def request(
        self, address: Address, message: Any, on_response: Callable[[Any, bytes], None], payload: bytes = b""
    ) -> None:
        """Ask; a process that is gone answers with a Failure of kind ConnectionError."""

        def go(connection: Connection | None) -> None:
            if connection is None:
                on_response(Failure(0, "ConnectionError", "the process is gone"), b"")
            else:
                connection.request(message, on_response, payload)

        self.connect(address, go)

    # --- messages

    def _on_message(self, connection: Connection, message: Any, payload: bytes) -> None:
        if type(message) is Hello:
            return
        handler = self.handlers.get(type(message))
        if handler is None:
            raise ConnectionError(f"no handler for {type(message).__name__} on a peer connection")
        try:
            handler(connection, message, payload)
        except Exception as error:
            # The connection must live: its end would mean to the other side that this process is dead.
            logger.exception("could not handle %s", type(message).__name__)
            rid = getattr(message, "rid", 0)
            if rid:
                connection.send(to_failure(rid, error))

    def close(self) -> None:
        """Stop listening and close every connection; on the I/O thread's end."""
        for listener, watcher in self._listeners:
            self._io.forget(watcher)
            listener.close()
        for connection in (*self._accepted, *self._connections.values()):
            connection.on_close = _ignore
            connection.lost()
        self._close_arriving()


def _ignore(connection: Connection) -> None:
    """Nobody is left to tell."""


def open_connection(
    runtime: Runtime,
    address: Address,
    kind: str,
    on_message: Handler,
    on_close: Callable[[Connection], None],
    then: Callable[[Connection | None], None],
) -> None:
    """Connect and say hello; `then` gets the connection (not watched yet), or None. For the I/O thread.

    A Unix socket answers at once; TCP with its proof runs on a thread of its own and `then` follows on the
    I/O thread.
    """

    def finish(sock: socket.socket, rest: bytes) -> None:
        connection = Connection(runtime.io, sock, on_message, on_close)
        connection.send(Hello(kind, runtime.address, runtime.job_id))
        if rest:
            connection.inbox.append(rest)
        then(connection)

    if address.path and (address.node_id == runtime.node_id or not address.port):
        try:
            sock, rest = endpoints.connect(address, runtime.node_id, runtime.token)
        except OSError:
            then(None)
            return
        finish(sock, rest)
        return

    def work() -> None:
        try:
            sock, rest = endpoints.connect(address, runtime.node_id, runtime.token)
        except (OSError, AuthenticationError) as error:
            logger.info("could not connect to %s: %s", address, error)
            runtime.io.post(lambda: then(None))
            return
        runtime.peers.take_over(sock, lambda: finish(sock, rest))

    threading.Thread(target=work, name="retinue-connect", daemon=True).start()
