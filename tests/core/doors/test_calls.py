"""One-shot calls: replies, errors, refusals, deadlines, cancelling, ends of connections."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from retinue.core.doors import (
    DoorBodyTooLargeError,
    DoorCancelledError,
    DoorClosedError,
    DoorContext,
    DoorRefusedError,
    DoorStream,
    DoorTimeoutError,
)
from retinue.core.errors import RetinueTaskError
from tests.core.doors.conftest import Echo, Held, Room, Test

Run = Callable[[Test], None]
MB = 1 << 20


@pytest.mark.parametrize("is_far", [False, True], ids=["unix", "tcp"])
def test_a_reply_carries_the_body_and_the_doors_load(run: Run, is_far: bool) -> None:
    async def test(room: Room) -> None:
        room.open(Echo())
        connection = await room.connect(is_far=is_far)
        assert await connection.call("door", "m", b"body") == b"body"
        assert connection.loads == {"door": 7}
        assert await connection.ping() < 5
        assert connection.ongoing == 0

    run(test)


@pytest.mark.parametrize("size", [0, 1, 255 * 1024, 256 * 1024, 9 * MB + 1])
def test_bodies_and_replies_of_any_size_come_whole(run: Run, size: int) -> None:
    async def test(room: Room) -> None:
        room.open(Echo())
        connection = await room.connect()
        body = bytes(range(256)) * (size // 256 + 1)
        assert await connection.call("door", "m", body[:size]) == body[:size]

    run(test)


def test_many_calls_at_once_each_get_their_own_reply(run: Run) -> None:
    async def test(room: Room) -> None:
        room.open(Echo())
        connections = [await room.connect() for _ in range(3)]
        calls = [connections[n % 3].call("door", "m", b"%d" % n) for n in range(2000)]
        assert await asyncio.gather(*calls) == [b"%d" % n for n in range(2000)]

    run(test)


def test_the_handler_sees_method_caller_request_id_trace_and_deadline(run: Run) -> None:
    async def test(room: Room) -> None:
        class Handler:
            async def call(self, method: str, body: bytes, context: DoorContext) -> bytes:
                left = context.time_left()
                assert left is not None
                assert 50 < left <= 60
                assert abs(context.deadline - deadline) < 1
                return (
                    f"{method} {context.request_id} {context.trace} {len(context.caller.worker_id)}".encode()
                )

        room.open(Handler())
        deadline = time.monotonic() + 60
        for is_far in (False, True):
            connection = await room.connect(is_far=is_far)
            reply = await connection.call("door", "m", deadline=deadline, request_id="r1", trace="00-t")
            assert reply == b"m r1 00-t 16"

    run(test)


class CustomError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def test_errors_come_as_the_handler_raised_them(run: Run) -> None:
    async def test(room: Room) -> None:
        class Handler:
            async def call(self, method: str, body: bytes, context: DoorContext) -> bytes:
                if method == "text":
                    return "no bytes"  # type: ignore[return-value]
                raise CustomError(5)

        room.open(Handler())
        connection = await room.connect()
        with pytest.raises(CustomError, match=r"raise CustomError\(5\)") as caught:
            await connection.call("door", "m")
        assert caught.value.code == 5
        assert isinstance(caught.value, RetinueTaskError)
        assert caught.value.function_name == "door.m"
        with pytest.raises(TypeError):
            await connection.call("door", "text")
        with pytest.raises(AttributeError):
            await anext(connection.stream("door", "m"))

    run(test)


def test_an_error_that_means_nothing_here_keeps_its_text(run: Run) -> None:
    async def test(room: Room) -> None:
        class Unreadable(Exception):
            def __reduce__(self) -> tuple[object, ...]:
                return int, ("not a number",)

        class Handler:
            async def call(self, method: str, body: bytes, context: DoorContext) -> bytes:
                raise Unreadable("what people read")

        room.open(Handler())
        connection = await room.connect()
        with pytest.raises(RetinueTaskError, match="what people read"):
            await connection.call("door", "m")

    run(test)


def test_a_refusal_carries_the_doors_reason_and_is_retryable(run: Run) -> None:
    async def test(room: Room) -> None:
        class Handler:
            load = 100

            async def call(self, method: str, body: bytes, context: DoorContext) -> bytes:
                raise DoorRefusedError(b"full")

            async def stream(self, method: str, body: bytes, context: DoorContext) -> AsyncIterator[bytes]:
                raise DoorRefusedError(b"full too")
                yield b""

        room.open(Handler())
        connection = await room.connect()
        with pytest.raises(DoorRefusedError) as caught:
            await connection.call("door", "m")
        assert (caught.value.reason, caught.value.is_retryable) == (b"full", True)
        assert connection.loads == {"door": 100}
        with pytest.raises(DoorRefusedError) as caught:
            await connection.stream("door", "m").read()
        assert caught.value.reason == b"full too"

    run(test)


def test_an_unknown_or_closed_door_says_so_and_is_retryable(run: Run) -> None:
    async def test(room: Room) -> None:
        room.open(Echo(), "other")
        held = Held()
        door = room.open(held)
        connection = await room.connect()
        with pytest.raises(DoorClosedError, match="'nothing'") as caught:
            await connection.call("nothing", "m")
        assert caught.value.is_retryable
        running = asyncio.create_task(connection.call("door", "m", b"done"))
        await held.began.acquire()
        door.close()
        with pytest.raises(DoorClosedError):
            await connection.call("door", "m")
        held.release.set()
        assert await running == b"done"
        await door.wait_idle()
        assert await connection.call("other", "m", b"on") == b"on"

    run(test)


def test_connections_end_after_the_last_call_of_the_last_door(run: Run) -> None:
    async def test(room: Room) -> None:
        held = Held()
        async with room.open(held):
            connection = await room.connect()
            closed = asyncio.Event()
            connection.on_closed(closed.set)
            running = asyncio.create_task(connection.call("door", "m", b"done"))
            await held.began.acquire()
        held.release.set()
        assert await running == b"done"
        await closed.wait()
        assert connection.is_closed

    run(test)


def test_a_handler_without_any_method_and_a_taken_name_are_refused(run: Run) -> None:
    async def test(room: Room) -> None:
        with pytest.raises(TypeError, match="has call"):
            room.open(object())
        room.open(Echo())
        with pytest.raises(ValueError, match="open already"):
            room.open(Echo())

    run(test)


# --- deadlines and cancelling -----------------------------------------------------------------------------


def test_a_late_call_is_not_run(run: Run) -> None:
    async def test(room: Room) -> None:
        held = Held()
        room.open(held)
        connection = await room.connect()
        with pytest.raises(DoorTimeoutError, match="before it was sent"):
            await connection.call("door", "m", deadline=time.monotonic() - 1)
        # Sent in time by its caller's clock, late by the door's.
        connection._protocol.clock.offset_s = -60.0
        with pytest.raises(DoorTimeoutError, match="was not run"):
            await connection.call("door", "m", deadline=time.monotonic() + 30)
        assert held.contexts == []

    run(test)


def test_at_its_deadline_a_call_fails_and_its_handler_is_cancelled(run: Run) -> None:
    async def test(room: Room) -> None:
        held = Held()
        room.open(held)
        connection = await room.connect()
        patient = asyncio.create_task(
            connection.call("door", "m", b"patient", deadline=time.monotonic() + 60)
        )
        with pytest.raises(DoorTimeoutError, match="by the call's deadline"):
            await connection.call("door", "m", deadline=time.monotonic() + 0.05)
        await held.cancelled.acquire()
        stream = connection.stream("door", "m", deadline=time.monotonic() + 0.05)
        assert await anext(stream) == b"first"
        with pytest.raises(DoorTimeoutError):
            await anext(stream)
        await held.cancelled.acquire()
        held.release.set()
        assert await patient == b"patient"

    run(test)


def test_cancelling_the_wait_cancels_the_handler(run: Run) -> None:
    async def test(room: Room) -> None:
        held = Held()
        door = room.open(held)
        connection = await room.connect()
        waiting = asyncio.create_task(connection.call("door", "m"))
        await held.began.acquire()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await held.cancelled.acquire()
        await door.wait_idle()
        assert connection.ongoing == 0
        held.release.set()
        assert await connection.call("door", "m", b"still here") == b"still here"

    run(test)


def test_a_call_that_is_cancelled_before_its_handler_begins_leaves_nothing(run: Run) -> None:
    async def test(room: Room) -> None:
        door = room.open(Held())
        connection = await room.connect()
        calls = [asyncio.create_task(connection.call("door", "m")) for _ in range(10)]
        await asyncio.sleep(0)  # they are sent, and their cancels with them
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await connection.ping()
        await door.wait_idle()
        (protocol,) = room.host.connections
        assert protocol._tasks == {}
        assert door.ongoing == 0

    run(test)


def test_a_handler_that_is_cancelled_on_its_own_side_says_so(run: Run) -> None:
    async def test(room: Room) -> None:
        class Handler:
            async def call(self, method: str, body: bytes, context: DoorContext) -> bytes:
                raise asyncio.CancelledError

        room.open(Handler())
        connection = await room.connect()
        with pytest.raises(DoorCancelledError):
            await connection.call("door", "m")

    run(test)


# --- ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_far", [False, True], ids=["unix", "tcp"])
def test_a_lost_connection_tells_whether_the_call_had_been_accepted(run: Run, is_far: bool) -> None:
    async def test(room: Room) -> None:
        held = Held()
        room.open(held)
        connection = await room.connect(is_far=is_far)
        begun = asyncio.create_task(connection.call("door", "m"))
        await held.began.acquire()
        await connection.ping()
        (protocol,) = room.host.connections
        protocol.handlers.clear()  # what comes from here on is not taken
        unread = asyncio.create_task(connection.call("door", "m"))
        for waiting, is_retryable in ((begun, False), (unread, True)):
            with pytest.raises(DoorClosedError) as caught:
                await waiting
            assert caught.value.is_retryable is is_retryable
        with pytest.raises(DoorClosedError) as caught:
            await connection.call("door", "m")
        assert caught.value.is_retryable
        await held.cancelled.acquire()

    run(test)


def test_a_caller_that_leaves_cancels_its_calls(run: Run) -> None:
    async def test(room: Room) -> None:
        held = Held()
        door = room.open(held)
        connection = await room.connect()
        waiting = asyncio.create_task(connection.call("door", "m"))
        await held.began.acquire()
        connection.close()
        with pytest.raises(DoorClosedError) as caught:
            await waiting
        assert not caught.value.is_retryable
        await held.cancelled.acquire()
        await door.wait_idle()
        assert room.host.connections == set()

    run(test)


def test_a_body_above_the_doors_limit_fails_its_call_alone(run: Run) -> None:
    async def test(room: Room) -> None:
        room.open(Echo(), max_body_bytes=MB)
        connection = await room.connect(max_item_bytes=MB // 2)
        with pytest.raises(DoorBodyTooLargeError):
            await connection.call("door", "m", bytes(2 * MB))
        with pytest.raises(DoorBodyTooLargeError):  # the reply is too long for its caller
            await connection.call("door", "m", bytes(MB))
        assert await connection.call("door", "m", b"small") == b"small"

    run(test)


def test_nobody_listens(run: Run) -> None:
    async def test(room: Room) -> None:
        room.unix.close()
        with pytest.raises(DoorClosedError) as caught:
            await room.connect()
        assert caught.value.is_retryable

    run(test)


# --- ask: one piece or items, as the handler likes --------------------------------------------------------


def test_asking_gives_bytes_or_a_stream(run: Run) -> None:
    async def test(room: Room) -> None:
        class Handler:
            async def call(self, method: str, body: bytes, context: DoorContext) -> object:
                if method == "raise":
                    raise CustomError(1)
                return self.items() if method == "items" else bytes(int(method))

            async def items(self) -> AsyncIterator[bytes]:
                yield b"one"
                yield bytes(MB)

        room.open(Handler())
        connection = await room.connect()
        for size in (3, 2 * MB):
            answer = await connection.ask("door", str(size))
            assert isinstance(answer, bytes)
            assert len(answer) == size
        answer = await connection.ask("door", "items")
        assert isinstance(answer, DoorStream)
        assert [len(item) async for item in answer] == [3, MB]
        with pytest.raises(CustomError):
            await connection.ask("door", "raise")

    run(test)
