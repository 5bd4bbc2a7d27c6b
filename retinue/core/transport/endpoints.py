"""Sockets: listening and connecting, Unix on one node and TCP between nodes.

Lives here: making sockets, choosing between an address's path and its port, the blocking client side of
the TCP handshake. Does not: frames.
"""

from __future__ import annotations

import os
import socket

from retinue.core.wire.handshake import CLOSED_IN_HANDSHAKE, HANDSHAKE_TIMEOUT_S, ClientHandshake
from retinue.core.wire.messages import Address

BACKLOG = 4096
# Linux bounds sun_path at 108 bytes; a session folder deep in a test's tmp path would pass that.
MAX_PATH_BYTES = 107
CONNECT_TIMEOUT_S = 10.0


def listen_unix(path: str) -> socket.socket:
    """A non-blocking listening Unix socket at `path`, replacing a stale one."""
    if os.path.exists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _reachable(path) as short:
        listener.bind(short)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def listen_tcp(host: str, port: int = 0) -> socket.socket:
    """A non-blocking listening TCP socket; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def connect(
    address: Address, node_id: bytes, token: bytes, *, timeout_s: float = CONNECT_TIMEOUT_S
) -> tuple[socket.socket, bytes]:
    """A blocking socket connected (and, over TCP, proven) to `address`, and bytes that came after the proof.

    `node_id` is this process's node: processes of one node meet over Unix sockets. Raises OSError
    (nobody listens there) or AuthenticationError.
    """
    if address.path and (address.node_id == node_id or not address.port):
        return connect_unix(address.path, timeout_s=timeout_s), b""
    sock = socket.create_connection((address.host, address.port), timeout=timeout_s)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        rest = prove(sock, token)
    except BaseException:
        sock.close()
        raise
    sock.settimeout(None)
    return sock, rest


def connect_unix(path: str, *, timeout_s: float = CONNECT_TIMEOUT_S) -> socket.socket:
    """A blocking socket connected to `path`, however long that is. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout_s)
    try:
        with _reachable(path) as short:
            sock.connect(short)
    except BaseException:
        sock.close()
        raise
    sock.settimeout(None)
    return sock


def prove(sock: socket.socket, token: bytes) -> bytes:
    """Run the client's side of the handshake on a connected socket; returns bytes beyond it."""
    sock.settimeout(HANDSHAKE_TIMEOUT_S)
    handshake = ClientHandshake(token)
    sock.sendall(handshake.start())
    while not handshake.is_done:
        chunk = sock.recv(4096)
        if not chunk:
            raise ConnectionError(CLOSED_IN_HANDSHAKE)
        answer = handshake.feed(chunk)
        if answer:
            sock.sendall(answer)
    return handshake.rest


class _reachable:
    """`path`, or a way to say it in few bytes (`/proc/self/fd/N/name`) if it is too long for a socket."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._folder = -1

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= MAX_PATH_BYTES:
            return self._path
        folder, name = os.path.split(self._path)
        self._folder = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._folder}/{name}"

    def __exit__(self, *exc: object) -> None:
        if self._folder >= 0:
            os.close(self._folder)
