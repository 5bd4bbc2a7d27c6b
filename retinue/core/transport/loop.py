"""The shell for event loops: head, node agent, async actors, libraries' doors.

A `LoopConnection` is an asyncio Protocol over the wire's frames: messages in by callback, requests
answered by futures. TCP connections prove the token first. Lives here: that, and starting servers.
Does not: what any message means.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Callable
from typing import Any

from retinue.core.errors import AuthenticationError
from retinue.core.transport import endpoints
from retinue.core.wire.failures import to_exception
from retinue.core.wire.framing import FrameDecoder, ProtocolError, encode
from retinue.core.wire.handshake import (
    CLOSED_IN_HANDSHAKE,
    HANDSHAKE_TIMEOUT_S,
    ClientHandshake,
    ServerHandshake,
)
from retinue.core.wire.messages import Address, Failure, Hello, Message, Response

logger = logging.getLogger(__name__)

OnMessage = Callable[["LoopConnection", Any, bytes], None]
OnClose = Callable[["LoopConnection"], None]


class ConnectionLostError(ConnectionError):
    """The connection ended before the answer came."""


class LoopConnection(asyncio.Protocol):
    """One connection on the running loop.

    `on_message(connection, message, payload)` gets everything but responses. `on_close(connection)` is
    called once. `hello` is the peer's, once it came. Both may be replaced while it runs. An exception
    in `on_message` closes this connection and is logged: it never ends the loop.
    """

    def __init__(
        self,
        on_message: OnMessage,
        on_close: OnClose | None = None,
        *,
        handshake: ServerHandshake | ClientHandshake | None = None,
    ) -> None:
        self.on_message = on_message
        self.on_close = on_close
        self.hello: Hello | None = None
        self.is_closed = False
        self.context: Any = None  # whatever the server wants to remember about the peer
        self._transport: asyncio.Transport | None = None
        self._decoder = FrameDecoder()
        self._rids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[Any, bytes]]] = {}
        self._handshake = handshake
        self._handshake_timer: asyncio.TimerHandle | None = None
        self._proven: asyncio.Future[None] | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        if self._handshake is not None:
            loop = asyncio.get_running_loop()
            self._handshake_timer = loop.call_later(HANDSHAKE_TIMEOUT_S, self.close)
        if isinstance(self._handshake, ClientHandshake):
            self._proven = asyncio.get_running_loop().create_future()
            self._transport.write(self._handshake.start())  # type: ignore[union-attr]

    async def wait_proven(self) -> None:
        """Wait until both sides of an outgoing TCP connection have proven their token.

        Raises AuthenticationError, or ConnectionError if the other side leaves before it has.
        """
        if self._proven is not None:
            await self._proven

    def data_received(self, data: bytes) -> None:
        if self._handshake is not None:
            data = self._prove(data)
            if not data:
                return
        self._decoder.feed(data)
        try:
            for message, payload in self._decoder.frames():
                if isinstance(message, Response):
                    future = self._waiting.pop(message.rid, None)  # type: ignore[attr-defined]
                    if future is not None and not future.done():
                        future.set_result((message, payload))
                elif self.hello is None and type(message) is Hello:
                    self.hello = message
                    self.on_message(self, message, payload)
                else:
                    self.on_message(self, message, payload)
                if self.is_closed:
                    return
        except ProtocolError as error:
            logger.warning("closing a connection from %s: %s", self.peer_name(), error)
            self.close()
        except Exception:
            logger.exception(
                "closing the connection from %s: its message could not be handled", self.peer_name()
            )
            self.close()

    def _prove(self, data: bytes) -> bytes:
        assert self._handshake is not None
        assert self._transport is not None
        try:
            answer = self._handshake.feed(data)
        except AuthenticationError as error:
            if self._proven is None:
                logger.warning("refused a connection from %s: %s", self.peer_name(), error)
            elif not self._proven.done():
                self._proven.set_exception(error)
            self.close()
            return b""
        if answer:
            self._transport.write(answer)
        if not self._handshake.is_done:
            return b""
        rest = self._handshake.rest
        self._handshake = None
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
        if self._proven is not None and not self._proven.done():
            self._proven.set_result(None)
        return rest

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed()

    def _closed(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
        if self._proven is not None and not self._proven.done():
            self._proven.set_exception(ConnectionLostError(CLOSED_IN_HANDSHAKE))
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(ConnectionLostError(f"lost the connection to {self.peer_name()}"))
        if self.on_close is not None:
            self.on_close(self)

    # use

    def send(self, message: Message, payload: bytes | bytearray | memoryview = b"") -> None:
        """Send, or buffer what the kernel does not take. Ignored once closed: `on_close` tells."""
        if not self.is_closed and self._transport is not None:
            self._transport.write(encode(message, payload))

    def send_frame(self, frame: bytes) -> None:
        if not self.is_closed and self._transport is not None:
            self._transport.write(frame)

    def start_request(self, message: Any, payload: bytes = b"") -> asyncio.Future[tuple[Any, bytes]]:
        """Send a request; the future gives (response, payload). A Failure is a result, not an exception."""
        future: asyncio.Future[tuple[Any, bytes]] = asyncio.get_running_loop().create_future()
        if self.is_closed:
            future.set_exception(ConnectionLostError(f"no connection to {self.peer_name()}"))
            return future
        message.rid = next(self._rids)
        self._waiting[message.rid] = future
        self.send(message, payload)
        return future

    async def request(self, message: Any, payload: bytes = b"") -> tuple[Any, bytes]:
        """Send a request and wait for (response, payload). A Failure raises the error it names."""
        response, answer = await self.start_request(message, payload)
        if type(response) is Failure:
            raise to_exception(response)
        return response, answer

    def close(self) -> None:
        """Close after what is buffered has been written."""
        if self._transport is not None:
            self._transport.close()
        self._closed()

    def unsent_bytes(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def peer_name(self) -> str:
        if self.hello is not None:
            return f"{self.hello.kind} of {self.hello.sender.worker_id.hex()[:12]}"
        return "an unknown peer"


async def serve(
    listener: socket.socket,
    on_message: OnMessage,
    on_close: OnClose | None = None,
    *,
    token: bytes | None = None,
) -> asyncio.Server:
    """Serve frames on a listening socket (Unix: `token` None; TCP: the token that peers must prove)."""
    loop = asyncio.get_running_loop()

    def make() -> LoopConnection:
        handshake = ServerHandshake(token) if token is not None else None
        return LoopConnection(on_message, on_close, handshake=handshake)

    if listener.family == socket.AF_UNIX:
        return await loop.create_unix_server(make, sock=listener, backlog=endpoints.BACKLOG)
    if token is None:
        raise ValueError("a TCP listener needs a token")
    return await loop.create_server(make, sock=listener, backlog=endpoints.BACKLOG)


async def connect(
    address: Address,
    hello: Hello,
    token: bytes,
    on_message: OnMessage,
    on_close: OnClose | None = None,
    *,
    timeout_s: float = endpoints.CONNECT_TIMEOUT_S,
) -> LoopConnection:
    """Connect, prove the token where needed, and say hello. Raises OSError or AuthenticationError.

    `timeout_s` is for all of it: beyond it comes TimeoutError (an OSError).
    """
    if address.path and (address.node_id == hello.sender.node_id or not address.port):
        # A Unix connect answers at once, or fails.
        sock = endpoints.connect_unix(address.path, timeout_s=timeout_s)
        sock.setblocking(False)
        connection = LoopConnection(on_message)
        await asyncio.get_running_loop().create_unix_connection(lambda: connection, sock=sock)
    else:
        async with asyncio.timeout(timeout_s):
            connection = await _connect_tcp(address, token, on_message)
    if connection.is_closed:
        raise ConnectionLostError("the other side closed the connection at once")
    connection.on_close = on_close
    connection.send(hello)
    return connection


async def _connect_tcp(address: Address, token: bytes, on_message: OnMessage) -> LoopConnection:
    """A connection whose token is proven, without a thread: a dead peer's backlog may keep it waiting."""
    connection = LoopConnection(on_message, handshake=ClientHandshake(token))
    await asyncio.get_running_loop().create_connection(lambda: connection, address.host, address.port)
    try:
        await connection.wait_proven()
    except BaseException:
        connection.close()
        raise
    return connection
