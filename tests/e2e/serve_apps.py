"""Applications for the tests of serve as a whole. Replicas import this module: it imports no test tools."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import FastAPI, HTTPException, Request, UploadFile, WebSocket, WebSocketDisconnect
from pydantic import BaseModel
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

import retinue
from retinue import serve
from retinue.serve.context import get_request_context

TINY = {"num_cpus": 0.1}
PIECE = bytes(256) * 1024

# --- an ingress of FastAPI

api = FastAPI(docs_url="/docs")


class Item(BaseModel):
    name: str
    price: float = 1.0


@serve.deployment(ray_actor_options=TINY, max_ongoing_requests=100)
@serve.ingress(api)
class Api:
    def __init__(self) -> None:
        self.greeting = "hello"
        self.ws_over: list[str] = []

    @api.get("/hello/{name}")
    async def hello(self, name: str) -> dict[str, str]:
        return {"text": f"{self.greeting} {name}"}

    @api.get("/sync/{name}")
    def hello_from_a_thread(self, name: str) -> dict[str, Any]:
        return {"text": name, "is_main": threading.current_thread() is threading.main_thread()}

    @api.post("/items")
    async def item(self, item: Item) -> Item:
        return item

    @api.get("/teapot")
    async def teapot(self) -> None:
        raise HTTPException(418, detail="short and stout", headers={"x-kind": "teapot"})

    @api.get("/fail")
    async def fail(self) -> None:
        raise ValueError("the secret of the handler")

    @api.get("/where")
    async def where(self, request: Request) -> dict[str, Any]:
        return {
            "root_path": request.scope["root_path"],
            "path": request.scope["path"],
            "url": str(request.url_for("where")),
            "scheme": request.url.scheme,
        }

    @api.get("/sse")
    async def sse(self, fail: bool = False, kind: str = "text/event-stream") -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            for number in range(3):
                yield f"data: {number}\n\n"
            if fail:
                raise ValueError("the secret of the stream")

        return StreamingResponse(events(), media_type=kind)

    @api.put("/upload")
    async def upload(self, request: Request) -> dict[str, int]:
        size, total = 0, 0
        async for chunk in request.stream():
            size += len(chunk)
            total += chunk.count(b"x")
        return {"size": size, "count": total, "pid": os.getpid()}

    @api.post("/files")
    async def files(self, first: UploadFile, second: UploadFile) -> dict[str, Any]:
        return {f.filename or "": len(await f.read()) for f in (first, second)}

    @api.get("/download")
    async def download(self, size: int) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            left = size
            while left:
                yield PIECE[:left]
                left -= min(left, len(PIECE))

        return StreamingResponse(pieces(), headers={"content-length": str(size)})

    @api.websocket("/ws")
    async def ws(self, socket: WebSocket) -> None:
        await socket.accept(subprotocol="chat" if "chat" in socket.scope["subprotocols"] else None)
        try:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    raise WebSocketDisconnect(message.get("code", 0))
                if message.get("bytes") is not None:
                    await socket.send_bytes(message["bytes"][::-1])
                elif message["text"] == "close":
                    await socket.close(4001, "asked for")
                    return
                elif message["text"] == "fail":
                    raise ValueError("the secret of the socket")
                else:
                    await socket.send_text(message["text"].upper())
        except WebSocketDisconnect as left:
            self.ws_over.append(f"left {left.code}")

    @api.websocket("/ws/closed")
    async def closed(self, socket: WebSocket) -> None:
        await socket.close()

    def sockets_over(self) -> list[str]:
        return self.ws_over


# --- raw ASGI


async def raw_asgi(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": message["type"] + ".complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["type"] == "websocket":
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": "raw " + message["text"]})
        return
    await send({"type": "http.response.start", "status": 201, "headers": [(b"x-raw", b"yes")]})
    await send({"type": "http.response.body", "body": b"raw ", "more_body": True})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


Raw = serve.deployment(serve.ingress(raw_asgi)(), name="Raw", ray_actor_options=TINY)

# --- a class without a framework


@serve.deployment(ray_actor_options=TINY, max_ongoing_requests=100)
class Plain:
    """Answers by the last part of the path."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}

    async def __call__(self, request: Request) -> Any:
        what = request.url.path.rpartition("/")[2]
        self.calls[what] = self.calls.get(what, 0) + 1
        return await getattr(self, what)(request)

    async def echo(self, request: Request) -> Any:
        return await request.json()

    async def raw(self, request: Request) -> bytes:
        return (await request.body())[::-1]

    async def text(self, request: Request) -> str:
        return request.method + " " + str(request.query_params)

    async def response(self, request: Request) -> Response:
        return JSONResponse({"made": True}, status_code=202, headers={"x-made": "by hand"})

    async def plain_text(self, request: Request) -> Response:
        return PlainTextResponse("text")

    async def items(self, request: Request) -> Any:
        async def generate() -> AsyncIterator[Any]:
            yield "one "
            yield b"two "
            yield {"three": 3}

        return generate()

    async def thread_items(self, request: Request) -> Any:
        def generate() -> Iterator[str]:
            for number in range(100):
                yield f"{number} "

        return generate()

    async def broken_items(self, request: Request) -> Any:
        async def generate() -> AsyncIterator[str]:
            yield "one "
            raise ValueError("the secret of the items")

        return generate()

    async def fail(self, request: Request) -> None:
        raise ValueError("the secret of the handler")

    async def slow(self, request: Request) -> str:
        await asyncio.Event().wait()
        return "never"

    async def context(self, request: Request) -> dict[str, Any]:
        return here()

    def count(self, what: str) -> int:
        return self.calls.get(what, 0)


