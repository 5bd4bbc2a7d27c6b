"""A replica in this process behind a real door, and connections to it as routers have them."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from retinue import cloudpickle
from retinue.core.doors import DoorConnection
from retinue.serve.messages import (
    REPLICA_DOOR,
    CallHead,
    DeploymentSpec,
    HttpHead,
    HttpResponseHead,
    pack,
    unpack,
)
from retinue.serve.payload import dump_call, loads
from retinue.serve.replica.door import ReplicaDoor
from retinue.serve.replica.slots import Slots
from retinue.serve.replica.threads import ThreadPool
from retinue.serve.replica.user_code import UserCode
from tests.core.doors.conftest import Room

TIMEOUT_S = 20.0


def http_body(method: str = "GET", path: str = "/", body: bytes = b"", **fields: Any) -> bytes:
    head = HttpHead(
        method=method,
        path=path,
        raw_path=path.encode(),
        query_string=fields.pop("query_string", b""),
        headers=fields.pop("headers", []),
        **fields,
    )
    return pack(head, body)


def http_reply(reply: Any) -> tuple[int, dict[bytes, bytes], bytes]:
    head, body = unpack(HttpResponseHead, reply)
    return head.status, dict(head.headers), bytes(body)


class Client:
    """A router's end of a connection."""

    def __init__(self, connection: DoorConnection) -> None:
        self.connection = connection

    async def http(self, *args: Any, **fields: Any) -> tuple[int, dict[bytes, bytes], bytes]:
        """A request, and the whole of its answer."""
        reply = await self.connection.ask(REPLICA_DOOR, "http", http_body(*args, **fields), request_id="r1")
        if isinstance(reply, bytes):
            return http_reply(reply)
        items = [item async for item in reply]
        status, headers, first = http_reply(items[0])
        return status, headers, b"".join([first, *items[1:]])

    async def call(self, method: str, *args: Any, head: CallHead | None = None, **kwargs: Any) -> Any:
        body = dump_call(head or CallHead(method), args, kwargs, [])
        return loads(await self.connection.call(REPLICA_DOOR, "handle", body, request_id="r1"))

    async def items(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        body = dump_call(CallHead(method), args, kwargs, [])
        return [loads(item) async for item in self.connection.stream(REPLICA_DOOR, "handle", body)]


class Place:
    """Where a test's replica runs."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.pools: list[ThreadPool] = []
        self.slots: Slots
        self.user: UserCode

    async def start(
        self, definition: Any, *args: Any, limit: int = 100, shows_errors: bool = False
    ) -> Client:
        spec = DeploymentSpec("Model", b"{}", cloudpickle.dumps(definition), cloudpickle.dumps((args, {})))
        self.slots = Slots(limit)
        self.pools.append(pool := ThreadPool(limit, "user"))
        self.user = UserCode(spec, pool)
        await self.user.construct()
        self.app = self.user.make_app()
        door = ReplicaDoor(self.user, self.slots, "app", app=self.app, shows_errors=shows_errors)
        self.room.open(door, REPLICA_DOOR)
        return await self.connect()

    async def connect(self) -> Client:
        return Client(await self.room.connect())

    async def idle(self) -> None:
        await asyncio.wait_for(self.slots.wait_idle(), TIMEOUT_S)


Test = Callable[[Place], Awaitable[None]]


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Test], None]:
    def run_test(test: Test) -> None:
        async def in_a_room() -> None:
            room = Room(str(tmp_path / "socket"))
            place = Place(room)
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    await test(place)
            finally:
                await room.close()
                for pool in place.pools:
                    pool.close()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(in_a_room())

    return run_test
