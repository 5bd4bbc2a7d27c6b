from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from retinue.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from retinue.serve.messages import HttpHead, HttpResponseHead, encode, pack
from retinue.serve.proxy.server import Limits
from tests.serve.proxy.servers import FunctionRouter, serving

PLAIN = [(b"content-type", b"text/plain")]
WAIT_S = 10.0


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 30))


async def echo(head: HttpHead, body: bytes) -> Any:
    """Says what it got."""
    text = f"{head.method} {head.path} {head.query_string.decode()} {len(body)}".encode()
    return 200, PLAIN, text


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: here", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def post(path: str, body: bytes, *headers: str) -> bytes:
    return get(path, f"content-length: {len(body)}", *headers, method="POST") + body


def test_a_request_and_its_answer() -> None:
    async def check() -> None:
        router = FunctionRouter(echo)
        async with serving(router) as served, served.client() as client:
            client.send(post("/app/x%20y?q=1", b"12345", "x-request-id: mine"))
            status, headers, body = await client.answer()
            assert (status, body) == (200, b"POST /app/x y q=1 5")
            assert headers["x-request-id"] == "mine"
            assert headers["content-type"] == "text/plain"
            client.send(get("/app"))
            status, headers, body = await client.answer()
            assert (status, body) == (200, b"GET /app  0")
            assert len(headers["x-request-id"]) == 32
            served.server._flush_log()
            lines = [json.loads(line) for line in served.log.getvalue().splitlines()]
            assert [(x["method"], x["path"], x["status"], x["application"]) for x in lines] == [
                ("POST", "/app/x y", 200, "app"),
                ("GET", "/app", 200, "app"),
            ]

    run(check())


def test_what_the_headers_ask_for_reaches_the_router() -> None:
    async def check() -> None:
        router = FunctionRouter(echo)
        trace = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
        async with serving(router, request_timeout_s=9.0) as served, served.client() as client:
            client.send(
                post(
                    "/app",
                    b"",
                    f"traceparent: {trace}",
                    "serve_multiplexed_model_id: m1",
                    "X-Session-Id: s1",
                    "Idempotency-Key: k",
                    "x-request-timeout-seconds: 3.5",
                )
            )
            await client.answer()
            client.send(post("/app", b"") + get("/app"))
            await client.answer()
            await client.answer()
            client.send(post("/app", b"", "x-request-timeout-seconds: soon", "traceparent: nonsense"))
            status, _, body = await client.answer()
        assert (status, body[:26]) == (400, b"x-request-timeout-seconds ")
        asked, unasked, read = router.metas
        assert (asked.trace, asked.model_id, asked.session_id, asked.may_repeat) == (trace, "m1", "s1", True)
        now = asyncio.get_running_loop().time()
        assert asked.deadline - now < 3.5 < unasked.deadline - now < 9.0
        assert not unasked.may_repeat
        assert unasked.trace != trace
        assert len(unasked.trace) == len(trace)
        assert read.may_repeat

    run(check())


def test_pipelined_requests_are_answered_in_order() -> None:
    async def check() -> None:
        gates = [asyncio.Event() for _ in range(3)]

        async def slow(head: HttpHead, body: bytes) -> Any:
            number = int(head.path[-1])
            await gates[number].wait()
            return 200, PLAIN, b"%d %b" % (number, body)

        async with serving(FunctionRouter(slow)) as served, served.client() as client:
            client.send(post("/app/0", b"a") + post("/app/1", b"bb") + get("/app/2"))
            for number in (2, 1, 0):
                gates[number].set()
            assert [(await client.answer())[2] for _ in range(3)] == [b"0 a", b"1 bb", b"2 "]

    run(check())


def test_a_body_in_pieces_waits_until_it_is_complete() -> None:
    async def check() -> None:
        body = bytes(range(256)) * 1000
        async with serving(FunctionRouter(echo)) as served, served.client() as client:
            data = post("/app", body)
            for start in range(0, len(data), 50_000):
                client.send(data[start : start + 50_000])
                await client.writer.drain()
                await asyncio.sleep(0)
            assert (await client.answer())[2] == b"POST /app  256000"

    run(check())


def test_head_has_the_length_and_no_body() -> None:
    async def check() -> None:
        async def measured(head: HttpHead, body: bytes) -> Any:
            return 200, [*PLAIN, (b"content-length", b"12")], b""

        async with serving(FunctionRouter(measured)) as served, served.client() as client:
            client.send(get("/app", method="HEAD") + get("/app", method="HEAD"))
            for _ in range(2):
                status, headers, _ = await client.answer(is_head=True)
                assert (status, headers["content-length"]) == (200, "12")

    run(check())


