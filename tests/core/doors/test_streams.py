"""Streams both ways: order, credit, long items, leaving early, and what overtakes data."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable

import pytest

from retinue.core.doors import DoorBodyTooLargeError, DoorClosedError, DoorContext
from retinue.core.doors.flow import WINDOW_BYTES, WINDOW_ITEMS
from tests.core.doors.conftest import Echo, Held, Room, Test

Run = Callable[[Test], None]
MB = 1 << 20


@pytest.mark.parametrize("count", [0, 1, WINDOW_ITEMS, 1000])
def test_items_come_in_order_and_end(run: Run, count: int) -> None:
    async def test(room: Room) -> None:
        room.open(Echo())
        connection = await room.connect()
        items = [item async for item in connection.stream("door", "m", b"%d" % count)]
        assert items == [b"%d" % n for n in range(count)]
        read = []
        stream = connection.stream("door", "m", b"%d" % count)
        while batch := await stream.read():
            read += batch
        assert read == items
        assert connection.loads == {"door": 7}

    run(test)


def test_items_of_any_length_keep_their_borders(run: Run) -> None:
    sizes = [0, 1, 40_000, 0, 300_000, 5, 9 * MB, 255 * 1024, 2]

    async def test(room: Room) -> None:
        class Handler:
            async def stream(self, method: str, body: bytes, context: DoorContext) -> AsyncIterator[bytes]:
                for size in sizes:
                    yield bytes([size % 251]) * size

        room.open(Handler())
        connection = await room.connect()
        items = [item async for item in connection.stream("door", "m")]
        assert [len(item) for item in items] == sizes
        assert all(item == bytes([size % 251]) * size for item, size in zip(items, sizes, strict=True))

    run(test)


def test_items_before_an_error_come_first(run: Run) -> None:
    async def test(room: Room) -> None:
        class Handler:
            async def stream(self, method: str, body: bytes, context: DoorContext) -> AsyncIterator[bytes]:
                yield b"1"
                yield b"2"
                raise KeyError("late")

        room.open(Handler())
        connection = await room.connect()
        stream = connection.stream("door", "m")
        assert [await anext(stream), await anext(stream)] == [b"1", b"2"]
        with pytest.raises(KeyError):
            await anext(stream)

    run(test)


class Counting:
    """An endless stream that says how far it is."""

    def __init__(self, size: int = 1) -> None:
        self.sent = 0
        self.size = size
        self.ended = asyncio.Event()

    async def stream(self, method: str, body: bytes, context: DoorContext) -> AsyncIterator[bytes]:
        try:
            while True:
                self.sent += 1
                yield bytes(self.size)
        finally:
            self.ended.set()


@pytest.mark.parametrize(("size", "most"), [(1, WINDOW_ITEMS), (MB, WINDOW_BYTES // MB + 1)])
def test_a_generator_waits_for_a_reader_that_does_not_read(run: Run, size: int, most: int) -> None:
    async def test(room: Room) -> None:
        handler = Counting(size)
        room.open(handler)
        connection = await room.connect()
        async with connection.stream("door", "m") as stream:
            await anext(stream)
            for _ in range(20):
                await connection.ping()
            assert handler.sent <= most + 2
            before = handler.sent
            for _ in range(most * 4):
                await anext(stream)
            assert handler.sent > before
        await handler.ended.wait()

    run(test)


@pytest.mark.parametrize("way", ["aclose", "drop", "cancel"])
def test_leaving_a_stream_early_ends_its_generator(run: Run, way: str) -> None:
    async def test(room: Room) -> None:
        held = Held()
        room.open(held)
        connection = await room.connect()
        stream = connection.stream("door", "m")
        assert await anext(stream) == b"first"
        await held.began.acquire()
        if way == "aclose":
            await stream.aclose()
            assert [item async for item in stream] == []
        elif way == "drop":
            del stream
            gc.collect()
        else:
            reading = asyncio.ensure_future(stream.__anext__())
            await connection.ping()
            reading.cancel()
        await held.cancelled.acquire()
        assert connection.ongoing == 0

    run(test)


def test_one_reader_at_a_time(run: Run) -> None:
    async def test(room: Room) -> None:
        room.open(Held())
        connection = await room.connect()
        async with connection.stream("door", "m") as stream:
            await anext(stream)
            first = asyncio.ensure_future(stream.read())
            await connection.ping()
            with pytest.raises(RuntimeError, match="another task"):
                await stream.read()
            first.cancel()

    run(test)


# --- both ways --------------------------------------------------------------------------------------------


def test_an_exchange_goes_back_and_forth(run: Run) -> None:
    async def test(room: Room) -> None:
        room.open(Echo())
        connection = await room.connect()
        asked: asyncio.Queue[bytes | None] = asyncio.Queue()

        async def questions() -> AsyncIterator[bytes]:
            while (item := await asked.get()) is not None:
                yield item

        stream = connection.exchange("door", "m", questions())
        for size in (1, 0, 3 * MB, 5):
            asked.put_nowait(b"q" * size)
            assert await anext(stream) == b"q" * size
        asked.put_nowait(None)
        assert await stream.read() == []

    run(test)


async def pieces(count: int, size: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield bytes(size)


def test_a_long_exchange_stays_within_its_windows(run: Run) -> None:
    async def test(room: Room) -> None:
        room.open(Echo())
        connection = await room.connect()
        total = 0
        async for item in connection.exchange("door", "m", pieces(64, MB)):
            total += len(item)
        assert total == 64 * MB

    run(test)


def test_a_handler_that_does_not_read_holds_its_sender_back(run: Run) -> None:
    async def test(room: Room) -> None:
        class Handler:
            async def exchange(
                self, method: str, items: AsyncIterator[bytes], context: DoorContext
            ) -> AsyncIterator[bytes]:
                await go.wait()
                yield str(sum([len(item) async for item in items])).encode()

        go = asyncio.Event()
        sent = 0

        async def counted() -> AsyncIterator[bytes]:
            nonlocal sent
            for _ in range(1000):
                sent += 1
                yield b"x"

        room.open(Handler())
        connection = await room.connect()
        stream = connection.exchange("door", "m", counted())
        for _ in range(20):
            await connection.ping()
        assert sent <= WINDOW_ITEMS + 2
        go.set()
        assert [item async for item in stream] == [b"1000"]

    run(test)


def test_an_error_in_the_callers_items_reaches_its_reader_and_ends_the_handler(run: Run) -> None:
    async def test(room: Room) -> None:
        async def broken() -> AsyncIterator[bytes]:
            yield b"1"
            raise OSError("disk")

        door = room.open(Echo())
        connection = await room.connect()
        with pytest.raises(OSError, match="disk"):
            async for _ in connection.exchange("door", "m", broken()):
                pass
        await door.wait_idle()

    run(test)


def test_a_handler_may_end_before_the_callers_items(run: Run) -> None:
    async def test(room: Room) -> None:
        class Handler:
            async def exchange(
                self, method: str, items: AsyncIterator[bytes], context: DoorContext
            ) -> AsyncIterator[bytes]:
                async for item in items:
                    yield item
                    return

        ended = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield bytes(100_000)
            finally:
                ended.set()

        room.open(Handler())
        connection = await room.connect()
        assert [len(item) async for item in connection.exchange("door", "m", endless())] == [100_000]
        await ended.wait()

    run(test)


def test_an_item_above_the_doors_limit_is_the_handlers_error(run: Run) -> None:
    async def test(room: Room) -> None:
        room.open(Echo(), max_body_bytes=MB)
        connection = await room.connect()
        with pytest.raises(DoorBodyTooLargeError):
            async for _ in connection.exchange("door", "m", pieces(1, 2 * MB)):
                pass

    run(test)


# --- data and what overtakes it ---------------------------------------------------------------------------


def test_calls_cancels_and_pings_overtake_data(run: Run) -> None:
    async def test(room: Room) -> None:
        handler = Counting(MB)
        room.open(handler, "data")
        room.open(Echo())
        connection = await room.connect(is_far=True)
        streams = [connection.stream("data", "m") for _ in range(20)]
        readers = [asyncio.create_task(drain(stream)) for stream in streams]
        for _ in range(10):
            assert await connection.call("door", "m", b"quick") == b"quick"
            await connection.ping()
        (protocol,) = room.host.connections
        assert protocol._transport.get_write_buffer_size() < 4 * MB  # of 80 MB that the windows allow
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)
        await room.host.doors["data"].wait_idle()

    run(test)


async def drain(stream: AsyncIterator[bytes]) -> None:
    async for _ in stream:
        pass


def test_streams_share_a_connection_in_turn(run: Run) -> None:
    async def test(room: Room) -> None:
        room.open(Counting(MB))
        connection = await room.connect()
        counts = [0] * 8

        async def reader(number: int) -> None:
            async for _ in connection.stream("door", "m"):
                counts[number] += 1
                if sum(counts) >= 400:
                    return

        await asyncio.gather(*[reader(n) for n in range(8)])
        assert min(counts) >= 25

    run(test)


def test_a_lost_connection_ends_streams_both_ways(run: Run) -> None:
    async def test(room: Room) -> None:
        handler = Counting(MB)
        door = room.open(handler)
        room.open(Echo(), "echo")
        connection = await room.connect()
        down = connection.stream("door", "m")
        await anext(down)
        up = connection.exchange("echo", "m", pieces(100, MB))
        await anext(up)
        room.host.close()
        for stream in (down, up):
            with pytest.raises(DoorClosedError) as caught:
                await drain(stream)
            assert not caught.value.is_retryable
        await handler.ended.wait()
        await door.wait_idle()

    run(test)
