"""A head in this process over Unix sockets, and peers that a test scripts."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from retinue.core.config import HeadConfig
from retinue.core.head.server import HeadServer
from retinue.core.head.storage import MemoryStorage
from retinue.core.transport.endpoints import listen_unix
from retinue.core.transport.loop import LoopConnection, connect
from retinue.core.wire import messages as m

T = TypeVar("T")
TIMEOUT_S = 10.0


class ScriptedPeer:
    """One connection to the head. What it does not answer by itself is for `expect`."""

    def __init__(self, name: str) -> None:
        self.address = m.Address(name.encode().ljust(16), name.encode().ljust(16), f"/{name}")
        self.connection: LoopConnection
        self.inbox: asyncio.Queue[tuple[Any, bytes]] = asyncio.Queue()

    async def connect(self, head: m.Address) -> "ScriptedPeer":
        self.connection = await connect(
            head, m.Hello("head", self.address), b"", lambda c, msg, body: self.inbox.put_nowait((msg, body))
        )
        return self

    async def ask(self, message: Any, payload: bytes = b"") -> Any:
        return (await self.connection.request(message, payload))[0]

    def tell(self, message: m.Message, payload: bytes = b"") -> None:
        self.connection.send(message, payload)

    async def expect(
        self, kind: type[T], matches: Callable[[T], bool] = lambda message: True
    ) -> tuple[T, bytes]:
        """The next message of this kind that matches; others are dropped."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                message, payload = await self.inbox.get()
                if isinstance(message, kind) and matches(message):
                    return message, payload

    def close(self) -> None:
        self.connection.close()


class ScriptedHead:
    """Heads one after another on one storage and one path."""

    def __init__(self, folder: Path) -> None:
        self.storage = MemoryStorage()
        self.path = str(folder / "head.sock")
        self.address = m.Address(b"head".ljust(16), b"elsewhere".ljust(16), self.path)
        self.server: HeadServer
        self.peers: list[ScriptedPeer] = []

    async def start(self, **config: Any) -> None:
        full = {"register_grace_s": 5.0, "node_grace_s": 5.0, "driver_grace_s": 5.0} | config
        self.server = HeadServer(
            HeadConfig("cluster", self.address, b"token", os.path.dirname(self.path), "", -1, **full),
            self.storage,
        )
        await self.server.start([listen_unix(self.path)])

    async def peer(self, name: str) -> ScriptedPeer:
        peer = await ScriptedPeer(name).connect(self.address)
        self.peers.append(peer)
        return peer

    async def agent(self, name: str, cpus: float = 4.0, **more: Any) -> ScriptedPeer:
        """A registered agent."""
        peer = await self.peer(name)
        info = m.NodeInfo(peer.address.node_id, peer.address, {"CPU": cpus}, {"CPU": cpus})
        await peer.ask(m.RegisterNode(0, info, **more))
        peer.tell(m.NodeReport({"CPU": cpus}))
        return peer

    async def driver(self, name: str = "driver") -> ScriptedPeer:
        peer = await self.peer(name)
        await peer.ask(m.RegisterJob(0, m.JobInfo(b"", peer.address, 1, "main.py", "", 0.0)))
        return peer

    async def stop(self) -> None:
        for peer in self.peers:
            peer.close()
        await self.server.stop()


@pytest.fixture
def run_with_head(tmp_path: Path) -> Callable[[Callable[[ScriptedHead], Any]], None]:
    """Run an async test with a head that has started; afterwards all is closed."""

    def run(test: Callable[[ScriptedHead], Any]) -> None:
        async def main() -> None:
            head = ScriptedHead(tmp_path)
            await head.start()
            try:
                await test(head)
            finally:
                await head.stop()

        asyncio.run(main())

    return run