def test_no_content_has_no_length() -> None:
    async def check() -> None:
        async def nothing(head: HttpHead, body: bytes) -> Any:
            return 204, [], b""

        async with serving(FunctionRouter(nothing)) as served, served.client() as client:
            client.send(get("/app") + get("/app"))
            for _ in range(2):
                status, headers, _ = await client.answer()
                assert status == 204
                assert "content-length" not in headers

    run(check())


def test_an_old_client_or_one_that_says_close_is_closed() -> None:
    async def check() -> None:
        async with serving(FunctionRouter(echo)) as served:
            for request in (get("/app", "connection: close"), b"GET /app HTTP/1.0\r\n\r\n"):
                async with served.client() as client:
                    client.send(request)
                    _, headers, _ = await client.answer()
                    assert headers["connection"] == "close"
                    assert await client.rest() == b""

    run(check())


def test_one_who_waits_to_send_is_told_to_go_on() -> None:
    async def check() -> None:
        async with serving(FunctionRouter(echo)) as served, served.client() as client:
            client.send(get("/app", "content-length: 3", "expect: 100-continue", method="PUT"))
            assert (await client.answer())[0] == 100
            client.send(b"abc")
            assert (await client.answer())[2] == b"PUT /app  3"

    run(check())


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (BackPressureError("the queue is full", retry_after_s=2.2), 503, "3"),
        (DeploymentUnavailableError("deployment x failed to deploy"), 503, "1"),
        (ReplicaUnavailableError("it died"), 502, None),
        (TimeoutError("late"), 504, None),
        (ValueError("secret"), 500, None),
    ],
)
def test_errors_have_their_statuses(error: Exception, status: int, retry_after: str | None) -> None:
    async def check() -> None:
        async def fail(head: HttpHead, body: bytes) -> Any:
            raise error

        async with serving(FunctionRouter(fail)) as served, served.client() as client:
            client.send(get("/app") + get("/app"))
            for _ in range(2):
                got, headers, body = await client.answer()
                assert got == status
                assert headers.get("retry-after") == retry_after
                assert b"secret" not in body

    run(check())


def test_a_failure_of_the_application_behind_the_deadline_is_the_deadlines() -> None:
    async def check() -> None:
        async def late(head: HttpHead, body: bytes) -> Any:
            await asyncio.sleep(0.02)
            return 500, PLAIN, b"a nested call took too long"

        async with serving(FunctionRouter(late), request_timeout_s=0.02) as served, served.client() as client:
            client.send(get("/app"))
            assert (await client.answer())[0] == 504
            client.send(get("/app", "x-request-timeout-seconds: 30"))
            assert (await client.answer())[0] == 500

    run(check())


def test_own_paths() -> None:
    async def check() -> None:
        async with serving(FunctionRouter(echo)) as served, served.client() as client:
            for path in ("/livez", "/readyz", "/-/healthz", "/metrics"):
                client.send(get(path))
                assert (await client.answer())[0] == 200, path
            client.send(get("/-/routes"))
            assert json.loads((await client.answer())[2]) == {"/app": "app", "/other": "other"}
            client.send(get("/elsewhere"))
            status, _, body = await client.answer()
            assert (status, body) == (404, b"no application has a route for '/elsewhere'; see /-/routes\n")
            draining = asyncio.ensure_future(served.server.drain(WAIT_S))
            assert await client.rest() == b""
            await draining

    run(check())


def test_a_header_that_would_split_the_answer_is_not_sent() -> None:
    async def check() -> None:
        async def split(head: HttpHead, body: bytes) -> Any:
            return 200, [(b"x-evil", b"a\r\nset-cookie: b")], b""

        async with serving(FunctionRouter(split)) as served, served.client() as client:
            client.send(get("/app"))
            status, headers, _ = await client.answer()
            assert status == 500
            assert "set-cookie" not in headers

    run(check())


# --- limits and slow clients


def test_a_head_that_is_too_large_is_refused() -> None:
    async def check() -> None:
        async with serving(FunctionRouter(echo), limits=Limits(max_header_bytes=1000)) as served:
            async with served.client() as client:
                client.send(get("/app", "x: " + "y" * 1000))
                assert (await client.answer())[0] == 431
                assert await client.rest() == b""
            async with served.client() as client:
                client.send(get("/app", "x: " + "y" * 800))
                assert (await client.answer())[0] == 200

    run(check())


@pytest.mark.parametrize("size", [1001, 3_000_000])
def test_a_body_that_is_too_large_is_refused(size: int) -> None:
    async def check() -> None:
        async with (
            serving(FunctionRouter(echo, count_bytes), limits=Limits(max_body_bytes=1000)) as served,
            served.client() as client,
        ):
            client.send(get("/app", f"content-length: {size}", method="POST") + b"x" * 10)
            status, headers, _ = await client.answer()
            assert (status, headers["connection"]) == (413, "close")

    run(check())


