"""The replica's door: takes a slot for each request, sets its context, and has it answered.

Lives here: the door's methods, the life of a slot, what cancelling and deadlines mean. Does not: who is
refused (`slots`), what requests say (`http`, `asgi`, `calls`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from starlette.responses import Response, StreamingResponse

from retinue.core.doors import DoorContext, DoorRefusedError
from retinue.serve import context as contexts
from retinue.serve.context import RequestContext
from retinue.serve.messages import CallHead, HttpHead, unpack
from retinue.serve.replica import http
from retinue.serve.replica.answering import begin
from retinue.serve.replica.calls import decode_arguments, encode_value
from retinue.serve.replica.slots import Slots
from retinue.serve.replica.user_code import ASYNC, UserCode, close, is_stream

logger = logging.getLogger("retinue.serve")

UNKNOWN_METHOD = b"this replica does not know that method"
_set_context = contexts.request_context.set


class ReplicaDoor:
    """Answers routers. One for each replica."""

    def __init__(self, user: UserCode, slots: Slots, app_name: str, *, shows_errors: bool) -> None:
        self._user = user
        self._slots = slots
        self._app_name = app_name
        self._shows_errors = shows_errors

    @property
    def load(self) -> int:
        return self._slots.load

    # --- the door's forms of calls

    async def call(self, method: str, body: bytes, context: DoorContext) -> bytes | AsyncIterator[bytes]:
        slots = self._slots
        if method == "leave":
            slots.leave(context.caller)
            return b""
        if method == "http":
            answering = self._http
        elif method == "handle":
            answering = self._handle
        else:
            raise DoorRefusedError(UNKNOWN_METHOD)
        slots.take(context.caller)
        try:
            answer = await answering(body, context)
        except BaseException:
            slots.free()
            raise
        if type(answer) is bytes:
            slots.free()
            return answer
        return Held(answer, slots.free)

    async def stream(self, method: str, body: bytes, context: DoorContext) -> AsyncIterator[bytes]:
        if method == "events":
            return self._slots.listen(context.caller)
        if method != "handle":
            raise DoorRefusedError(UNKNOWN_METHOD)
        self._slots.take(context.caller)
        return Held(self._handle_stream(body, context), self._slots.free)

    # --- http

    async def _http(self, body: bytes, context: DoorContext) -> bytes | AsyncIterator[bytes]:
        head, payload = unpack(HttpHead, body)
        request_context = RequestContext(
            head.prefix,
            context.request_id,
            self._app_name,
            head.model_id,
            head.session_id,
            context.trace,
            context.deadline,
        )
        _set_context(request_context)
        request = http.ReplicaRequest(head, payload, request_context)
        if head.ignores_disconnect:
            return await shielded(self._answer(request, request_context))
        return await self._answer(request, request_context)

    async def _answer(
        self, request: http.ReplicaRequest, context: RequestContext
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
                return http.complete(result)
            result = user.adapt(result)
            if is_stream(result):
                return await begin(http.of_items(result))
            if isinstance(result, Response):
                return await self._respond(result, request)
            return http.complete(result)
        except asyncio.CancelledError:
            context.is_cancelled = True
            raise
        except Exception as error:  # noqa: BLE001 - user code: it becomes an answer
            return self._error_reply(error, request, context)

    async def _respond(
        self, response: Response, request: http.ReplicaRequest
    ) -> bytes | AsyncIterator[bytes]:
        if http.is_complete(response):
            return http.complete(response)
        if type(response).__call__ is StreamingResponse.__call__:
            return await begin(http.streamed(response))
        from retinue.serve.replica.asgi import run_http

        return await run_http(response, request.scope, request.receive)

    def _error_reply(
        self, error: Exception, request: http.ReplicaRequest | None, context: RequestContext
    ) -> bytes:
        if not http.is_clients_fault(error, request):
            logger.exception("request %s failed", context.request_id)
        debug = ""
        if self._shows_errors:
            import traceback

            debug = "".join(traceback.format_exception(error))
        return http.error_reply(error, request, request_id=context.request_id, debug=debug)

    # --- handles

    def _begin_handle(self, body: bytes, context: DoorContext) -> tuple[CallHead, memoryview]:
        head, payload = unpack(CallHead, body)
        _set_context(
            RequestContext(
                head.route,
                context.request_id,
                self._app_name,
                head.model_id,
                head.session_id,
                context.trace,
                context.deadline,
            )
        )
        return head, payload

    async def _handle(self, body: bytes, context: DoorContext) -> bytes:
        head, payload = self._begin_handle(body, context)
        user = self._user
        method = user.method(head.method)
        args, kwargs = decode_arguments(head, payload)
        if method.kind == ASYNC:
            result = user.adapt(await method.function(*args, **kwargs))
        else:
            result = await user.run(method, args, kwargs)
        if is_stream(result):
            await close(result)
            raise TypeError(
                f"{self._user.spec.name}.{head.method} generates items: call it with handle.options(stream=True)"
            )
        return encode_value(result)

    async def _handle_stream(self, body: bytes, context: DoorContext) -> AsyncIterator[bytes]:
        head, payload = self._begin_handle(body, context)
        user = self._user
        method = user.method(head.method)
        args, kwargs = decode_arguments(head, payload)
        items = await user.run(method, args, kwargs)
        if not is_stream(items):
            raise TypeError(
                f"{self._user.spec.name}.{head.method} does not generate items: call it without stream=True"
            )
        try:
            async for item in items:
                yield encode_value(item)
        finally:
            await close(items)


class Held:
    """A streamed answer, and the slot that it takes until its code is over."""

    __slots__ = ("_free", "_items")

    def __init__(self, items: AsyncIterator[bytes], free: Callable[[], None]) -> None:
        self._items = items
        self._free: Callable[[], None] | None = free

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._items.__aiter__()

    async def aclose(self) -> None:
        free, self._free = self._free, None
        try:
            await close(self._items)
        finally:
            if free is not None:
                free()


async def shielded(work: Coroutine[Any, Any, Any]) -> Any:
    """Run it to its end even if nobody waits any more; then be cancelled."""
    task = asyncio.ensure_future(work)
    is_cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            is_cancelled = True
    if is_cancelled:
        result = None if task.exception() else task.result()
        if result is not None and not isinstance(result, bytes):
            await close(result)
        raise asyncio.CancelledError
    return task.result()
