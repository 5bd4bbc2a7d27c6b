"""Doors in this process over real sockets: a host, and connections to it, on one loop."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from retinue.core.doors import Door, DoorConnection, DoorContext
from retinue.core.doors.process import connect_as
from retinue.core.doors.serving import DoorHost
from retinue.core.transport.blocking import NO_NODE
from retinue.core.transport.endpoints import listen_tcp, listen_unix
from retinue.core.wire.framing import FrameDecoder
from retinue.core.wire.handshake import ServerHandshake
from retinue.core.wire.messages import Address, Hello

TIMEOUT_S = 20.0
TOKEN = b"token"


class Room:
    """What a test needs: one process's doors, and others' connections to them."""

    def __init__(self, path: str) -> None:
        self.host = DoorHost()
        self.unix = listen_unix(path)
        self.tcp = listen_tcp("127.0.0.1")
        self.address = Address(b"host".ljust(16), b"node".ljust(16), path, *self.tcp.getsockname())
        self.connections: list[DoorConnection] = []
        self._acceptors = [asyncio.create_task(self._accept(sock)) for sock in (self.unix, self.tcp)]

    async def _accept(self, listener: socket.socket) -> None:
        """What `client.peers` does for a process."""
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listener)
            data = b""
            if listener is self.tcp:
                handshake = ServerHandshake(TOKEN)
                while not handshake.is_done:
                    await loop.sock_sendall(sock, handshake.feed(await loop.sock_recv(sock, 4096)))
                data = handshake.rest
            decoder = FrameDecoder()
            decoder.feed(data or await loop.sock_recv(sock, 4096))
            ((hello, _),) = decoder.frames()
            assert isinstance(hello, Hello)
            assert hello.kind == "door"
            await self.host.adopt(sock, hello)

    def open(self, handler: Any, name: str = "door", **options: Any) -> Door:
        return self.host.open(name, handler, **options)

    async def connect(self, *, is_far: bool = False, **options: Any) -> DoorConnection:
        own = Address(os.urandom(16), NO_NODE if is_far else self.address.node_id, "")
        connection = await connect_as(own, self.address, TOKEN, **options)
        self.connections.append(connection)
        return connection

    async def close(self) -> None:
        for connection in self.connections:
            connection.close()
        self.host.close()
        for acceptor in self._acceptors:
            acceptor.cancel()
        await asyncio.wait(self._acceptors)
        self.unix.close()
        self.tcp.close()


Test = Callable[[Room], Awaitable[None]]


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Test], None]:
    """Run an async test in a room of its own, on both kinds of loop."""

    async def main(test: Test) -> None:
        room = Room(str(tmp_path / "doors.sock"))
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await test(room)
        finally:
            await room.close()
            await asyncio.sleep(0)  # closed transports leave on the next turn

    def run(test: Test) -> None:
        new_loop = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(main(test))

    return run


class Echo:
    """`call` gives the body back; `stream` as many items as the body says; `exchange` each item."""

    load = 7

    async def call(self, method: str, body: bytes, context: DoorContext) -> bytes:
        return body

    async def stream(self, method: str, body: bytes, context: DoorContext) -> AsyncIterator[bytes]:
        for number in range(int(body)):
            yield str(number).encode()

    async def exchange(
        self, method: str, items: AsyncIterator[bytes], context: DoorContext
    ) -> AsyncIterator[bytes]:
        async for item in items:
            yield item


class Held:
    """Calls and streams that wait until they are cancelled or `release` is set; they tell what happened."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.began = asyncio.Semaphore(0)
        self.cancelled = asyncio.Semaphore(0)
        self.contexts: list[DoorContext] = []

    async def call(self, method: str, body: bytes, context: DoorContext) -> bytes:
        self.contexts.append(context)
        self.began.release()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.release()
            raise
        return body

    async def stream(self, method: str, body: bytes, context: DoorContext) -> AsyncIterator[bytes]:
        yield b"first"
        await self.call(method, body, context)
        yield b"last"
