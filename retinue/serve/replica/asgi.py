"""ASGI applications, run straight from the requests' items: HTTP, uploads, websockets, lifespan.

Each request's application is a task of its own. Not the door's, which would be cheaper by 2 us: frameworks
cancel their own task to leave their scopes, and would hit the sending of an answer with it.

Lives here: the ASGI protocol's server side. Does not: which application (`retinue.serve.ingress`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from retinue.serve.context import RequestContext, request_context
from retinue.serve.messages import HttpHead, HttpResponseHead, decode, pack
from retinue.serve.replica.http import scope_of
from retinue.serve.replica.measures import note_failure

logger = logging.getLogger("retinue.serve")

Message = Any
AsgiApp = Callable[
    [dict[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]
]

# A head whose first chunk is late goes alone after so long: until then errors can still become a 500.
HEAD_WAIT_S = 1.0
# What an application may have sent that the connection has not taken: above it, `send` waits.
MAX_UNSENT_BYTES = 1 << 20
_pack_message = msgspec.msgpack.Encoder().encode
_unpack_message = msgspec.msgpack.Decoder().decode


class AsgiError(RuntimeError):
    """The application did not keep to ASGI."""


class Running:
    """An application's task, and what it has sent that nobody has taken."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None]

    def start(self, app: AsgiApp, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.task = self._loop.create_task(_run(app, scope, receive, send))
        self.task.add_done_callback(self.wake)

    def wake(self, _: object = None) -> None:
        """There is something for the reader."""
        reader = self._reader
        if reader is not None and not reader.done():
            reader.set_result(None)

    async def wait(self, timeout_s: float | None = None) -> None:
        """Until woken. The caller looks first, and again afterwards."""
        self._reader = self._loop.create_future()
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, self.wake)
        try:
            await self._reader
        finally:
            self._reader = None
            if timer is not None:
                timer.cancel()

    async def wait_room(self) -> None:
        self._writer = self._loop.create_future()
        try:
            await self._writer
        finally:
            self._writer = None

    def give_room(self) -> None:
        writer = self._writer
        if writer is not None and not writer.done():
            writer.set_result(None)

    async def stop(self) -> None:
        """Cancel it, and return when its code has: the slot is taken until then."""
        self.task.cancel()
        while not self.task.done():
            try:
                await asyncio.wait({self.task})
            except asyncio.CancelledError:
                self.task.cancel()
        if not self.task.cancelled():
            self.task.exception()  # nobody is there to hear of it


async def _run(app: AsgiApp, scope: dict[str, Any], receive: Any, send: Any) -> None:
    await app(scope, receive, send)


class HttpCall:
    """One HTTP request to an application."""

    def __init__(
        self, body: bytes, upload: AsyncIterator[bytes] | None, *, shows_errors: bool = False
    ) -> None:
        self._shows_errors = shows_errors
        self._running = Running()
        self._body = body
        self._upload = upload
        self._is_body_read = False
        self._head: HttpResponseHead | None = None
        self._chunks: list[bytes] = []
        self._unsent = 0
        self._is_complete = False

    # --- the application's side

    async def receive(self) -> Message:
        if not self._is_body_read:
            if self._upload is None:
                self._is_body_read = True
                return {"type": "http.request", "body": self._body, "more_body": False}
            if self._body:
                body, self._body = self._body, b""
                return {"type": "http.request", "body": body, "more_body": True}
            async for chunk in self._upload:
                return {"type": "http.request", "body": chunk, "more_body": True}
            self._is_body_read = True
            return {"type": "http.request", "body": b"", "more_body": False}
        # A client that leaves cancels us; there is nothing else to come.
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.body":
            if self._head is None or self._is_complete:
                raise AsgiError(
                    f"{kind} {'after the end' if self._is_complete else 'before http.response.start'}"
                )
            chunk = message.get("body", b"")
            if chunk:
                self._chunks.append(chunk if type(chunk) is bytes else bytes(chunk))
                self._unsent += len(chunk)
            if not message.get("more_body", False):
                self._is_complete = True
            self._running.wake()
            while self._unsent > MAX_UNSENT_BYTES and not self._is_complete:
                await self._running.wait_room()
        elif kind == "http.response.start":
            if self._head is not None:
                raise AsgiError("http.response.start twice")
            headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
            self._head = HttpResponseHead(message["status"], headers)
            self._running.wake()
        else:
            raise AsgiError(f"unexpected message {kind!r}")

    # --- the replica's side

    async def answer(self, app: AsgiApp, scope: dict[str, Any]) -> bytes | AsyncIterator[bytes]:
        """A complete reply, or items. Raises what the application raised before it began to answer."""
        running = self._running
        running.start(app, scope, self.receive, self.send)
        task = running.task
        deadline = 0.0
        try:
            while not (self._is_complete or self._chunks or task.done()):
                if self._head is None:
                    await running.wait()
                    continue
                now = running._loop.time()
                deadline = deadline or now + HEAD_WAIT_S
                if now >= deadline:
                    break
                await running.wait(deadline - now)
            if self._is_complete and not task.done():
                # Nearly always it ends in the same step; if not, it has work left behind its answer.
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            await running.stop()
            raise
        if task.done() and (self._is_complete or self._head is None):
            return self._complete_reply()
        assert self._head is not None
        entered = request_context.get()
        entered.status = self._head.status
        return self._items(entered)

    def _complete_reply(self) -> bytes:
        error = None if self._running.task.cancelled() else self._running.task.exception()
        if self._head is None:
            raise error or AsgiError("the application returned without a response")
        if error is not None:
            # Frameworks answer 500, and raise so that servers can log it.
            if self._shows_errors and self._head.status == 500:
                raise error
            logger.error("an ASGI application failed", exc_info=error)
        chunks = self._chunks
        return pack(self._head, chunks[0] if len(chunks) == 1 else b"".join(chunks))

    def _take(self) -> bytes:
        chunks, self._chunks = self._chunks, []
        self._unsent = 0
        self._running.give_room()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _items(self, entered: RequestContext) -> AsyncIterator[bytes]:
        """The head with what has come, then what comes, joined where it came in one turn."""
        running = self._running
        task = running.task
        assert self._head is not None
        try:
            yield pack(self._head, self._take())
            while True:
                if self._chunks:
                    yield self._take()
                elif task.done():
                    break
                else:
                    await running.wait()
            error = None if task.cancelled() else task.exception()
            if error is not None:
                raise error
            if not self._is_complete:
                raise AsgiError("the application returned in the middle of its response")
        except BaseException as error:
            note_failure(entered, error)
            raise
        finally:
            if not task.done():
                await running.stop()


