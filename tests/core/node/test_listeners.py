"""Listening sockets in named slots: handed out, taken over, released, ended with their job."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from retinue.core.node.listeners import ListenerRoom
from retinue.core.transport.endpoints import connect_unix
from retinue.core.wire.framing import FrameDecoder, encode
from retinue.core.wire.messages import (
    Address,
    Failure,
    Hello,
    ListenerOpened,
    Ok,
    OpenListener,
    Ping,
    ReleaseListener,
)

JOB, OTHER_JOB = b"job1", b"job2"
HOST = "127.0.0.1"


async def ask(room: ListenerRoom, message: Any, job_id: bytes = JOB) -> tuple[Any, socket.socket | None]:
    return await asyncio.to_thread(_ask, room.path, message, job_id)


def _ask(path: str, message: Any, job_id: bytes) -> tuple[Any, socket.socket | None]:
    hello = Hello("listener", Address(os.urandom(16), b"n" * 16, ""), job_id)
    with connect_unix(path) as sock:
        sock.sendall(encode(hello) + encode(message))
        data, fds, _, _ = socket.recv_fds(sock, 4096, 1)
    decoder = FrameDecoder()
    decoder.feed(data)
    answers = [answer for answer, _ in decoder.frames()]
    return (answers[0] if answers else None), (socket.socket(fileno=fds[0]) if fds else None)


def run(tmp_path: Path, test: Callable[[ListenerRoom], Awaitable[None]]) -> None:
    async def main() -> None:
        room = ListenerRoom(str(tmp_path))
        room.run()
        try:
            await test(room)
        finally:
            room.close()

    asyncio.run(main())


def is_refused(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_successor_takes_over_with_the_connections_that_wait(tmp_path: Path) -> None:
    async def test(room: ListenerRoom) -> None:
        opened, first = await ask(room, OpenListener(1, "proxy-0", HOST))
        assert isinstance(opened, ListenerOpened)
        assert first is not None
        first.close()  # its process is dead
        with socket.create_connection((HOST, opened.port), timeout=5) as client:
            client.sendall(b"hello")
            again, successor = await ask(room, OpenListener(2, "proxy-0", HOST, opened.port), OTHER_JOB)
            assert (again.rid, again.port) == (2, opened.port)
            assert successor is not None
            with successor:
                accepted, _ = successor.accept()
                with accepted:
                    assert accepted.recv(5) == b"hello"

    run(tmp_path, test)


def test_slots_may_share_a_port(tmp_path: Path) -> None:
    async def test(room: ListenerRoom) -> None:
        opened, first = await ask(room, OpenListener(1, "proxy-0", HOST))
        second_opened, second = await ask(room, OpenListener(1, "proxy-1", HOST, opened.port))
        assert second_opened.port == opened.port
        assert first is not None
        assert second is not None
        assert first.fileno() != second.fileno()
        first.close()
        second.close()

    run(tmp_path, test)


def test_a_slot_ends_when_it_is_released_or_its_job_is_over(tmp_path: Path) -> None:
    async def test(room: ListenerRoom) -> None:
        ports = {}
        for name, job_id, detached in (("a", JOB, False), ("b", OTHER_JOB, False), ("c", JOB, True)):
            opened, listener = await ask(room, OpenListener(1, name, HOST, detached=detached), job_id)
            ports[name] = opened.port
            assert listener is not None
            listener.close()
        room.job_finished(JOB)
        assert room.slots.keys() == {"b", "c"}
        assert is_refused(ports["a"])
        assert not is_refused(ports["b"])
        for name, expected in (("c", 1), ("c", 0)):
            released, _ = await ask(room, ReleaseListener(1, name))
            assert released == Ok(1, expected)
        assert is_refused(ports["c"])

    run(tmp_path, test)


def test_what_cannot_be_had_is_said(tmp_path: Path) -> None:
    async def test(room: ListenerRoom) -> None:
        opened, listener = await ask(room, OpenListener(1, "a", HOST))
        assert listener is not None
        listener.close()
        for message in (
            OpenListener(1, "a", "0.0.0.0"),
            OpenListener(1, "a", HOST, opened.port + 1),
            OpenListener(1, "b", "192.0.2.1"),  # nobody's address
        ):
            answer, nothing = await ask(room, message)
            assert isinstance(answer, Failure), answer
            assert nothing is None
        assert room.slots.keys() == {"a"}

    run(tmp_path, test)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.0\r\n\r\n", encode(Ping(1))])
def test_who_asks_something_else_is_hung_up_on(tmp_path: Path, data: bytes) -> None:
    async def test(room: ListenerRoom) -> None:
        def client() -> bytes:
            with connect_unix(room.path) as sock:
                sock.sendall(data)
                return sock.recv(100)

        assert await asyncio.to_thread(client) == b""

    run(tmp_path, test)
