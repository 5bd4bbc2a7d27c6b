"""Connecting from a loop: over TCP with its proof, without a thread, and never for longer than allowed."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from retinue.core.errors import AuthenticationError
from retinue.core.transport import endpoints, loop
from retinue.core.transport.loop import LoopConnection
from retinue.core.wire.messages import Address, Hello, ListNodes, Ok

HERE = Address(b"w" * 16, b"n" * 16, "")
HELLO = Hello("node", HERE)
TOKEN = b"t" * 32
TIMEOUT_S = 20.0


def port_of(listener: socket.socket) -> Address:
    host, port = listener.getsockname()
    return Address(b"o" * 16, b"m" * 16, "", host, port)


def answer(connection: LoopConnection, message: Any, payload: bytes) -> None:
    if type(message) is ListNodes:
        connection.send(Ok(message.rid), payload)


def ignore(connection: LoopConnection, message: Any, payload: bytes) -> None:
    """What comes is of no interest."""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    listener = endpoints.listen_tcp("127.0.0.1")
    yield listener
    listener.close()


@asynccontextmanager
async def served(listener: socket.socket) -> AsyncIterator[Address]:
    address = port_of(listener)
    server = await loop.serve(listener, answer, token=TOKEN)
    try:
        yield address
    finally:
        server.close()


def test_a_proven_connection_carries_requests_and_needed_no_thread(listener: socket.socket) -> None:
    async def run() -> None:
        threads = threading.active_count()
        async with served(listener) as address:
            connection = await loop.connect(address, HELLO, TOKEN, ignore)
            async with asyncio.timeout(TIMEOUT_S):
                _, payload = await connection.request(ListNodes(0), b"x" * 100_000)
            assert payload == b"x" * 100_000
            assert threading.active_count() == threads
            connection.close()

    asyncio.run(run())


def test_another_token_is_refused_before_anything_is_sent(listener: socket.socket) -> None:
    async def run() -> None:
        async with served(listener) as address:
            with pytest.raises(AuthenticationError, match="another cluster token"):
                await loop.connect(address, HELLO, b"u" * 32, ignore)

    asyncio.run(run())


def test_a_peer_that_never_answers_costs_the_timeout_and_the_loop_runs_on(listener: socket.socket) -> None:
    async def run() -> None:
        address = port_of(listener)  # the kernel accepts; nobody reads
        connecting = asyncio.create_task(loop.connect(address, HELLO, TOKEN, ignore, timeout_s=0.2))
        steps = 0
        while not connecting.done():
            await asyncio.sleep(0)
            steps += 1
        assert steps > 1
        with pytest.raises(TimeoutError):
            await connecting

    threads = threading.active_count()
    asyncio.run(run())
    assert threading.active_count() == threads


def test_a_full_backlog_costs_the_timeout_as_well() -> None:
    async def run() -> None:
        with socket.socket() as deaf, socket.socket() as first, socket.socket() as second:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(0)
            address = port_of(deaf)
            for sock in (first, second):
                sock.setblocking(False)
                sock.connect_ex((address.host, address.port))
            with pytest.raises(TimeoutError):
                await loop.connect(address, HELLO, TOKEN, ignore, timeout_s=0.2)

    asyncio.run(run())


def test_a_peer_that_leaves_during_the_handshake_is_an_error(listener: socket.socket) -> None:
    async def run() -> None:
        address = port_of(listener)
        connecting = asyncio.create_task(loop.connect(address, HELLO, TOKEN, ignore))
        sock, _ = await asyncio.get_running_loop().sock_accept(listener)
        sock.close()
        with pytest.raises(ConnectionError):
            await connecting

    asyncio.run(run())


def test_a_port_where_nobody_listens_is_an_error(listener: socket.socket) -> None:
    address = port_of(listener)
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(loop.connect(address, HELLO, TOKEN, ignore))
