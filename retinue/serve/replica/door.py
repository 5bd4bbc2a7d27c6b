"""The replica's door: takes a slot for each request, sets its context, and has it answered.

Lives here: the door's methods, the life of a slot, what cancelling means. Does not: who is refused (`slots`),
what requests say and answers look like (`http`, `asgi`, `grpc`, `payload`).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from starlette.responses import Response, StreamingResponse

from retinue.core.doors import DoorContext, DoorRefusedError
from retinue.serve.context import RequestContext, request_context
from retinue.serve.messages import AGE, CallHead, GrpcHead, HttpHead, status_of, unpack
from retinue.serve.payload import dumps, load_call
from retinue.serve.replica import asgi, http
from retinue.serve.replica.answering import Shielded, Turn, begin
from retinue.serve.replica.grpc import GrpcAnswerer
from retinue.serve.replica.measures import RequestMeasures, note_failure
from retinue.serve.replica.slots import Slots
from retinue.serve.replica.user_code import ASYNC, UserCode, close, is_stream

logger = logging.getLogger("retinue.serve")

UNKNOWN_METHOD = b"this replica does not know that method"
_set_context = request_context.set


class ReplicaDoor:
    """Answers routers. `app`: the ASGI application of an ingress; None: the user's `__call__` answers HTTP.

    `state` is the application's lifespan state. `shows_errors`: clients see tracebacks.
    """

    def __init__(
        self,
        user: UserCode,
        slots: Slots,
        app_name: str,
        *,
        measures: RequestMeasures | None = None,
        app: asgi.AsgiApp | None = None,
        state: dict[str, Any] | None = None,
        shows_errors: bool = False,
    ) -> None:
        self._user = user
        self._slots = slots
        self._measures = measures or RequestMeasures(app_name, user.spec.name, "", lambda: slots.load)
        self._app_name = app_name
        self._app = app
        self._state = state or {}
        self._shows_errors = shows_errors
        self._grpc_calls = GrpcAnswerer(user, shows_errors=shows_errors)

    @property
    def load(self) -> int:
        return self._slots.load

    # --- the door's forms of calls

    async def call(self, method: str, body: bytes, context: DoorContext) -> bytes | AsyncIterator[bytes]:
        slots = self._slots
        answering: Any
        if method == "http":
            answering = self._http
        elif method == "handle":
            answering = self._handle
        elif method == "grpc":
            answering = self._grpc
        elif method == "waits":
            slots.waits(context.caller, AGE.unpack(body)[0])
            return b""
        elif method == "leave":
            slots.leave(context.caller)
            return b""
        elif method == "handle:all":
            return await self._handle_all(body, context)
        else:
            raise DoorRefusedError(UNKNOWN_METHOD)
        slots.take(context.caller)
        try:
            answer = await answering(body, context)
        except BaseException as error:
            self._failed(error)
            raise
        entered = request_context.get()
        if isinstance(answer, bytes):
            slots.free()
            self._measures.answered(entered, answer)
            return answer
        self._measures.first_chunk(entered)
        return self._held(answer)

    def _held(self, answer: AsyncIterator[bytes]) -> Held:
        return Held(answer, functools.partial(self._stream_over, request_context.get()))

    def _stream_over(self, entered: RequestContext) -> None:
        self._slots.free()
        self._measures.stream_over(entered)

    async def stream(self, method: str, body: bytes, context: DoorContext) -> AsyncIterator[bytes]:
        if method == "events":
            return self._slots.listen(context.caller)
        if method not in ("handle", "grpc"):
            raise DoorRefusedError(UNKNOWN_METHOD)
        self._slots.take(context.caller)
        if method == "handle":
            return self._handle_stream_held(body, context)
        try:
            answer = await self._grpc_stream(body, context)
        except BaseException as error:
            self._failed(error)
            raise
        return self._held(answer)

    async def exchange(
        self, method: str, items: AsyncIterator[bytes], context: DoorContext
    ) -> AsyncIterator[bytes]:
        if method not in ("http", "websocket", "grpc"):
            raise DoorRefusedError(UNKNOWN_METHOD)
        self._slots.take(context.caller)
        try:
            first = await anext(items)
            answer: AsyncIterator[bytes]
            if method == "http":
                answer = self._http_upload(*self._http_request(first, context), items)
            elif method == "grpc":
                head = unpack(GrpcHead, first)[0]
                answer = self._grpc_calls.exchange(head, items, self._enter(head, head.route, context))
            else:
                answer = self._websocket(first, items, context)
        except BaseException as error:
            self._failed(error)
            raise
        return self._held(answer)

    def _failed(self, error: BaseException) -> None:
        entered = request_context.get()
        if isinstance(error, asyncio.CancelledError):
            entered.is_cancelled = True
        self._slots.free()
        self._measures.raised(entered, error)

    def _enter(self, head: Any, route: str, context: DoorContext) -> RequestContext:
        entered = RequestContext(
            route,
            context.request_id,
            self._app_name,
            head.model_id,
            head.session_id,
            context.trace,
            context.deadline,
        )
        entered.head = head
        entered.began = time.monotonic()
        _set_context(entered)
        return entered

    # --- http

    def _http_request(self, body: bytes, context: DoorContext) -> tuple[HttpHead, memoryview, RequestContext]:
        head, payload = unpack(HttpHead, body)
        return head, payload, self._enter(head, head.prefix, context)

    async def _http(self, body: bytes, context: DoorContext) -> bytes | AsyncIterator[bytes]:
        head, payload, entered = self._http_request(body, context)
        answering = self._answering(head, payload, entered)
        return await (Shielded(answering).begin() if head.ignores_disconnect else answering)

    def _answering(
        self,
        head: HttpHead,
        payload: memoryview,
        entered: RequestContext,
        upload: AsyncIterator[bytes] | None = None,
    ) -> Coroutine[Any, Any, bytes | AsyncIterator[bytes]]:
        if self._app is not None:
            return self._run_app(head, payload, entered, upload)
        return self._run_call(http.ReplicaRequest(head, payload, entered, upload), entered)

    async def _http_upload(
        self, head: HttpHead, payload: memoryview, entered: RequestContext, items: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        """The answer, behind an empty item: the router need not keep the body to send it elsewhere."""
        yield b""
        answering = self._answering(head, payload, entered, items)
        try:
            answer = await (Shielded(answering).begin() if head.ignores_disconnect else answering)
        except asyncio.CancelledError:
            entered.is_cancelled = True
            raise
        if isinstance(answer, bytes):
            entered.status = status_of(answer)
            yield answer
            return
        try:
            async for item in answer:
                yield item
        finally:
            await close(answer)

    async def _run_app(
        self,
        head: HttpHead,
        payload: memoryview,
        entered: RequestContext,
        upload: AsyncIterator[bytes] | None,
    ) -> bytes | AsyncIterator[bytes]:
        assert self._app is not None
        scope = http.scope_of(head)
        scope["state"] = self._state.copy()
        try:
            shows = self._shows(entered)
            return await asgi.run_http(self._app, scope, bytes(payload), upload, shows_errors=shows)
        except Exception as error:  # noqa: BLE001 - user code: it becomes an answer
            return self._error_reply(error, None, entered)

    async def _run_call(
        self, request: http.ReplicaRequest, entered: RequestContext
    ) -> bytes | AsyncIterator[bytes]:
        """Run the user's `__call__`. Whatever it raises becomes an answer."""
        user = self._user
        try:
            method = user.method("__call__")
            arguments = (request,) if method.takes_arguments else ()
            if method.kind == ASYNC:
                result = await method.function(*arguments)
            else:
                result = await user.run(method, arguments)
            if type(result) is dict or type(result) is str:
                return http.complete(result)  # most are
            result = user.adapt(result)
            if is_stream(result):
                return await begin(http.of_items(result))
            if isinstance(result, Response):
                return await self._respond(result, request)
            return http.complete(result)
        except Exception as error:  # noqa: BLE001 - user code: it becomes an answer
            return self._error_reply(error, request, entered)

    async def _respond(
        self, response: Response, request: http.ReplicaRequest
    ) -> bytes | AsyncIterator[bytes]:
        if http.is_complete(response):
            return http.complete(response)
        if isinstance(response, StreamingResponse) and type(response).__call__ is StreamingResponse.__call__:
            return await begin(http.streamed(response, self._user.pool))
        return await asgi.run_http(response, dict(request.scope), await request.body())

    def _shows(self, entered: RequestContext) -> bool:
        """Whether the client of an HTTP request may see tracebacks."""
        return self._shows_errors or bool(entered.head.shows_errors)

    def _error_reply(
        self, error: Exception, request: http.ReplicaRequest | None, entered: RequestContext
    ) -> bytes:
        if not http.is_clients_fault(error):
            self._measures.failed(entered, type(error).__name__)
            logger.error("request %s failed", entered.request_id, exc_info=error)
        debug = "".join(traceback.format_exception(error)) if self._shows(entered) else ""
        return http.error_reply(error, request, request_id=entered.request_id, debug=debug)

    def _websocket(
        self, first: bytes, items: AsyncIterator[bytes], context: DoorContext
    ) -> AsyncIterator[bytes]:
        head, scope = asgi.websocket_scope(first)
        entered = self._enter(head, head.prefix, context)
        entered.status = 101
        if self._app is None:
            entered.status = 403
            return asgi.refuse_websocket()
        scope["state"] = self._state.copy()
        return asgi.WebSocketCall(items).items(self._app, scope)

    # --- handles

    async def _handle(self, body: bytes, context: DoorContext) -> bytes:
        head, payload = unpack(CallHead, body)
        self._enter(head, head.route, context)
        user = self._user
        method = user.method(head.method)
        args, kwargs = load_call(head, payload)
        if method.kind == ASYNC:
            result = user.adapt(await method.function(*args, **kwargs))
        else:
            result = await user.run(method, args, kwargs)
        if is_stream(result):
            await close(result)
            raise TypeError(
                f"{user.spec.name}.{head.method} generates items: use handle.options(stream=True)"
            )
        return dumps(result)

    async def _handle_all(self, body: bytes, context: DoorContext) -> bytes:
        """Of a broadcast: past the slots."""
        try:
            answer = await self._handle(body, context)
        except BaseException as error:
            self._measures.raised(request_context.get(), error)
            raise
        self._measures.answered(request_context.get(), answer)
        return answer

    def _handle_stream_held(self, body: bytes, context: DoorContext) -> Held:
        try:
            head, payload = unpack(CallHead, body)
        except BaseException:
            self._slots.free()
            raise
        entered = self._enter(head, head.route, context)
        over = functools.partial(self._stream_over, entered)
        return Held(self._handle_stream(head, payload, entered), over)

    async def _handle_stream(
        self, head: CallHead, payload: memoryview, entered: RequestContext
    ) -> AsyncIterator[bytes]:
        user = self._user
        items: Any = None
        is_begun = False
        try:
            method = user.method(head.method)
            args, kwargs = load_call(head, payload)
            items = await user.run(method, args, kwargs)
            if not is_stream(items):
                raise TypeError(f"{user.spec.name}.{head.method} does not generate items: use stream=False")
            turn = Turn()
            async for item in items:
                if not is_begun:
                    is_begun = True
                    self._measures.first_chunk(entered)
                yield dumps(item)
                if turn.is_over():
                    await asyncio.sleep(0)
        except BaseException as error:
            note_failure(entered, error)
            raise
        finally:
            await close(items)

    # --- gRPC

    async def _grpc(self, body: bytes, context: DoorContext) -> bytes | AsyncIterator[bytes]:
        head, payload = unpack(GrpcHead, body)
        answering = self._grpc_calls.call(head, payload, self._enter(head, head.route, context))
        if head.ignores_disconnect:
            return await Shielded(answering).begin()
        return await answering

    async def _grpc_stream(self, body: bytes, context: DoorContext) -> AsyncIterator[bytes]:
        head, payload = unpack(GrpcHead, body)
        answering = self._grpc_calls.stream(head, payload, self._enter(head, head.route, context))
        if not head.ignores_disconnect:
            return await answering
        items = await Shielded(answering).begin()
        assert not isinstance(items, bytes)
        return items


class Held:
    """A streamed answer, and the slot that it takes until its code is over."""

    __slots__ = ("_free", "_items")

    def __init__(self, items: AsyncIterator[bytes], free: Callable[[], None]) -> None:
        self._items = items
        self._free: Callable[[], None] | None = free

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._items.__aiter__()  # not ourselves: nothing is between the reader and the code

    async def __anext__(self) -> bytes:
        return await self._items.__anext__()

    async def aclose(self) -> None:
        free, self._free = self._free, None
        try:
            await close(self._items)
        finally:
            if free is not None:
                free()
