"""Clients and applications that do what no decent one does: the proxy neither hangs, leaks nor lies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from retinue.serve.messages import HttpHead, HttpResponseHead, pack
from retinue.serve.proxy.http import ProxyProtocol
from retinue.serve.proxy.server import Limits
from tests.serve.proxy.servers import FunctionRouter, Served, serving
from tests.serve.proxy.test_http import PLAIN, echo, get, post

WAIT_S = 5.0


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 10))


async def until(condition: Any) -> None:
    """Wait for something that no event tells of."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def connection_of(served: Served) -> ProxyProtocol:
    (connection,) = served.server._state.connections
    assert isinstance(connection, ProxyProtocol)
    return connection


def answering(status: int, headers: list[tuple[bytes, bytes]], body: bytes = b"body") -> FunctionRouter:
    async def answer(head: HttpHead, payload: bytes) -> Any:
        return status, headers, body

    return FunctionRouter(answer)


def streaming(status: int, headers: list[tuple[bytes, bytes]]) -> FunctionRouter:
    async def items() -> AsyncIterator[bytes]:
        yield pack(HttpResponseHead(status, headers), b"body")

    async def answer(head: HttpHead, payload: bytes) -> Any:
        return items()

    return FunctionRouter(answer)


def test_many_pipelined_requests_are_answered_one_by_one() -> None:
    async def check() -> None:
        gate = asyncio.Event()

        async def slow(head: HttpHead, body: bytes) -> Any:
            await gate.wait()
            return 200, PLAIN, b"slow"

        async with serving(FunctionRouter(slow)) as served, served.client() as client:
            client.send(get("/app") + get("/livez") * 1000 + get("/app/last"))
            await until(lambda: len(connection_of(served).pipeline) > 300)  # it reads what fits
            gate.set()
            assert (await client.answer())[2] == b"slow"
            for _ in range(1000):
                assert (await client.answer())[2].strip() == b"success"
            assert (await client.answer())[2] == b"slow"

    run(check())


def test_pipelined_requests_are_not_read_ahead_without_end() -> None:
    async def check() -> None:
        gates = asyncio.Semaphore(0)

        async def slow(head: HttpHead, body: bytes) -> Any:
            await gates.acquire()
            return 200, PLAIN, b"slow"

        async with serving(FunctionRouter(slow)) as served, served.client() as client:
            client.send(get("/app") * 100_000)
            await until(lambda: connection_of(served).flow.read_paused)
            first = len(connection_of(served).pipeline)
            for _ in range(20):
                gates.release()
                await client.answer()
            assert len(connection_of(served).pipeline) <= first

    run(check())


@pytest.mark.parametrize("status", [99, 101, 600, 1000])
@pytest.mark.parametrize("router", [answering, streaming])
def test_a_status_that_is_none_becomes_500(router: Any, status: int) -> None:
    async def check() -> None:
        async with serving(router(status, PLAIN)) as served, served.client() as client:
            client.send(get("/app"))
            assert (await client.answer())[0] == 500

    run(check())


@pytest.mark.parametrize(
    "headers",
    [
        [(b"x-bad", b"a\r\nb: c")],
        [(b"x bad", b"a")],
        [(b"content-length", b"x")],
        [(b"content-length", b"4"), (b"content-length", b"5")],
    ],
)
def test_a_stream_with_a_bad_header_becomes_500(headers: list[tuple[bytes, bytes]]) -> None:
    async def check() -> None:
        async with serving(streaming(200, headers)) as served, served.client() as client:
            client.send(get("/app"))
            assert (await client.answer())[0] == 500

    run(check())


@pytest.mark.parametrize("router", [answering, streaming])
def test_an_answer_says_once_how_long_it_is(router: Any) -> None:
    async def check() -> None:
        headers = [(b"Content-Length", b"4"), (b"Transfer-Encoding", b"chunked")]
        async with serving(router(200, headers)) as served, served.client() as client:
            client.send(get("/app"))
            client.send(get("/app", "connection: close"))
            text = await client.rest()
        assert text.lower().count(b"content-length: 4\r\n") == 2
        assert b"chunked" not in text.lower()
        assert text.count(b"\r\n\r\nbody") == 2

    run(check())


