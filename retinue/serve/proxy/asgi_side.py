"""What does not fit into one frame: uploads that are streamed, and websockets.

An ASGI application for uvicorn, behind which each request is an exchange of items with a replica, both ways
at the same time, as fast as the slower side reads (64 items and 4 MiB under way at most).

Lives here: those two. Does not: small requests (`http`), what the replica makes of the items (`replica`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from retinue.serve.messages import HttpHead, HttpResponseHead, Route, encode, pack, unpack
from retinue.serve.proxy import answers
from retinue.serve.proxy.http import METRICS_PATH, is_event_stream, send_body, start_message
from retinue.serve.proxy.requests import BadHeaderError, Passage

if TYPE_CHECKING:
    from retinue.serve.proxy.server import HttpServer
    from retinue.serve.routing.router import RequestMeta
    from retinue.serve.routing.streams import RoutedStream

logger = logging.getLogger(__name__)

# uvicorn hands on about 64 KiB at a time; gathering four of them made uploads 1.4 times as fast.
GATHER_BYTES = 256 * 1024
WEBSOCKET_TRY_AGAIN = 1013  # RFC 6455's registry: the server is overloaded or restarts
WEBSOCKET_ERROR = 1011

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class _ClientLeftError(Exception):
    """The connection ended before the request's body did."""


class AsgiSide:
    """The application that uvicorn runs for what the short way does not take."""

    def __init__(self, proxy: HttpServer) -> None:
        self._proxy = proxy

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "websocket":
            await self._websocket(scope, receive, send)
        elif kind == "http":
            await self._http(scope, receive, send)
        else:
            raise RuntimeError(f"uvicorn asked for {kind!r}")

    # --- HTTP

    async def _http(self, scope: Any, receive: Receive, send: Send) -> None:
        proxy = self._proxy
        passage = Passage(scope["method"], scope["path"], scope["known"], proxy.ids)
        upload = Upload(receive, proxy.limits.max_body_bytes)
        progress = Progress(send)
        try:
            if scope["path"] == METRICS_PATH:
                await self._say(progress, passage, scope, await proxy.metrics_answer())
                return
            route = None if scope["path"] in proxy.own_paths else proxy.routes.find(scope["path"])
            if route is None:
                await self._say(progress, passage, scope, proxy.own_answer(scope["path"]))
                return
            meta = passage.read_headers(route, scope["known"], proxy.request_timeout_s, proxy.ids)
            head = proxy.head_of(scope, route, meta, passage)
            watcher = asyncio.ensure_future(self._exchange(head, route, meta, upload, progress, passage))
            status = await upload.guard(watcher, ignores_disconnect=passage.ignores_disconnect)
            proxy.finished(passage, status, scope["client"])
        except BadHeaderError as error:
            await self._say(progress, passage, scope, answers.bad_request(str(error)))
        except _ClientLeftError:
            proxy.finished(passage, answers.CLIENT_LEFT, scope["client"])
        except _BodyTooLargeError:
            await self._say(progress, passage, scope, answers.too_large(proxy.limits.max_body_bytes))
        except Exception as error:  # noqa: BLE001 - each has an answer
            await self._say(progress, passage, scope, proxy.answer_to(error, passage))

    async def _exchange(
        self,
        head: HttpHead,
        route: Route,
        meta: RequestMeta,
        upload: Upload,
        progress: Progress,
        passage: Passage,
    ) -> int:
        router = self._proxy.router(route)
        stream = await router.exchange("http", pack(head, await upload.first()), upload, meta)
        try:
            items = await stream.read()
            if not items[0]:  # the replica has begun
                items = items[1:] or await stream.read()
            answer, first = unpack(HttpResponseHead, items[0])
            if answer.status == 500 and passage.is_late():
                raise TimeoutError
            start = start_message(answer, passage)
            progress.head = answer
            await progress.send(start)
            items[0] = bytes(first)
            await send_body(progress.send, items, stream)
            return answer.status
        finally:
            await stream.aclose()

    async def _say(self, progress: Progress, passage: Passage, scope: Any, answer: answers.Answer) -> None:
        """The proxy's own answer; behind the first byte of another one, its end."""
        self._proxy.finished(passage, answer.status, scope["client"])
        if progress.head is None:
            headers = [*answer.headers, (b"content-length", b"%d" % len(answer.body))]
            if (b"connection", b"close") not in headers:
                headers.append((b"connection", b"close"))  # the rest of the body was not read
            await progress.send(start_message(HttpResponseHead(answer.status, headers), passage))
            await progress.send({"type": "http.response.body", "body": answer.body, "more_body": False})
            return
        if is_event_stream(progress.head):
            event = answers.error_event(answer)
            await progress.send({"type": "http.response.body", "body": event, "more_body": True})
        # Returning without the last chunk: uvicorn closes the connection in the middle of the body.

    # --- websockets

    async def _websocket(self, scope: Any, receive: Receive, send: Send) -> None:
        proxy = self._proxy
        known = dict(scope["headers"])
        passage = Passage("WEBSOCKET", scope["path"], known, proxy.ids)
        route = proxy.routes.find(scope["path"])
        progress = Progress(send)
        await receive()  # websocket.connect
        if route is None:
            await self._close(progress, passage, scope, proxy.own_answer(scope["path"]))
            return
        try:
            meta = passage.read_headers(route, known, None, proxy.ids)
            head = proxy.head_of(scope, route, meta, passage, list(scope.get("subprotocols", ())))
            stream = await proxy.router(route).exchange("websocket", encode(head), _messages(receive), meta)
            await self._pass_on(stream, progress)
            proxy.finished(passage, 101 if progress.is_accepted else 403, scope["client"])
        except BadHeaderError as error:
            await self._close(progress, passage, scope, answers.bad_request(str(error)))
        except Exception as error:  # noqa: BLE001 - each has an answer
            await self._close(progress, passage, scope, proxy.answer_to(error, passage))

    @staticmethod
    async def _pass_on(stream: RoutedStream, progress: Progress) -> None:
        try:
            async for item in stream:
                message = msgspec.msgpack.decode(item)
                if message["type"] in ("websocket.accept", "websocket.http.response.start"):
                    message["headers"] = [(bytes(n), bytes(v)) for n, v in message.get("headers") or ()]
                await progress.send(message)
        finally:
            await stream.aclose()

    async def _close(self, progress: Progress, passage: Passage, scope: Any, answer: answers.Answer) -> None:
        self._proxy.finished(passage, answer.status, scope["client"])
        if progress.is_accepted:
            code = WEBSOCKET_TRY_AGAIN if answer.status == 503 else WEBSOCKET_ERROR
            reason = answer.body.decode()[:120]
            await progress.send({"type": "websocket.close", "code": code, "reason": reason})
        elif "websocket.http.response" in scope.get("extensions", {}):
            await progress.send(
                {
                    "type": "websocket.http.response.start",
                    "status": answer.status,
                    "headers": [*answer.headers, (b"content-length", b"%d" % len(answer.body))],
                }
            )
            await progress.send({"type": "websocket.http.response.body", "body": answer.body})
        else:
            await progress.send({"type": "websocket.close", "code": 1000})


