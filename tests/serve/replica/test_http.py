"""Plain deployments over HTTP: what results become, streams, errors."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pydantic
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse

from retinue.serve.context import request_context
from tests.serve.replica.conftest import Place, Test

Run = Callable[[Test], None]
JSON, TEXT = b"application/json", b"text/plain; charset=utf-8"


class Point(pydantic.BaseModel):
    x: int


def answer(value: Any) -> Any:
    class Model:
        async def __call__(self, request: Request) -> Any:
            return value

    return Model


@pytest.mark.parametrize(
    ("value", "kind", "body"),
    [
        ({"a": 1}, JSON, b'{"a":1}'),
        ([1, None], JSON, b"[1,null]"),
        ("text", TEXT, b"text"),
        (b"raw", b"text/plain", b"raw"),
        (None, b"text/plain", b""),
        (5, JSON, b"5"),
        (Point(x=1), JSON, b'{"x":1}'),
        ({"p": Point(x=1)}, JSON, b'{"p":{"x":1}}'),
        (np.float32(0.5), JSON, b"0.5"),
        ({"v": np.arange(3)}, JSON, b'{"v":[0,1,2]}'),
        ({None: 1}, JSON, b'{"null":1}'),
        ((1, 2), JSON, b"[1,2]"),
    ],
)
def test_a_result_becomes_a_complete_reply(run: Run, value: Any, kind: bytes, body: bytes) -> None:
    async def test(place: Place) -> None:
        client = await place.start(answer(value))
        status, headers, got = await client.http()
        assert (status, headers[b"content-type"], got) == (200, kind, body)
        assert headers[b"content-length"] == b"%d" % len(body)
        assert place.slots.load == 0

    run(test)


def test_the_request_is_starlettes(run: Run) -> None:
    class Model:
        async def __call__(self, request: Request) -> Any:
            return {
                "method": request.method,
                "path": request.url.path,
                "root": request.scope["root_path"],
                "query": dict(request.query_params),
                "header": request.headers["x-one"],
                "json": await request.json(),
                "again": json.loads(await request.body()),
                "chunks": [len(chunk) async for chunk in request.stream()],
                "client": request.client.host,  # type: ignore[union-attr]
                "cookie": request.cookies["c"],
                "gone": await request.is_disconnected(),
            }

    async def test(place: Place) -> None:
        client = await place.start(Model)
        status, _, body = await client.http(
            "POST",
            "/app/x",
            b'{"a": 1}',
            prefix="/app",
            query_string=b"q=1",
            headers=[(b"x-one", b"1"), (b"cookie", b"c=d"), (b"host", b"h")],
            client=("1.2.3.4", 5),
        )
        assert status == 200
        assert json.loads(body) == {
            "method": "POST",
            "path": "/app/x",
            "root": "/app",
            "query": {"q": "1"},
            "header": "1",
            "json": {"a": 1},
            "again": {"a": 1},
            "chunks": [8, 0],
            "client": "1.2.3.4",
            "cookie": "d",
            "gone": False,
        }

    run(test)


def test_plain_functions_run_in_threads(run: Run) -> None:
    def model(request: Request) -> str:
        return threading.current_thread().name

    async def test(place: Place) -> None:
        client = await place.start(model)
        _, _, body = await client.http()
        assert body.startswith(b"user-")

    run(test)


def test_a_handler_may_take_no_request(run: Run) -> None:
    class Model:
        def __call__(self) -> str:
            return "hi"

    async def test(place: Place) -> None:
        client = await place.start(Model)
        assert (await client.http())[2] == b"hi"

    run(test)


def test_starlette_responses_keep_status_and_headers(run: Run) -> None:
    async def test(place: Place) -> None:
        client = await place.start(answer(JSONResponse({"a": 1}, status_code=201, headers={"x-a": "b"})))
        status, headers, body = await client.http()
        assert (status, headers[b"x-a"], body) == (201, b"b", b'{"a":1}')

    run(test)


def test_streaming_responses_stream_and_run_their_background(run: Run) -> None:
    class Model:
        done = False

        async def __call__(self, request: Request) -> Any:
            from starlette.background import BackgroundTask

            async def items() -> AsyncIterator[str]:
                for n in range(300):
                    yield f"{n},"

            task = BackgroundTask(setattr, self, "done", True)
            return StreamingResponse(items(), media_type="text/event-stream", background=task)

    async def test(place: Place) -> None:
        client = await place.start(Model)
        _, headers, body = await client.http()
        assert headers[b"content-type"].startswith(b"text/event-stream")
        assert body.decode() == "".join(f"{n}," for n in range(300))
        assert place.user.instance.done
        await place.idle()

    run(test)


@pytest.mark.parametrize("kind", ["async", "sync", "response of sync"])
def test_generators_stream(run: Run, kind: str) -> None:
    def items() -> Iterator[str]:
        for n in range(500):
            yield f"{n},"

    class Async:
        async def __call__(self, request: Request) -> AsyncIterator[str]:
            for item in items():
                yield item

    class Sync:
        def __call__(self, request: Request) -> Iterator[str]:
            yield from items()

    class Wrapped:
        def __call__(self, request: Request) -> Any:
            return StreamingResponse(items())

    async def test(place: Place) -> None:
        client = await place.start({"async": Async, "sync": Sync, "response of sync": Wrapped}[kind])
        assert (await client.http())[2].decode() == "".join(items())
        await place.idle()

    run(test)


def test_what_fails_before_its_first_chunk_is_a_500(run: Run) -> None:
    class Model:
        async def __call__(self, request: Request) -> AsyncIterator[str]:
            raise ValueError("secret")
            yield ""

    async def test(place: Place) -> None:
        client = await place.start(Model)
        status, _, body = await client.http()
        assert (status, body) == (500, b"Internal Server Error (request id r1)")

    run(test)


def test_what_fails_later_breaks_the_stream(run: Run) -> None:
    class Model:
        async def __call__(self, request: Request) -> AsyncIterator[str]:
            yield "a"
            raise ValueError("late")

    async def test(place: Place) -> None:
        client = await place.start(Model)
        with pytest.raises(ValueError, match="late"):
            await client.http()
        await place.idle()

    run(test)


@pytest.mark.parametrize("shows", [False, True])
def test_errors_show_a_traceback_only_if_asked(run: Run, shows: bool) -> None:
    class Model:
        async def __call__(self, request: Request) -> None:
            raise ValueError("secret")

    async def test(place: Place) -> None:
        client = await place.start(Model, shows_errors=shows)
        status, _, body = await client.http()
        assert status == 500
        assert (b"secret" in body) is shows

    run(test)


def test_clients_mistakes_have_their_codes(run: Run) -> None:
    class Model:
        async def __call__(self, request: Request) -> Any:
            if request.url.path == "/teapot":
                raise HTTPException(418, "short", headers={"x-pot": "1"})
            Point.model_validate(await request.json())

    async def test(place: Place) -> None:
        client = await place.start(Model)
        status, headers, body = await client.http("GET", "/teapot", headers=[(b"host", b"h")])
        assert (status, headers[b"x-pot"], body) == (418, b"1", b"short")
        assert (await client.http(body=b"{", headers=[(b"host", b"h")]))[0] == 400
        status, _, body = await client.http(body=b'{"x": "no"}', headers=[(b"host", b"h")])
        assert status == 422
        assert json.loads(body)["detail"][0]["loc"] == ["x"]

    run(test)


def test_a_plain_text_response_from_a_thread(run: Run) -> None:
    def model() -> Any:
        return PlainTextResponse("ok", 202)

    async def test(place: Place) -> None:
        client = await place.start(model)
        assert (await client.http())[0] == 202
        assert await asyncio.gather(*(client.http() for _ in range(50)))

    run(test)


def test_json_that_is_nested_too_deeply_is_the_clients_mistake(run: Run) -> None:
    class Model:
        async def __call__(self, request: Request) -> Any:
            return await request.json()

    async def test(place: Place) -> None:
        client = await place.start(Model)
        for body in (b"[" * 100_000, b"[" * 100_000 + b"NaN" + b"]" * 100_000):
            status, _, text = await client.http("POST", body=body)
            assert status == 400
            assert b"nested" in text

    run(test)


def test_what_is_cancelled_outside_of_requests_marks_no_other_code() -> None:
    shared: Any = request_context.get()
    shared.is_cancelled = True
    assert not shared.is_cancelled
