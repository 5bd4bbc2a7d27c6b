"""A router in this process and replicas' doors behind real sockets, with everything going wrong at random.

Whatever happens to a request, its slot is given back once, here and at the replica, and it is executed once.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from retinue.core import doors
from retinue.core.doors import DoorContext
from retinue.serve.exceptions import RetinueServeException
from retinue.serve.messages import AGE, REPLICA_DOOR, DeploymentRouting, ReplicaInfo
from retinue.serve.replica.slots import Slots
from retinue.serve.routing.router import RequestMeta, Router
from retinue.serve.routing.streams import RoutedStream
from tests.core.doors.conftest import Room

LIMIT = 3
REQUESTS = 300
TIMEOUT_S = 20.0


class Replica:
    """Its door: answers at once, late, in items or never, or fails; each as the request says."""

    def __init__(self, executed: Counter[str]) -> None:
        self.slots = Slots(LIMIT)
        self._executed = executed

    @property
    def load(self) -> int:
        return self.slots.load

    async def call(self, method: str, body: bytes, context: DoorContext) -> Any:
        if method == "waits":
            self.slots.waits(context.caller, AGE.unpack(body)[0])
            return b""
        if method == "leave":
            self.slots.leave(context.caller)
            return b""
        self.slots.take(context.caller)
        self._executed[context.request_id] += 1
        if body == b"items":
            return self._items()
        try:
            return await self._answer(body)
        finally:
            self.slots.free()

    async def _answer(self, body: bytes) -> bytes:
        if body == b"late":
            await asyncio.sleep(0.003)
        elif body == b"never":
            await asyncio.Event().wait()
        elif body == b"fails":
            raise KeyError("fails")
        return body

    async def _items(self) -> AsyncIterator[bytes]:
        try:
            for number in range(5):
                yield b"%d" % number
                await asyncio.sleep(0)
        finally:
            self.slots.free()

    async def stream(self, method: str, body: bytes, context: DoorContext) -> Any:
        return self.slots.listen(context.caller)

    async def exchange(self, method: str, items: AsyncIterator[bytes], context: DoorContext) -> Any:
        self.slots.take(context.caller)
        self._executed[context.request_id] += 1
        try:
            async for item in items:
                yield item
        finally:
            self.slots.free()


class Routers:
    """What a router needs of its process."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.node_id = "here"

    def report_soon(self) -> None: ...

    def report_now(self, router: Router) -> None: ...


class Chaos:
    def __init__(self, router: Router, seed: int) -> None:
        self.router = router
        self.random = random.Random(seed)
        self.repeatable: set[str] = set()

    async def request(self, number: int) -> None:
        choose = self.random
        await asyncio.sleep(choose.random() * 0.2)
        meta = RequestMeta(
            f"r{number}",
            deadline=time.monotonic() + choose.choice((0.001, 0.01, 0.05)) if choose.random() < 0.3 else 0.0,
            model_id=choose.choice(("", "", "", "m1", "m2")),
            session_id=choose.choice(("", "", "", "s1")),
            may_repeat=choose.random() < 0.3,
        )
        if meta.may_repeat:
            self.repeatable.add(meta.request_id)
        body = choose.choice((b"now", b"now", b"late", b"items", b"never", b"fails"))
        way = choose.choice((self.soon, self.soon, self.ask, self.exchange, self.call))
        if way == self.call and body == b"items":
            body = b"now"
        leaves = body == b"never" or choose.random() < 0.4
        task = asyncio.ensure_future(way(body, meta))
        if leaves:
            for _ in range(choose.choice((0, 1, 2, 3, 5))):
                await asyncio.sleep(0)
            if choose.random() < 0.7:
                await asyncio.sleep(choose.random() * 0.02)
            task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None:
            known = (RetinueServeException, TimeoutError, KeyError, doors.DoorError)
            assert isinstance(error, known), repr(error)

    async def soon(self, body: bytes, meta: RequestMeta) -> None:
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        told: list[Any] = []

        def then(answer: Any, error: BaseException | None) -> None:
            told.append(answer)
            assert len(told) == 1
            if error is not None:
                answered.set_exception(error)
            else:
                answered.set_result(answer)

        asking = self.router.ask_soon("http", body, meta, then)
        try:
            answer = await asyncio.shield(answered)
        except asyncio.CancelledError:
            if not answered.done():
                asking.cancel()
                answered.cancel()
            elif answered.exception() is None and isinstance(answered.result(), RoutedStream):
                await answered.result().aclose()
            raise
        await self.read(answer)

    async def ask(self, body: bytes, meta: RequestMeta) -> None:
        await self.read(await self.router.ask("http", body, meta))

    async def call(self, body: bytes, meta: RequestMeta) -> None:
        await self.router.call("http", body, meta)

    async def exchange(self, body: bytes, meta: RequestMeta) -> None:
        async def rest() -> AsyncIterator[bytes]:
            for number in range(1, 5):
                yield b"%d" % number
                await asyncio.sleep(0)
            if body == b"never":
                await asyncio.Event().wait()

        stream = await self.router.exchange("http", b"0", rest(), meta)
        async with stream:
            got = [item async for item in stream]
        assert got == [b"0", b"1", b"2", b"3", b"4"]

    async def read(self, answer: Any) -> None:
        if isinstance(answer, bytes):
            return
        how = self.random.random()
        if how < 0.2:
            return  # dropped
        async with answer:
            if how < 0.4:
                await answer.read()
            else:
                items = [item async for item in answer]
                assert items == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("seed", range(4))