async def run_http(
    app: AsgiApp,
    scope: dict[str, Any],
    body: bytes,
    upload: AsyncIterator[bytes] | None = None,
    *,
    shows_errors: bool = False,
) -> bytes | AsyncIterator[bytes]:
    """`shows_errors`: what the application raises is raised, not the 500 that it answered before."""
    return await HttpCall(body, upload, shows_errors=shows_errors).answer(app, scope)


# --- websockets


class WebSocketCall:
    """One websocket. The client's messages come as items; the first is ours: the proxy has taken it."""

    def __init__(self, messages: AsyncIterator[bytes]) -> None:
        self._running = Running()
        self._messages = messages
        self._is_connected = False
        self._has_left = False
        self._out: deque[bytes] = deque()
        self._unsent = 0

    async def receive(self) -> Message:
        if not self._is_connected:
            self._is_connected = True
            return {"type": "websocket.connect"}
        if not self._has_left:
            async for item in self._messages:
                message = _unpack_message(item)
                self._has_left = message["type"] == "websocket.disconnect"
                return message
            self._has_left = True
        return {"type": "websocket.disconnect", "code": 1005, "reason": ""}

    async def send(self, message: Message) -> None:
        if self._has_left:
            raise OSError("the client has left")
        item = _pack_message(message)
        self._out.append(item)
        self._unsent += len(item)
        self._running.wake()
        while self._unsent > MAX_UNSENT_BYTES:
            await self._running.wait_room()

    async def items(self, app: AsgiApp, scope: dict[str, Any]) -> AsyncIterator[bytes]:
        running = self._running
        running.start(app, scope, self.receive, self.send)
        try:
            while True:
                while self._out:
                    item = self._out.popleft()
                    self._unsent -= len(item)
                    running.give_room()
                    yield item
                if running.task.done():
                    break
                await running.wait()
            error = None if running.task.cancelled() else running.task.exception()
            if error is not None and not self._has_left:
                raise error
        finally:
            if not running.task.done():
                await running.stop()


def websocket_scope(first: bytes) -> tuple[HttpHead, dict[str, Any]]:
    head = decode(HttpHead, first)
    scope = scope_of(head, "websocket")
    scope["scheme"] = "wss" if head.scheme in ("https", "wss") else "ws"
    scope["extensions"] = {"websocket.http.response": {}}
    return head, scope


async def refuse_websocket() -> AsyncIterator[bytes]:
    """There is nothing that could answer it: 403 for the client."""
    yield _pack_message({"type": "websocket.close", "code": 1000})


# --- lifespan


class Lifespan:
    """An application's start and end. Applications that know of none are left alone."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._events = {"startup": asyncio.Event(), "shutdown": asyncio.Event()}
        self._failure: str | None = None
        self._task: asyncio.Task[None] | None = None
        self.state: dict[str, Any] = {}

    async def start(self) -> None:
        """Raises RuntimeError if the application says that its start failed."""
        self._task = asyncio.create_task(self._run())
        await self._tell("startup")
        if self._failure is not None:
            raise RuntimeError(f"the ASGI application failed to start: {self._failure}")

    async def end(self) -> None:
        if self._task is not None and not self._task.done():
            await self._tell("shutdown")
            if self._failure is not None:
                logger.error("an ASGI application failed to shut down: %s", self._failure)
            await asyncio.wait({self._task}, timeout=1.0)
            self._task.cancel()

    async def _tell(self, name: str) -> None:
        assert self._task is not None
        self._inbox.put_nowait({"type": f"lifespan.{name}"})
        answered = asyncio.ensure_future(self._events[name].wait())
        try:
            await asyncio.wait({answered, self._task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            answered.cancel()

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._app(scope, self._inbox.get, self._send)
        except Exception as error:
            if self._events["startup"].is_set():
                logger.exception("an ASGI application's lifespan failed")
            else:
                logger.debug("an ASGI application supports no lifespan: %r", error)

    async def _send(self, message: Message) -> None:
        _, name, outcome = message["type"].split(".")
        if outcome == "failed":
            self._failure = message.get("message") or "it gave no reason"
        self._events[name].set()
