"""HTTP/1.1 from raw sockets: requests as bytes, connections for the load, one blocking client.

Lives here: bytes in and out, and when they came. Does not: how much load, whether an answer is right.
"""

import asyncio
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self, cast

import httptools

Address = tuple[str, int]
PATH = "/work"  # of every work on every peer: mosec keeps `/` for itself
HttpError = httptools.HttpParserError


def request(
    path: str = PATH, body: bytes | None = None, *, content_type: str = "application/json", **headers: str
) -> bytes:
    """A request in full; a POST if it has a body."""
    method = "GET" if body is None else "POST"
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body is not None:
        lines += [f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def json_request(value: Any, path: str = PATH, **headers: str) -> bytes:
    return request(path, json.dumps(value).encode(), **headers)


@dataclass(slots=True)
class Answer:
    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)  # names in lower case
    body: bytearray = field(default_factory=bytearray)
    first_at: float = 0.0  # by perf_counter, when the first bytes of the body came
    pieces: list[tuple[int, bytes]] = field(default_factory=list)  # (monotonic ns, bytes), if asked for

    @property
    def is_ok(self) -> bool:
        return 200 <= self.status < 300

    def json(self) -> Any:
        return json.loads(self.body)


class Connection(asyncio.Protocol):
    """One connection; `send` one request at a time, `on_end` hears of its answer or of the connection's end.

    `on_end(connection, answer)`; answer None: the connection ended before the answer was complete.
    """

    def __init__(self, on_end: Callable[["Connection", Answer | None], None], *, timed: bool = False) -> None:
        self._on_end = on_end
        self._timed = timed
        self.transport: asyncio.Transport | None = None
        self.answer: Answer | None = None
        self.is_busy = False
        self.is_open = False
        self.sent_at = 0.0
        self.tag: Any = None  # the caller's
        self._parser: Any = httptools.HttpResponseParser(self)

    def send(self, data: bytes) -> None:
        assert self.transport is not None
        self.answer = Answer()
        self.is_busy = True
        self.sent_at = time.perf_counter()
        self.transport.write(data)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    # --- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self.is_busy:
            self._ended(None)

    # --- httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self.answer.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._timed:
            self.answer.pieces.append((time.monotonic_ns(), body))
        self.answer.body += body

    def on_message_complete(self) -> None:
        if self.answer.status == 100:
            return
        if not self._parser.should_keep_alive():
            self.is_open = False
        self._ended(self.answer)

    def _ended(self, answer: Answer | None) -> None:
        self.is_busy = False
        self.answer = None
        self._on_end(self, answer)


async def connect(
    address: Address, on_end: Callable[[Connection, Answer | None], None], *, timed: bool = False
) -> Connection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(on_end, timed=timed), *address)
    return connection


class Client:
    """Requests one after the other on one blocking connection: the least a client can cost."""

    def __init__(self, address: Address, timeout_s: float = 10.0) -> None:
        self._socket = socket.create_connection(address, timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.is_open = True  # False once an answer said that the connection ends
        self._answer = Answer()
        self._is_complete = False
        self.received = 0  # bytes of the latest answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, data: bytes) -> Answer:
        """Send and wait for the whole answer. ConnectionError if it does not come, TimeoutError."""
        self._answer, self._is_complete, self.received = Answer(), False, 0
        self._parser = parser = httptools.HttpResponseParser(self)
        self._socket.sendall(data)
        while not self._is_complete:
            received = self._socket.recv(262144)
            self.received += len(received)
            if not received:
                raise ConnectionError("the server closed the connection before its answer was complete")
            parser.feed_data(received)
        return self._answer

    def on_header(self, name: bytes, value: bytes) -> None:
        self._answer.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if not self._answer.first_at:
            self._answer.first_at = time.perf_counter()
        self._answer.body += body

    def on_message_complete(self) -> None:
        self._is_complete = True
        self.is_open = self._parser.should_keep_alive()


def ask(address: Address, data: bytes, timeout_s: float = 10.0) -> Answer:
    """One request on a connection of its own."""
    with Client(address, timeout_s) as client:
        return client.ask(data)


def ask_size(address: Address, data: bytes) -> int:
    """The size in bytes of the whole answer, head and body, on a connection that stays open."""
    with Client(address) as client:
        client.ask(data)
        return client.received