def test_trailers_are_no_headers() -> None:
    async def check() -> None:
        seen: list[HttpHead] = []

        async def answer(head: HttpHead, body: bytes) -> Any:
            seen.append(head)
            return 200, PLAIN, body

        async def exchange(method: str, first: bytes, rest: Any) -> AsyncIterator[bytes]:
            async for _ in rest:
                pass
            yield b""
            yield pack(HttpResponseHead(200, PLAIN), b"streamed")

        chunked = get("/app", "transfer-encoding: chunked", method="POST")
        trailer = b"x-user: root\r\nidempotency-key: 1\r\n"
        async with serving(FunctionRouter(answer, exchange)) as served, served.client() as client:
            client.send(chunked + b"1\r\nx\r\n0\r\n" + trailer + b"\r\n")
            assert (await client.answer())[2] == b"x"
            assert "x-user" not in {name.decode() for name, _ in seen[0].headers}
            assert not served.server._routers._router.metas[0].may_repeat  # type: ignore[attr-defined]
            client.send(chunked + b"1\r\nx\r\n0\r\n" + trailer)
            await asyncio.sleep(0.01)
            client.send(b"\r\n")
            assert (await client.answer())[2] == b"streamed"

    run(check())


@pytest.mark.parametrize(
    "start", [b"GET /\xff HTTP/1.1\r\n", b"CONNECT here:80 HTTP/1.1\r\n", b"GET http://here HTTP/1.1\r\n"]
)
@pytest.mark.parametrize("upgrade", [b"", b"upgrade: websocket\r\nconnection: upgrade\r\n"])
def test_a_target_that_is_no_path_is_refused(
    start: bytes, upgrade: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        async with serving(FunctionRouter(echo)) as served, served.client() as client:
            client.send(start + b"host: here\r\n" + upgrade + b"\r\n")
            assert (await client.answer())[0] == 400
            await client.rest()
            await until(lambda: not served.server.open_connections)

    run(check())
    assert "Traceback" not in caplog.text


def test_an_upgrade_that_is_not_taken_hides_no_request() -> None:
    async def check() -> None:
        async with serving(FunctionRouter(echo)) as served, served.client() as client:
            upgrade = get("/app/1", "connection: upgrade, http2-settings", "upgrade: h2c")
            client.send(upgrade + get("/app/2") + upgrade + get("/app/3"))
            bodies = [(await client.answer())[2] for _ in range(4)]
            assert bodies == [b"GET /app/1  0", b"GET /app/2  0", b"GET /app/1  0", b"GET /app/3  0"]

    run(check())


def test_a_websocket_behind_a_request_that_is_being_answered_is_refused() -> None:
    async def check() -> None:
        is_left = asyncio.Event()

        async def slow(head: HttpHead, body: bytes) -> Any:
            try:
                await asyncio.Event().wait()
            finally:
                is_left.set()

        async with serving(FunctionRouter(slow)) as served, served.client() as client:
            client.send(get("/app"))
            client.send(get("/app", "connection: upgrade", "upgrade: websocket"))
            await client.rest()
            await asyncio.wait_for(is_left.wait(), WAIT_S)

    run(check())


def test_the_handler_of_an_upload_is_told_though_another_request_waits_behind() -> None:
    async def check() -> None:
        began, left = asyncio.Event(), asyncio.Event()

        async def exchange(method: str, first: bytes, rest: Any) -> AsyncIterator[bytes]:
            async for _ in rest:
                pass
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                left.set()
            yield b""

        async with serving(FunctionRouter(echo, exchange)) as served:
            async with served.client() as client:
                client.send(post("/app", bytes(2_000_000)) + get("/app"))
                await asyncio.wait_for(began.wait(), WAIT_S)
                await until(lambda: connection_of(served).pipeline)
            await asyncio.wait_for(left.wait(), WAIT_S)

    run(check())


def test_one_who_waits_to_send_behind_another_request_is_told_to_go_on() -> None:
    async def check() -> None:
        gate = asyncio.Event()

        async def slow(head: HttpHead, body: bytes) -> Any:
            await gate.wait()
            return 200, PLAIN, body

        async with serving(FunctionRouter(slow)) as served, served.client() as client:
            client.send(get("/app") + post("/app", b"12345", "expect: 100-continue")[:-5])
            await until(lambda: connection_of(served).pipeline)
            gate.set()
            assert (await client.answer())[2] == b""
            assert (await client.answer())[0] == 100
            client.send(b"12345")
            assert (await client.answer())[2] == b"12345"

    run(check())


def test_half_of_the_next_request_does_not_end_the_one_that_is_being_answered() -> None:
    async def check() -> None:
        gate = asyncio.Event()

        async def slow(head: HttpHead, body: bytes) -> Any:
            await gate.wait()
            return 200, PLAIN, b"done"

        limits = Limits(header_timeout_s=0.01)
        async with serving(FunctionRouter(slow), limits=limits) as served, served.client() as client:
            client.send(get("/app"))
            client.send(get("/app")[:-4])
            await until(lambda: connection_of(served).deadline)
            await asyncio.sleep(0.02)
            served.server._sweep()
            gate.set()
            assert (await client.answer())[2] == b"done"

    run(check())


BIG = bytes(20_000_000)


def test_an_idle_connection_is_closed_also_behind_an_answer_that_it_took_slowly() -> None:
    async def check() -> None:
        async with (
            serving(answering(200, PLAIN, BIG), limits=Limits(keep_alive_s=0.01)) as served,
            served.client() as client,
        ):
            client.send(get("/app"))
            await until(lambda: connection_of(served).flow.write_paused)
            assert len((await client.answer())[2]) == len(BIG)
            await asyncio.sleep(0.02)
            served.server._sweep()
            assert await client.rest() == b""

    run(check())


def test_an_idle_connection_is_closed_also_behind_a_body_that_nobody_read() -> None:
    async def check() -> None:
        async def exchange(method: str, first: bytes, rest: Any) -> AsyncIterator[bytes]:
            yield b""
            yield pack(HttpResponseHead(200, [*PLAIN, (b"content-length", b"5")]), b"early")

        limits = Limits(keep_alive_s=0.01)
        router = FunctionRouter(echo, exchange)
        async with serving(router, limits=limits) as served, served.client() as client:
            client.send(post("/app", bytes(2_000_000))[:-10])
            assert (await client.answer())[2] == b"early"
            client.send(bytes(10))
            await until(lambda: connection_of(served)._is_told is False)
            await asyncio.sleep(0.02)
            served.server._sweep()
            assert await client.rest() == b""

    run(check())


def test_one_who_reads_slowly_but_steadily_gets_all() -> None:
    async def check() -> None:
        limits = Limits(write_timeout_s=0.01, keep_alive_s=0.01)
        async with serving(answering(200, PLAIN, BIG), limits=limits) as served, served.client() as client:
            client.send(get("/app"))
            await until(lambda: connection_of(served).flow.write_paused)
            await client.reader.readuntil(b"\r\n\r\n")
            left = len(BIG)
            while left:
                left -= len(await client.reader.readexactly(min(left, 4_000_000)))
                await asyncio.sleep(0.02)
                served.server._sweep()

    run(check())


def test_one_who_does_not_read_is_answered_no_further() -> None:
    async def check() -> None:
        router = answering(200, PLAIN, BIG)
        async with serving(router, limits=Limits(write_timeout_s=60)) as served, served.client() as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.send(get("/app") * 5)
            await until(lambda: connection_of(served).flow.write_paused)
            for _ in range(5):
                client.send(get("/app"))
                await asyncio.sleep(0.01)
            assert len(router.metas) == 1
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            for _ in range(10):
                assert len((await client.answer())[2]) == len(BIG)

    run(check())


def test_what_a_client_says_is_one_line_of_the_logs(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async def fail(head: HttpHead, body: bytes) -> Any:
            raise RuntimeError("oh")

        async with serving(FunctionRouter(fail)) as served, served.client() as client:
            client.send(get("/app/%0aERROR%20forged%1b"))
            assert (await client.answer())[0] == 500
            served.server._flush_log()
            assert json.loads(served.log.getvalue())["path"] == "/app/\nERROR forged\x1b"

    run(check())
    assert "\n" not in "".join(r.getMessage() for r in caplog.records if r.name.startswith("retinue"))