def test_a_chunked_body_that_turns_out_too_large_is_refused() -> None:
    async def check() -> None:
        async with (
            serving(FunctionRouter(echo, count_bytes), limits=Limits(max_body_bytes=1000)) as served,
            served.client() as client,
        ):
            client.send(get("/app", "transfer-encoding: chunked", method="POST"))
            for _ in range(3):
                client.send(b"190\r\n" + b"x" * 400 + b"\r\n")
                await asyncio.sleep(0.01)
            assert (await client.answer())[0] == 413

    run(check())


@pytest.mark.parametrize("start", [b"GET /app HTT", get("/app")[:-2], post("/app", b"abc")[:-1]])
def test_one_who_does_not_finish_a_request_is_told_so(start: bytes) -> None:
    async def check() -> None:
        limits = Limits(header_timeout_s=0.05, body_timeout_s=0.05)
        async with serving(FunctionRouter(echo), limits=limits) as served, served.client() as client:
            client.send(start)
            assert (await client.answer())[0] == 408
            assert await client.rest() == b""

    run(check())


def test_an_idle_connection_is_closed_without_a_word() -> None:
    async def check() -> None:
        limits = Limits(keep_alive_s=0.05)
        async with serving(FunctionRouter(echo), limits=limits) as served, served.client() as client:
            client.send(get("/app"))
            await client.answer()
            assert await client.rest() == b""

    run(check())


def test_a_slow_handler_is_no_slow_client() -> None:
    async def check() -> None:
        limits = Limits(header_timeout_s=0.01, body_timeout_s=0.01, keep_alive_s=0.01)

        async def slow(head: HttpHead, body: bytes) -> Any:
            for _ in range(4):
                await asyncio.sleep(0.02)
                served.server._sweep()
            return 200, PLAIN, b"done"

        async with serving(FunctionRouter(slow), limits=limits) as served, served.client() as client:
            client.send(post("/app", b"x"))
            assert (await client.answer())[2] == b"done"

    run(check())


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET\r\n\r\n", b"POST /app HTTP/1.1\r\ncontent-length: x\r\n\r\n"],
)
def test_what_is_not_http_is_refused(garbage: bytes) -> None:
    async def check() -> None:
        async with serving(FunctionRouter(echo)) as served, served.client() as client:
            client.send(garbage)
            assert (await client.answer())[0] == 400
            assert await client.rest() == b""

    run(check())


# --- clients that leave


@pytest.mark.parametrize("ignores", [False, True])
def test_the_handler_of_a_client_that_leaves_is_cancelled(ignores: bool) -> None:
    async def check() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()
        outcome: list[str] = []
        go = asyncio.Event()

        async def wait(head: HttpHead, body: bytes) -> Any:
            begun.set()
            try:
                await go.wait()
                outcome.append("finished")
            except asyncio.CancelledError:
                outcome.append("cancelled")
                raise
            finally:
                ended.set()
            return 200, PLAIN, b""

        async with serving(FunctionRouter(wait)) as served:
            async with served.client() as client:
                client.send(get("/app", *(["x-request-disconnect-disabled: ?1"] if ignores else [])))
                await begun.wait()
            if ignores:
                while served.server.open_connections:  # noqa: ASYNC110
                    await asyncio.sleep(0)
                go.set()
            await ended.wait()
            assert outcome == ["finished" if ignores else "cancelled"]
            await asyncio.sleep(0)
            served.server._flush_log()
            assert json.loads(served.log.getvalue())["status"] == 499

    run(check())


# --- streams


def stream_of(items: list[bytes], *, headers: Any = PLAIN, error: Exception | None = None) -> Any:
    async def handler(head: HttpHead, body: bytes) -> Any:
        async def generate() -> AsyncIterator[bytes]:
            yield pack(HttpResponseHead(200, headers), items[0])
            for item in items[1:]:
                yield item
            if error is not None:
                raise error

        return generate()

    return handler


def test_a_stream_is_sent_in_chunks_and_the_connection_goes_on() -> None:
    async def check() -> None:
        router = FunctionRouter(stream_of([b"a", b"", b"b", b"c"]))
        async with serving(router) as served, served.client() as client:
            client.send(get("/app") + get("/app"))
            for _ in range(2):
                status, headers, body = await client.answer()
                assert (status, body) == (200, b"abc")
                assert headers["transfer-encoding"] == "chunked"

    run(check())


def test_a_stream_of_known_length_is_not_chunked() -> None:
    async def check() -> None:
        handler = stream_of([b"ab", b"c"], headers=[(b"content-length", b"3")])
        async with serving(FunctionRouter(handler)) as served, served.client() as client:
            client.send(get("/app") + get("/app"))
            for _ in range(2):
                _, headers, body = await client.answer()
                assert (headers["content-length"], body) == ("3", b"abc")

    run(check())


