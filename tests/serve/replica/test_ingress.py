"""ASGI applications behind a replica's door: class-based routes, uploads, streams, websockets, errors."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Request, UploadFile, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from retinue import cloudpickle
from retinue.serve.exceptions import RetinueServeException
from retinue.serve.ingress import MARK, ingress
from retinue.serve.messages import REPLICA_DOOR, HttpHead, encode
from tests.serve.replica.conftest import Place, Test, http_body, http_reply

Run = Callable[[Test], None]


class Item(BaseModel):
    name: str
    price: float = 1.0


def make_api() -> type:
    app = FastAPI()
    router = APIRouter()

    @ingress(app)
    class Api:
        def __init__(self, greeting: str = "hi") -> None:
            self.greeting = greeting
            self.done = False

        @app.get("/greet/{name}")
        async def greet(self, name: str, times: int = 1) -> str:
            return f"{self.greeting} {name}" * times

        @app.get("/plain/{name}")
        def plain(self, name: str) -> str:
            return f"{self.greeting} {name}"

        @app.post("/items", status_code=201)
        async def add(self, item: Item) -> dict[str, Any]:
            return {"item": item.name, "price": item.price}

        @app.get("/fail")
        async def fail(self) -> None:
            raise ValueError("secret")

        @app.get("/missing")
        async def missing(self) -> None:
            raise HTTPException(404, "no such thing")

        @app.get("/stream")
        async def stream(self) -> StreamingResponse:
            async def items() -> AsyncIterator[str]:
                for n in range(200):
                    yield f"{n},"
                    await asyncio.sleep(0)

            background = BackgroundTask(setattr, self, "done", True)
            return StreamingResponse(items(), background=background)

        @app.get("/broken")
        async def broken(self) -> StreamingResponse:
            async def items() -> AsyncIterator[str]:
                yield "a"
                raise ValueError("late")

            return StreamingResponse(items())

        @app.get("/forever")
        async def forever(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                self.done = True

        @app.put("/size")
        async def size(self, request: Request) -> int:
            return sum([len(chunk) async for chunk in request.stream()])

        @app.post("/file")
        async def file(self, file: UploadFile) -> int:
            return len(await file.read())

        @app.websocket("/ws")
        async def echo(self, socket: WebSocket) -> None:
            await socket.accept(subprotocol=socket.scope["subprotocols"][0])
            async for text in socket.iter_text():
                await socket.send_text(f"{self.greeting} {text}")
            self.done = True

        @router.get("/inner")
        async def inner(self) -> str:
            return self.greeting

    app.include_router(router, prefix="/sub")
    return Api


@pytest.mark.parametrize(
    ("path", "query", "body"),
    [
        ("/greet/you", b"", "hi you"),
        ("/greet/you", b"times=2", "hi youhi you"),
        ("/plain/you", b"", "hi you"),
        ("/sub/inner", b"", "hi"),
    ],
)
def test_routes_among_methods_get_their_instance(run: Run, path: str, query: bytes, body: str) -> None:
    async def test(place: Place) -> None:
        client = await place.start(make_api())
        status, _, got = await client.http("GET", path, query_string=query)
        assert (status, json.loads(got)) == (200, body)

    run(test)


def test_the_applications_prefix_is_its_root_path(run: Run) -> None:
    async def test(place: Place) -> None:
        client = await place.start(make_api())
        status, _, got = await client.http("GET", "/app/greet/you", prefix="/app")
        assert (status, json.loads(got)) == (200, "hi you")
        status, _, page = await client.http("GET", "/app/docs", prefix="/app")
        assert status == 200
        assert b"/app/openapi.json" in page
        _, _, schema = await client.http("GET", "/app/openapi.json", prefix="/app")
        operation = json.loads(schema)["paths"]["/greet/{name}"]["get"]
        assert [p["name"] for p in operation["parameters"]] == ["name", "times"]

    run(test)


def test_models_are_checked(run: Run) -> None:
    async def test(place: Place) -> None:
        client = await place.start(make_api())
        json_type = [(b"content-type", b"application/json")]
        status, _, got = await client.http("POST", "/items", b'{"name": "a"}', headers=json_type)
        assert (status, json.loads(got)) == (201, {"item": "a", "price": 1.0})
        assert (await client.http("POST", "/items", b'{"price": 2}', headers=json_type))[0] == 422
        assert (await client.http("POST", "/items", b"{", headers=json_type))[0] == 422
        status, _, got = await client.http("GET", "/missing")
        assert (status, json.loads(got)) == (404, {"detail": "no such thing"})
        assert (await client.http("GET", "/nowhere"))[0] == 404

    run(test)


def test_failures_are_500_without_a_traceback(run: Run) -> None:
    async def test(place: Place) -> None:
        client = await place.start(make_api())
        status, _, body = await client.http("GET", "/fail")
        assert (status, body) == (500, b"Internal Server Error")
        with pytest.raises(Exception, match="late"):
            await client.http("GET", "/broken")
        await place.idle()

    run(test)


def test_streams_come_whole_and_background_tasks_run(run: Run) -> None:
    async def test(place: Place) -> None:
        client = await place.start(make_api())
        _, _, body = await client.http("GET", "/stream")
        assert body.decode() == "".join(f"{n}," for n in range(200))
        await place.idle()
        assert place.user.instance.done

    run(test)


def test_a_client_that_leaves_cancels_the_application(run: Run) -> None:
    async def test(place: Place) -> None:
        client = await place.start(make_api())
        asking = asyncio.ensure_future(client.http("GET", "/forever"))
        while not place.slots.load:  # noqa: ASYNC110 - others are to run, nothing tells us
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait({asking})
        await place.idle()
        assert place.user.instance.done

    run(test)


async def parts(first: bytes, count: int, size: int) -> AsyncIterator[bytes]:
    yield first
    for _ in range(count):
        yield bytes(size)


def test_uploads_are_streamed(run: Run) -> None:
    async def test(place: Place) -> None:
        client = await place.start(make_api())
        items = parts(http_body("PUT", "/size", b"12345"), 50, 100_000)
        accepted, *reply = [item async for item in client.connection.exchange(REPLICA_DOOR, "http", items)]
        assert accepted == b""
        status, _, body = http_reply(reply[0])
        assert (status, body) == (200, b"5000005")
        await place.idle()

    run(test)


def test_uploaded_files(run: Run) -> None:
    async def test(place: Place) -> None:
        client = await place.start(make_api())
        body = b'--x\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\nabc\r\n--x--\r\n'
        headers = [(b"content-type", b"multipart/form-data; boundary=x")]
        assert (await client.http("POST", "/file", body, headers=headers))[2] == b"3"

    run(test)


def test_websockets(run: Run) -> None:
    async def test(place: Place) -> None:
        client = await place.start(make_api())
        incoming: asyncio.Queue[Any] = asyncio.Queue()

        async def messages() -> AsyncIterator[bytes]:
            yield encode(HttpHead("GET", "/ws", b"/ws", b"", [], subprotocols=["p"]))
            while (message := await incoming.get()) is not None:
                yield msgspec.msgpack.encode(message)

        stream = client.connection.exchange(REPLICA_DOOR, "websocket", messages())
        accept = msgspec.msgpack.decode(await anext(stream))
        assert (accept["type"], accept["subprotocol"]) == ("websocket.accept", "p")
        for n in range(3):
            incoming.put_nowait({"type": "websocket.receive", "text": str(n)})
            answer = msgspec.msgpack.decode(await anext(stream))
            assert answer == {"type": "websocket.send", "text": f"hi {n}"}
        incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
        assert [item async for item in stream] == []
        await place.idle()
        assert place.user.instance.done

    run(test)


def test_methods_of_an_ingress_can_be_called_through_handles(run: Run) -> None:
    async def test(place: Place) -> None:
        client = await place.start(make_api(), "hello")
        assert await client.call("greet", "you") == "hello you"

    run(test)


async def _raw(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-kind", b"raw")]})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


def _build() -> Any:
    return Starlette(routes=[Route("/", lambda request: PlainTextResponse("built"))])


@pytest.mark.parametrize(
    "app", [_raw, _build, Starlette(routes=[Route("/", _build)])], ids=["raw", "builder", "app"]
)
def test_applications_of_any_kind_can_stand_alone(run: Run, app: Any) -> None:
    async def test(place: Place) -> None:
        client = await place.start(ingress(app)())
        status, _, body = await client.http("GET", "/")
        assert status in (200, 500)
        assert body in (b"/", b"built", b"Internal Server Error")

    run(test)


def test_a_class_may_build_its_application_itself(run: Run) -> None:
    @ingress()
    class Api:
        def __serve_build_asgi_app__(self) -> Any:
            app = FastAPI()
            app.add_api_route("/", lambda: 5)
            return app

    async def test(place: Place) -> None:
        client = await place.start(Api)
        assert (await client.http("GET", "/"))[2] == b"5"

    run(test)


def test_one_application_in_two_classes_answers_with_each_ones_own_routes(run: Run) -> None:
    app = FastAPI()

    @ingress(app)
    class One:
        @app.get("/one")
        async def one(self) -> int:
            return 1

    @ingress(app)
    class Two(One):
        @app.get("/two")
        async def two(self) -> int:
            return 2

    async def test(place: Place) -> None:
        client = await place.start(One)
        assert (await client.http("GET", "/one"))[2] == b"1"
        assert (await client.http("GET", "/two"))[0] == 404

    run(test)


def test_a_class_made_in_a_function_keeps_its_routes_in_another_process() -> None:
    """What cloudpickle makes there lacks the function's part of its name; its methods have it."""
    app = FastAPI()

    class Base:
        @app.get("/base")
        def base(self) -> str:
            return "base"

    @ingress(app)
    class Local(Base):
        @app.get("/own/{name}")
        def own(self, name: str) -> str:
            return name

    script = """
import sys
from retinue import cloudpickle
from retinue.serve.ingress import MARK
cls = cloudpickle.loads(sys.stdin.buffer.read())
routes = getattr(cls, MARK).make(cls()).routes
print({route.path: getattr(route.endpoint, "__self__", None) is not None for route in routes[-2:]})
"""
    done = subprocess.run(
        [sys.executable, "-c", script], input=cloudpickle.dumps(Local), capture_output=True, check=False
    )
    assert done.stdout.decode().strip() == "{'/base': True, '/own/{name}': True}", done.stderr.decode()