def here() -> dict[str, Any]:
    """What the running request knows of itself."""
    context = get_request_context()
    return {
        "request_id": context.request_id,
        "trace": context.trace,
        "left_s": context.deadline - time.monotonic() if context.deadline else None,
        "model_id": serve.get_multiplexed_model_id(),
        "session_id": context.session_id,
        "app": context.app_name,
        "replica": serve.get_replica_context().replica_id,
    }


# --- a chain of two


@serve.deployment(ray_actor_options=TINY, max_ongoing_requests=100)
class Inner:
    def __init__(self) -> None:
        self.cancelled = 0

    async def context(self) -> dict[str, Any]:
        return here()

    async def wait(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def cancels(self) -> int:
        return self.cancelled


@serve.deployment(ray_actor_options=TINY, max_ongoing_requests=100)
class Outer:
    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.cancelled = 0

    async def __call__(self, request: Request) -> dict[str, Any]:
        if request.url.path.endswith("wait"):
            await self.inner.wait.remote()
        return {"outer": here(), "inner": await self.inner.context.remote()}


# --- waiting until somebody opens


@serve.deployment(ray_actor_options=TINY, max_ongoing_requests=2000)
class Gate:
    """Requests wait in it; it notes when they are cancelled (CLOCK_MONOTONIC is one for all processes)."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.news = asyncio.Event()
        self.ongoing = 0
        self.most = 0
        self.cancelled_at: list[float] = []

    def count(self, change: int) -> None:
        self.ongoing += change
        self.most = max(self.most, self.ongoing)
        self.news.set()

    async def __call__(self, request: Request) -> str:
        self.count(1)
        try:
            await self.event.wait()
        except asyncio.CancelledError:
            self.cancelled_at.append(time.monotonic())
            raise
        finally:
            self.count(-1)
        return "open"

    async def open(self) -> None:
        self.event.set()

    async def close(self) -> None:
        self.event = asyncio.Event()
        self.cancelled_at.clear()
        self.most = self.ongoing

    async def facts(self) -> dict[str, Any]:
        return {"ongoing": self.ongoing, "most": self.most, "cancelled_at": self.cancelled_at}

    async def until_ongoing(self, count: int) -> bool:
        while self.ongoing != count:
            self.news.clear()
            await self.news.wait()
        return True


@serve.deployment(ray_actor_options=TINY, max_ongoing_requests=10)
class ThreadGate:
    """The same in threads, which ask whether they are cancelled."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.began = 0
        self.cancelled_at: list[float] = []

    def __call__(self, request: Request) -> str:
        with self.lock:
            self.began += 1
        wait = threading.Event()
        for _ in range(5000):
            if retinue.get_runtime_context().is_canceled():
                self.cancelled_at.append(time.monotonic())
                return "cancelled"
            wait.wait(0.002)
        return "not cancelled"

    async def facts(self) -> dict[str, Any]:
        return {"began": self.began, "cancelled_at": self.cancelled_at}


# --- models and sessions


@serve.deployment(ray_actor_options=TINY, num_replicas=2, max_ongoing_requests=10)
class Models:
    def __init__(self) -> None:
        self.loads: list[str] = []

    @serve.multiplexed(max_num_models_per_replica=2)
    async def model(self, model_id: str) -> str:
        self.loads.append(model_id)
        return f"model {model_id}"

    async def __call__(self, request: Request) -> dict[str, Any]:
        model = await self.model() if serve.get_multiplexed_model_id() else ""
        return {"model": model, **here()}

    async def loaded(self) -> list[str]:
        return self.loads
