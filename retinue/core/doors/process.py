"""This process's doors and its connections to others': what binds direct calls to the runtime.

Lives here: which loop has the doors, how connections come from the process's listening sockets, connecting.
Does not: what happens on a connection (`calling`, `serving`).
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from retinue.core.current import get_runtime
from retinue.core.doors import ledger
from retinue.core.doors.calling import CallerProtocol, DoorConnection
from retinue.core.doors.errors import DoorClosedError
from retinue.core.doors.flow import MAX_ITEM_BYTES
from retinue.core.doors.serving import Door, DoorHost
from retinue.core.transport import endpoints
from retinue.core.wire.framing import encode
from retinue.core.wire.messages import Address, Hello

if TYPE_CHECKING:
    from retinue.core.client.runtime import Runtime

# A process on another machine that has vanished is noticed within about so long, though nothing is sent.
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 10, 3, 4
CONNECT_TIMEOUT_S = 10.0


def open_door(name: str, handler: object, *, max_body_bytes: int = MAX_ITEM_BYTES) -> Door:
    """Answer direct calls to `name` on the running loop, with `handler` (see `DoorHandler`).

    All doors of a process are on one loop. Bodies above `max_body_bytes` are refused. Raises RuntimeError
    without a running loop or on a second one, ValueError if the name is taken, TypeError for a handler that
    can answer nothing.
    """
    return _host_of(get_runtime()).open(name, handler, max_body_bytes=max_body_bytes)


def _host_of(runtime: Runtime) -> DoorHost:
    loop = asyncio.get_running_loop()
    with runtime.lock:
        host = runtime.extensions.get(DoorHost)
        if isinstance(host, DoorHost):
            if host.loop is loop:
                return host
            if not host.loop.is_closed():
                raise RuntimeError("this process has doors on another event loop: all must be on one")
        runtime.extensions[DoorHost] = host = DoorHost()
        runtime.peers.adopt_door = host.adopt_soon
        return host


def own_address() -> Address:
    """Where this process's doors are reached; hand it to whoever shall connect (it can be pickled)."""
    return get_runtime().address


def session_dir() -> str:
    """The session's folder on this node, for logs and the like; it goes when its session does."""
    return get_runtime().session_dir


async def connect(
    address: Address, *, max_item_bytes: int = MAX_ITEM_BYTES, timeout_s: float = CONNECT_TIMEOUT_S
) -> DoorConnection:
    """Connect to the doors of the process at `address`.

    Over a Unix socket on this node, else over TCP with the cluster's token. Replies and items above
    `max_item_bytes` fail their call. Raises DoorClosedError (retryable) if nobody listens there, or no door
    is open, AuthenticationError, TimeoutError.
    """
    runtime = get_runtime()
    return await connect_as(
        runtime.address,
        address,
        runtime.token,
        job_id=runtime.job_id,
        max_item_bytes=max_item_bytes,
        timeout_s=timeout_s,
    )


async def connect_as(
    own: Address,
    address: Address,
    token: bytes,
    *,
    job_id: bytes = b"",
    max_item_bytes: int = MAX_ITEM_BYTES,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> DoorConnection:
    """As `connect`, for a process that says who it is."""
    loop = asyncio.get_running_loop()
    is_near = bool(address.path) and (address.node_id == own.node_id or not address.port)
    async with asyncio.timeout(timeout_s):
        try:
            if is_near:
                # A Unix connect answers at once (or fails); only TCP with its proof needs a thread.
                sock, rest = endpoints.connect(address, own.node_id, token, timeout_s=timeout_s)
            else:
                sock, rest = await asyncio.to_thread(
                    endpoints.connect, address, own.node_id, token, timeout_s=timeout_s
                )
        except OSError as error:
            raise DoorClosedError(
                f"cannot connect to {_where(address)}: {error}", is_retryable=True
            ) from error
        sock.setblocking(False)
        protocol = CallerProtocol(sock, max_item_bytes=max_item_bytes)
        try:
            if is_near:
                sock.sendall(encode(Hello("door", own, job_id)))  # its buffer is empty: it takes that at once
                await _readable(sock)
                rest, protocol.ledger = ledger.receive(sock)
                if not rest:
                    raise DoorClosedError(f"{_where(address)} hung up", is_retryable=True)
                await loop.create_unix_connection(lambda: protocol, sock=sock)
            else:
                _keep_alive(sock)
                await loop.create_connection(lambda: protocol, sock=sock)
                protocol.send_now(Hello("door", own, job_id))
            if rest:
                protocol.data_received(rest)
            await protocol.welcomed
            if not is_near:
                protocol.follow_clock()
                await protocol.ping()
        except BaseException:
            protocol.close()
            sock.close()
            raise
    return DoorConnection(protocol, address)


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, _set, waiter)
    try:
        await waiter
    finally:
        loop.remove_reader(sock)


def _set(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _keep_alive(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    give_up_ms = (KEEPALIVE_IDLE_S + KEEPALIVE_INTERVAL_S * KEEPALIVE_PROBES) * 1000
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, give_up_ms)


def _where(address: Address) -> str:
    return address.path if not address.port else f"{address.host}:{address.port}"