async def _messages(receive: Receive) -> AsyncIterator[bytes]:
    """The client's messages, until it leaves: that is the last one."""
    while True:
        message = await receive()
        yield msgspec.msgpack.encode(message)
        if message["type"] == "websocket.disconnect":
            return


class Progress:
    """How far an answer has gone."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.head: HttpResponseHead | None = None
        self.is_accepted = False

    async def send(self, message: Any) -> None:
        kind = message["type"]
        if kind == "websocket.accept":
            self.is_accepted = True
        try:
            await self._send(message)
        except RuntimeError:
            if kind.startswith("websocket."):  # the client has left meanwhile: the handler is being told
                return
            raise


class _BodyTooLargeError(Exception):
    """A body without a length turned out to be above the limit."""


class Upload:
    """A request's body as items of some 256 KiB, for the router to send on; iterate over it once."""

    def __init__(self, receive: Receive, limit_bytes: int) -> None:
        self._receive = receive
        self._limit_bytes = limit_bytes
        self._size = 0
        self._first: bytes | None = None
        self._is_complete = False
        self._receiving: asyncio.Future[Any] | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def first(self) -> bytes:
        """What there is of the body by now; the rest comes by iterating."""
        return await self._next()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._is_complete:
            raise StopAsyncIteration
        data = await self._next()
        if not data and self._is_complete:
            raise StopAsyncIteration
        return data

    async def _next(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        while not self._is_complete and (not parts or size < GATHER_BYTES):
            receiving = self._receiving or asyncio.ensure_future(self._receive())
            self._receiving = receiving
            if parts:
                await asyncio.sleep(0)
                if not receiving.done():
                    break  # what is there goes on
            message = await receiving
            self._receiving = None
            if message["type"] == "http.disconnect":
                self._end(_ClientLeftError())
                raise _ClientLeftError
            body = message["body"]
            self._is_complete = not message["more_body"]
            self._size += len(body)
            if self._size > self._limit_bytes:
                self._end(_BodyTooLargeError())
                raise _BodyTooLargeError
            if body:
                parts.append(body)
                size += len(body)
        if self._is_complete and not self._over.done():
            self._over.set_result(None)
        return b"".join(parts)

    def _end(self, error: Exception) -> None:
        if not self._over.done():
            self._over.set_exception(error)
            self._over.exception()  # whoever guards it looks; nobody may

    async def guard(self, answering: asyncio.Future[int], *, ignores_disconnect: bool) -> int:
        """Wait for the answer to be out. Raises what ended the body early, and stops answering then."""
        try:
            while not answering.done():
                waits: set[asyncio.Future[Any]] = {answering}
                leaving: asyncio.Future[Any] | None = None
                if not self._over.done():
                    waits.add(self._over)
                elif not ignores_disconnect:
                    leaving = asyncio.ensure_future(self._receive())  # the body is in: only its end can come
                    waits.add(leaving)
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if self._over.done() and self._over.exception() is not None and not answering.done():
                    raise self._over.exception()  # type: ignore[misc]
                if leaving is not None:
                    if leaving.done() and not answering.done():
                        raise _ClientLeftError
                    leaving.cancel()
            return answering.result()
        finally:
            if self._receiving is not None:
                self._receiving.cancel()
            if not answering.done():
                answering.cancel()
                await asyncio.wait({answering})