def test_a_stream_that_fails_is_cut_without_its_last_chunk() -> None:
    async def check() -> None:
        handler = stream_of([b"a", b"b"], error=ReplicaUnavailableError("it died"))
        async with serving(FunctionRouter(handler)) as served, served.client() as client:
            client.send(get("/app"))
            text = await client.rest()
            assert text.endswith(b"1\r\na\r\n1\r\nb\r\n")

    run(check())


def test_server_sent_events_that_fail_end_with_an_error_event() -> None:
    async def check() -> None:
        events = [(b"content-type", b"text/event-stream; charset=utf-8")]
        handler = stream_of([b"data: 1\n\n"], headers=events, error=ValueError("secret"))
        async with serving(FunctionRouter(handler)) as served, served.client() as client:
            client.send(get("/app"))
            text = await client.rest()
            assert b"event: error\ndata: Internal Server Error\n\n" in text
            assert b"secret" not in text
            assert not text.endswith(b"0\r\n\r\n")

    run(check())


def test_a_stream_whose_client_leaves_is_closed() -> None:
    async def check() -> None:
        closed = asyncio.Event()

        async def endless(head: HttpHead, body: bytes) -> Any:
            async def generate() -> AsyncIterator[bytes]:
                try:
                    yield pack(HttpResponseHead(200, PLAIN), b"x")
                    while True:
                        await asyncio.sleep(0)
                        yield b"x"
                finally:
                    closed.set()

            return generate()

        async with serving(FunctionRouter(endless)) as served:
            async with served.client() as client:
                client.send(get("/app"))
                await client.reader.readuntil(b"x\r\n")
            await closed.wait()

    run(check())


# --- uploads


async def count_bytes(method: str, first: bytes, rest: Any) -> AsyncIterator[bytes]:
    """A replica that takes a streamed body."""
    from retinue.serve.messages import unpack

    head, start = unpack(HttpHead, first)
    size = len(start)
    async for item in rest:
        size += len(item)
    yield pack(HttpResponseHead(200, PLAIN), f"{head.method} {size}".encode())


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_large_body_is_streamed(is_chunked: bool) -> None:
    async def check() -> None:
        piece = b"x" * 100_000
        async with (
            serving(FunctionRouter(echo, count_bytes)) as served,
            served.client() as client,
        ):
            for _ in range(2):
                header = "transfer-encoding: chunked" if is_chunked else f"content-length: {50 * len(piece)}"
                client.send(get("/app", header, method="PUT"))
                for _ in range(50):
                    client.send(b"186a0\r\n" + piece + b"\r\n" if is_chunked else piece)
                    await client.writer.drain()
                if is_chunked:
                    client.send(b"0\r\n\r\n")
                assert (await client.answer())[2] == b"PUT 5000000"

    run(check())


def test_a_client_that_leaves_in_mid_upload_ends_its_handler() -> None:
    async def check() -> None:
        ended = asyncio.Event()

        async def take(method: str, first: bytes, rest: Any) -> AsyncIterator[bytes]:
            try:
                async for _ in rest:
                    pass
                yield pack(HttpResponseHead(200, PLAIN))
            finally:
                ended.set()

        async with serving(FunctionRouter(echo, take)) as served:
            async with served.client() as client:
                client.send(get("/app", "content-length: 9000000", method="PUT") + b"x" * 100_000)
                await client.writer.drain()
                await asyncio.sleep(0.01)
            await ended.wait()

    run(check())


# --- websockets


async def shout(method: str, first: bytes, rest: Any) -> AsyncIterator[bytes]:
    import msgspec

    assert method == "websocket"
    messages = rest.__aiter__()
    yield msgspec.msgpack.encode({"type": "websocket.accept", "headers": [(b"x-from", b"here")]})
    async for item in messages:
        message = msgspec.msgpack.decode(item)
        if message["type"] == "websocket.disconnect":
            return
        yield msgspec.msgpack.encode({"type": "websocket.send", "text": message["text"].upper()})


def test_websockets_pass_both_ways() -> None:
    websockets = pytest.importorskip("websockets.asyncio.client")

    async def check() -> None:
        async with serving(FunctionRouter(echo, shout)) as served:
            url = f"ws://127.0.0.1:{served.port}"
            async with websockets.connect(url + "/app/chat", proxy=None) as socket:
                assert socket.response.headers["x-from"] == "here"
                for word in ("one", "two"):
                    await socket.send(word)
                    assert await socket.recv() == word.upper()
            with pytest.raises(Exception, match="404"):
                await websockets.connect(url + "/nowhere", proxy=None)

    run(check())


def test_messages_can_be_encoded() -> None:
    assert encode(HttpResponseHead(200, [(b"a", b"b")]))