def test_lifespans_run_around_the_requests(run: Run) -> None:
    events: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        while True:
            message = await receive()
            events.append(message["type"])
            scope["state"]["db"] = 1
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def test(place: Place) -> None:
        from retinue.serve.replica.asgi import Lifespan

        lifespan = Lifespan(app)
        await lifespan.start()
        assert lifespan.state == {"db": 1}
        await lifespan.end()
        assert events == ["lifespan.startup", "lifespan.shutdown"]
        without = Lifespan(_raw_http_only)
        await without.start()
        await without.end()

    run(test)


async def _raw_http_only(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("http only")


def test_what_cannot_be_an_ingress_is_refused() -> None:
    class Callable_:
        def __call__(self) -> None: ...

    with pytest.raises(ValueError, match="__call__"):
        ingress(FastAPI())(Callable_)
    with pytest.raises(ValueError, match="decorates a class"):
        ingress(FastAPI())(lambda: None)
    with pytest.raises(ValueError, match="__serve_build_asgi_app__"):
        ingress()(type("Empty", (), {}))
    app = FastAPI()
    with pytest.raises(RetinueServeException, match="self"):

        @ingress(app)
        class NoSelf:
            @app.get("/")
            def route() -> None: ...  # type: ignore[misc]


def test_the_class_is_still_the_users_own() -> None:
    api = make_api()
    assert api.__name__ == "Api"
    assert api().greeting == "hi"
    assert hasattr(api, MARK)
    assert cloudpickle.loads(cloudpickle.dumps(api))("x").greeting == "x"


def test_annotations_that_are_strings_are_kept_as_types() -> None:
    """A class that goes by value takes no globals with it that only strings name."""
    source = """
from __future__ import annotations
from typing import Annotated
from fastapi import Depends, FastAPI
from pydantic import BaseModel
from retinue.serve.ingress import ingress

app = FastAPI()

class Limits(BaseModel):
    low: int = 0

def limits(given: Limits | None = None) -> Limits:
    return given or Limits()

@ingress(app)
class Api:
    @app.post("/")
    async def call(self, item: Limits, more: Annotated[Limits, Depends(limits)]) -> int:
        return item.low
"""
    names: dict[str, Any] = {"__name__": "module_of_a_user"}
    exec(source, names)
    annotations = names["Api"].call.__annotations__
    assert annotations["item"] is names["Limits"]
    assert annotations["return"] is int
    assert names["limits"].__annotations__["given"] == names["Limits"] | None
