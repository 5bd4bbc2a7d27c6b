"""Doors between real processes, on one node and on several."""

import asyncio
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

import retinue
from retinue.cluster_utils import Cluster
from retinue.core import doors

TIMEOUT_S = 30.0
MB = 1 << 20
HERE, THERE = "here", "there"  # resources: of the driver's node, and of the other one if there is one


@pytest.fixture(scope="module", params=["one node", "two nodes"], autouse=True)
def topology(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETINUE_TEMP_DIR", str(tmp_path_factory.mktemp("r")))
        patch.delenv("RETINUE_ADDRESS", raising=False)
        if request.param == "one node":
            retinue.init(address="local", num_cpus=1, resources={HERE: 100, THERE: 100})
            yield request.param
            retinue.shutdown()
        else:
            head_node = {"num_cpus": 1, "resources": {HERE: 100}}
            cluster = Cluster(initialize_head=True, connect=True, head_node_args=head_node)
            cluster.add_node(num_cpus=1, resources={THERE: 100})
            cluster.wait_for_nodes()
            yield request.param
            cluster.shutdown()


class Handler:
    load = 3

    async def call(self, method: str, body: bytes, context: doors.DoorContext) -> bytes:
        if method == "raise":
            raise LookupError("no such model")
        if method == "die":
            os._exit(1)
        if method == "hang":
            await asyncio.Event().wait()
        return method.encode() + body

    async def stream(self, method: str, body: bytes, context: doors.DoorContext) -> AsyncIterator[bytes]:
        for number in range(int(body)):
            yield b"%d" % number

    async def exchange(
        self, method: str, items: AsyncIterator[bytes], context: doors.DoorContext
    ) -> AsyncIterator[bytes]:
        yield str(sum([len(item) async for item in items])).encode()


@retinue.remote(num_cpus=0)
class Replica:
    async def open(self) -> bytes:
        self.door = doors.open("model", Handler())
        return pickle.dumps(doors.own_address())

    async def address(self) -> doors.Address:
        return doors.own_address()

    async def call_other(self, address: doors.Address, body: bytes) -> bytes:
        """From one actor's loop to another's."""
        connection = await doors.connect(address)
        try:
            return await connection.call("model", "from an actor ", body)
        finally:
            connection.close()

    async def close(self) -> None:
        self.door.close()


def nodes() -> list[str]:
    return [node["NodeID"] for node in retinue.nodes() if node["Alive"]]


def on_node(where: str) -> Any:
    return Replica.options(resources={where: 1}).remote()


def run(main: Callable[[], object]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await main()  # type: ignore[misc]

    uvloop.run(limited())


async def open_replica(where: str) -> tuple[Any, doors.Address]:
    replica = on_node(where)
    return replica, pickle.loads(await replica.open.remote())


def test_a_driver_calls_actors_on_every_node() -> None:
    async def main() -> None:
        for where in (HERE, THERE):
            replica, address = await open_replica(where)
            connection = await doors.connect(address)
            assert await connection.call("model", "m", b"body") == b"mbody"
            assert connection.loads == {"model": 3}
            deadline = time.monotonic() + 20
            assert await connection.call("model", "m", bytes(3 * MB), deadline=deadline) == b"m" + bytes(
                3 * MB
            )
            assert len([item async for item in connection.stream("model", "s", b"1000")]) == 1000
            with pytest.raises(LookupError, match="no such model"):
                await connection.call("model", "raise")
            connection.close()
            del replica

    run(main)


def test_long_bodies_pass_both_ways() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield bytes(MB)

    async def main() -> None:
        replica, address = await open_replica(THERE)
        connection = await doors.connect(address)
        answers = [item async for item in connection.exchange("model", "upload", pieces())]
        assert answers == [b"%d" % (64 * MB)]
        connection.close()
        del replica

    run(main)


def test_actors_call_each_other_on_their_own_loops() -> None:
    async def main() -> None:
        there, address = await open_replica(THERE)
        here = on_node(HERE)
        calls = [here.call_other.remote(address, b"%d" % n) for n in range(20)]
        assert await asyncio.gather(*calls) == [b"from an actor %d" % n for n in range(20)]
        del there

    run(main)


def test_an_actor_calls_a_door_of_the_driver() -> None:
    async def main() -> None:
        async with doors.open("model", Handler()):
            here = on_node(THERE)
            answer = await here.call_other.remote(doors.own_address(), b"!")
            assert answer == b"from an actor !"

    run(main)


def test_a_killed_process_fails_its_calls_and_says_which_were_begun() -> None:
    async def main() -> None:
        for where in (HERE, THERE):
            replica, address = await open_replica(where)
            connection = await doors.connect(address)
            hanging = asyncio.create_task(connection.call("model", "hang"))
            await connection.ping()
            with pytest.raises(doors.DoorClosedError) as caught:
                await connection.call("model", "die")
            assert not caught.value.is_retryable
            with pytest.raises(doors.DoorClosedError) as caught:
                await hanging
            assert not caught.value.is_retryable
            assert connection.is_closed
            with pytest.raises(doors.DoorClosedError) as caught:
                await connection.call("model", "m")
            assert caught.value.is_retryable
            del replica

    run(main)


@retinue.remote(num_cpus=0)
class Mortal:
    """Notes each call as its first act, and dies with the hundredth."""

    async def open(self, path: str) -> doors.Address:
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT)
        self.count = 0
        self.door = doors.open("mortal", self)
        return doors.own_address()

    async def call(self, method: str, body: bytes, context: doors.DoorContext) -> bytes:
        os.write(self.file, body + b" ")
        self.count += 1
        if self.count == 100:
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(0)
        return body


def test_no_call_that_was_begun_is_called_retryable(tmp_path: Path) -> None:
    async def main() -> None:
        for where in (HERE, THERE):
            path = tmp_path / where
            mortal = Mortal.options(resources={where: 1}).remote()
            connection = await doors.connect(await mortal.open.remote(str(path)))

            async def call(number: int) -> str:
                if number > 150:
                    await asyncio.sleep(0)  # in another write than the others
                try:
                    await connection.call("mortal", "m", b"%d" % number)  # noqa: B023 - within this turn
                except doors.DoorClosedError as error:
                    return "retry" if error.is_retryable else "unknown"
                return "done"

            fates = await asyncio.gather(*[call(number) for number in range(300)])
            begun = {int(word) for word in path.read_bytes().split()}
            assert len(begun) == 100
            assert {n for n, fate in enumerate(fates) if fate == "retry"}.isdisjoint(begun)
            assert {n for n, fate in enumerate(fates) if fate == "done"} <= begun

    run(main)


def test_connecting_where_no_door_is_open_says_so() -> None:
    async def main() -> None:
        for where in (HERE, THERE):
            replica = on_node(where)
            address = await replica.address.remote()
            with pytest.raises(doors.DoorClosedError, match="no door is open") as caught:
                await doors.connect(address)
            assert caught.value.is_retryable
            # That says nothing about this process: its references there live on.
            assert (await replica.address.remote()) == address

    run(main)


def test_all_doors_of_a_process_are_on_one_loop_at_a_time() -> None:
    errors: list[BaseException] = []

    async def open_one() -> None:
        doors.open("other", Handler())

    def other_loop() -> None:
        try:
            asyncio.run(open_one())
        except RuntimeError as error:
            errors.append(error)

    async def main() -> None:
        async with doors.open("mine", Handler()):
            await asyncio.to_thread(other_loop)

    run(main)
    assert len(errors) == 1
    run(main)  # a new loop, once the old one has ended


# --- key-value, nodes, listeners --------------------------------------------------------------------------


def test_values_are_kept_found_and_deleted() -> None:
    kv = doors.KeyValue("test-sync")
    assert kv.get(b"a") is None
    assert kv.put(b"a", b"1")
    assert not kv.put(b"a", b"2", overwrite=False)
    assert kv.get(b"a") == b"1"
    assert kv.put(b"ab", bytes(MB))
    assert sorted(kv.keys(b"a")) == [b"a", b"ab"]
    assert kv.delete(b"a", by_prefix=True) == 2
    assert kv.delete(b"a") == 0
    with pytest.raises(ValueError, match="at most"):
        kv.put(b"a", bytes((16 << 20) + 1))


def test_a_loop_keeps_and_watches_values() -> None:
    async def main() -> None:
        kv = doors.AsyncKeyValue("test-async")
        await kv.put(b"x/1", b"one")
        async with kv.watch(b"x/") as watch, kv.watch() as everything:
            assert await anext(watch) == doors.KvEvent(b"x/1", b"one")
            assert await kv.put(b"y", b"why")
            assert await kv.put(b"x/1", b"uno")
            assert await anext(watch) == doors.KvEvent(b"x/1", b"uno")
            seen: dict[bytes, bytes | None] = {}
            while seen.keys() != {b"x/1", b"y"} or seen[b"x/1"] != b"uno":
                event = await anext(everything)
                seen[event.key] = event.value
            assert await kv.delete(b"", by_prefix=True) == 2
            assert await anext(watch) == doors.KvEvent(b"x/1", None)
        assert await kv.keys() == []
        assert await kv.get(b"y") is None

    run(main)


@retinue.remote(num_cpus=0)
class Server:
    """Serves one slot's listener by hand."""

    def open(self, name: str, port: int) -> int:
        self.listener = doors.open_listener(name, port=port)
        return self.listener.getsockname()[1]  # type: ignore[no-any-return]

    def answer_one(self) -> None:
        self.listener.setblocking(True)
        sock, _ = self.listener.accept()
        with sock:
            sock.sendall(b"pid %d" % os.getpid())

    def pid(self) -> int:
        return os.getpid()


def test_a_successor_serves_what_waited_for_the_dead() -> None:
    server = Server.options(resources={HERE: 1})
    first = server.remote()
    port = retinue.get(first.open.remote("test-slot", 0))
    retinue.kill(first)
    with pytest.raises(retinue.exceptions.RetinueActorError):
        retinue.get(first.pid.remote())
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as client:
        second = server.remote()
        assert retinue.get(second.open.remote("test-slot", port)) == port
        answered = second.answer_one.remote()
        assert client.recv(100) == b"pid %d" % retinue.get(second.pid.remote())
        retinue.get(answered)
    assert doors.release_listener("test-slot")
    assert not doors.release_listener("test-slot")


def test_a_thread_watches_nodes() -> None:
    found: list[doors.NodeEvent] = []
    all_seen = threading.Event()

    def callback(event: doors.NodeEvent) -> None:
        found.append(event)
        if len(found) == len(nodes()):
            all_seen.set()

    with doors.watch_nodes() as watch:
        watch.each(callback)
        assert all_seen.wait(TIMEOUT_S)
    assert {event.kind for event in found} == {"joined"}
    assert {event.node.node_id for event in found} == set(nodes())
    assert sum(event.node.is_head for event in found) == 1
