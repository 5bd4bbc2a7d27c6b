"""A real HTTP server on a loopback port whose replicas are functions of the test."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any

from retinue.serve.access_log import AccessLog
from retinue.serve.messages import HttpHead, HttpResponseHead, Route, RouteTable, pack, unpack
from retinue.serve.proxy.measures import RequestMeasures
from retinue.serve.proxy.server import HttpServer, Limits

Handler = Callable[[HttpHead, bytes], Awaitable[Any]]


class ItemStream:
    """What a router returns for a streamed answer, over an async generator of the test's."""

    def __init__(self, items: AsyncIterator[bytes]) -> None:
        self._items = items
        self.is_closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._items

    async def read(self) -> list[bytes]:
        async for item in self._items:
            return [item]
        return []

    async def aclose(self) -> None:
        self.is_closed = True
        await self._items.aclose()  # type: ignore[attr-defined]


class FunctionRouter:
    """Routes to a function: `handler(head, body)` returns (status, headers, body), or an async generator."""

    def __init__(self, handler: Handler, exchange: Any = None) -> None:
        self.handler = handler
        self.exchanger = exchange
        self.metas: list[Any] = []

    async def ask(self, method: str, body: bytes, meta: Any) -> Any:
        assert method == "http"
        self.metas.append(meta)
        head, payload = unpack(HttpHead, body)
        answer = await self.handler(head, bytes(payload))
        if isinstance(answer, tuple):
            status, headers, content = answer
            return pack(HttpResponseHead(status, headers), content)
        return ItemStream(answer)

    def ask_soon(self, method: str, body: bytes, meta: Any, then: Any) -> Any:
        async def ask() -> None:
            try:
                answer = await self.ask(method, body, meta)
            except Exception as error:
                then(None, error)
            else:
                then(answer, None)

        return asyncio.ensure_future(ask())

    async def exchange(self, method: str, first: bytes, rest: AsyncIterable[bytes], meta: Any) -> ItemStream:
        self.metas.append(meta)
        return ItemStream(self.exchanger(method, first, rest))


async def metrics_page() -> bytes:
    return b"# metrics\n"


class OneRouter:
    def __init__(self, router: FunctionRouter) -> None:
        self._router = router

    def get(self, app_name: str, deployment_name: str) -> Any:
        return self._router


class Client:
    """One raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, *, is_head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Read one complete answer; EOFError (IncompleteReadError) if it is cut."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        status = int(head[0].split(" ")[1])
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in head[1:] if line)}
        if status == 100:
            return status, headers, b""
        body = b""
        if is_head:
            return status, headers, body
        if headers.get("transfer-encoding") == "chunked":
            while size := int((await self.reader.readuntil(b"\r\n"))[:-2], 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
        elif "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
        return status, headers, body

    async def rest(self) -> bytes:
        """Everything up to the connection's end."""
        return await self.reader.read()


class Served:
    def __init__(self, server: HttpServer, port: int, log: io.StringIO) -> None:
        self.server = server
        self.port = port
        self.log = log

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 26)
        try:
            yield Client(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(router: FunctionRouter, **options: Any) -> AsyncIterator[Served]:
    log = io.StringIO()
    limits = options.pop("limits", Limits())
    server = HttpServer(
        OneRouter(router),  # type: ignore[arg-type]
        limits=limits,
        access_log=AccessLog(log, is_json=True),
        measures=RequestMeasures(),
        metrics_page=metrics_page,
        **options,
    )
    server.use_routes(RouteTable([Route("/app", "app", "ingress"), Route("/other", "other", "ingress")]))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        await server.start(listener)
        try:
            yield Served(server, listener.getsockname()[1], log)
        finally:
            await server.close()