def test_every_slot_is_given_back_whatever_happens(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        executed: Counter[str] = Counter()
        rooms = [Room(str(tmp_path / f"{number}.sock")) for number in range(3)]
        by_path = {room.address.path: room for room in rooms}
        replicas = [Replica(executed) for _ in rooms]
        for room, replica in zip(rooms, replicas, strict=True):
            room.open(replica, REPLICA_DOOR)

        async def connect(address: Any) -> Any:
            return await by_path[address.path].connect()

        monkeypatch.setattr(doors, "connect", connect)
        router = Router(Routers(), "app", "model")  # type: ignore[arg-type]
        infos = [ReplicaInfo(f"app#model#{n}", room.address, "here", LIMIT) for n, room in enumerate(rooms)]
        router.update(DeploymentRouting("app", "model", infos, max_queued_requests=20))
        chaos = Chaos(router, seed)

        async def break_things() -> None:
            while True:
                await asyncio.sleep(chaos.random.random() * 0.03)
                room = chaos.random.choice(rooms)
                if chaos.random.random() < 0.5:
                    room.host.close()
                elif room.connections:
                    room.connections[-1].close()

        breaking = asyncio.ensure_future(break_things())
        await asyncio.gather(*(chaos.request(number) for number in range(REQUESTS)))
        breaking.cancel()
        gc.collect()
        scheduler = router.scheduler
        async with asyncio.timeout(TIMEOUT_S):
            while scheduler.ongoing or scheduler.queued or any(r.slots.load for r in replicas):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert scheduler.outside == 0
        scheduler.check_invariants()
        for replica in replicas:
            replica.slots._admission.check_invariants()
        twice = {request_id for request_id, count in executed.items() if count > 1}
        assert twice <= chaos.repeatable
        assert len(executed) > REQUESTS / 4
        # and what comes now is answered
        reply = await router.ask("http", b"now", RequestMeta("last", deadline=time.monotonic() + TIMEOUT_S))
        assert reply == b"now"
        async with asyncio.timeout(TIMEOUT_S):
            while len(scheduler.usable_replicas()) < len(rooms):  # noqa: ASYNC110 - else in mid-connect
                await asyncio.sleep(0.005)
        router.close()
        for room in rooms:
            await room.close()
        await asyncio.sleep(0.01)  # closed transports leave in the next turns

    async def bounded() -> None:
        async with asyncio.timeout(2 * TIMEOUT_S):
            await check()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())
