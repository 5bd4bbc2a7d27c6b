"""One gRPC call on its way through the proxy, as raw bytes.

Lives here: what its metadata asks for, the router's call, its status, codes and trailers. Does not: the
server's life (`grpc_server`), user code (`replica.grpc`).
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from retinue.serve import grpc_status
from retinue.serve.exceptions import BackPressureError
from retinue.serve.grpc_status import Status
from retinue.serve.messages import (
    GRPC_HEAD,
    GRPC_MESSAGE,
    GrpcHead,
    GrpcResponseHead,
    Route,
    pack,
    unpack,
)
from retinue.serve.proxy.requests import BadHeaderError, is_traceparent, timeout_of
from retinue.serve.routing.router import RequestMeta
from retinue.serve.servicers import ServicerMethod

if TYPE_CHECKING:
    from retinue.serve.proxy.grpc_server import GrpcServer
    from retinue.serve.routing.router import Router
    from retinue.serve.routing.streams import RoutedStream

# The client reads when it may try again (gRFC A6): milliseconds, as text.
PUSHBACK = "grpc-retry-pushback-ms"
_HEAD = GRPC_HEAD[0]

# Keys of metadata that mean something to the proxy, and what. Ray's names, and those of the HTTP headers.
_KEYS = {
    "application": "application",
    "request_id": "request_id",
    "x-request-id": "request_id",
    "multiplexed_model_id": "model_id",
    "serve_multiplexed_model_id": "model_id",
    "session_id": "session_id",
    "x-session-id": "session_id",
    "traceparent": "trace",
    "x-request-timeout-seconds": "timeout",
    "x-request-disconnect-disabled": "ignores_disconnect",
    "idempotency-key": "idempotency_key",
}


class GrpcMethod:
    """A method of a servicer, for grpc's server. Messages are bytes here."""

    def __init__(self, server: GrpcServer, method: ServicerMethod) -> None:
        self.server = server
        self.full_name = method.full_name
        self.servicer = method.servicer
        self.handler = self._handler(method)

    def _handler(self, method: ServicerMethod) -> Any:
        if method.takes_stream:
            if method.gives_stream:
                return grpc.stream_stream_rpc_method_handler(self.stream_stream)
            return grpc.stream_unary_rpc_method_handler(self.stream_unary)
        if method.gives_stream:
            return grpc.unary_stream_rpc_method_handler(self.unary_stream)
        return grpc.unary_unary_rpc_method_handler(self.unary_unary)

    async def unary_unary(self, request: bytes, context: Any) -> bytes:
        call = GrpcCall(self, context)
        if call.router is None:
            return call.refused()
        try:
            reply = await call.router.call("grpc", pack(call.head, request), call.meta)
        except asyncio.CancelledError:
            call.left()
            raise
        except Exception as error:  # noqa: BLE001 - it becomes a status
            return call.failed(error)
        return call.answered(reply)

    async def unary_stream(self, request: bytes, context: Any) -> None:
        call = GrpcCall(self, context)
        if call.router is None:
            call.refused()
            return
        try:
            stream = await call.router.stream("grpc", pack(call.head, request), call.meta)
            try:
                await call.pass_on(stream)
            finally:
                await stream.aclose()
        except asyncio.CancelledError:
            call.left()
            raise
        except Exception as error:  # noqa: BLE001 - it becomes a status
            call.failed(error)

    async def stream_unary(self, requests: Any, context: Any) -> bytes:
        call = GrpcCall(self, context)
        if call.router is None:
            return call.refused()
        reply = b""
        upload = Upload(context)
        try:
            stream = await call.router.exchange("grpc", pack(call.head), upload, call.meta)
            try:
                async for item in stream:
                    reply = item
            finally:
                await stream.aclose()
        except asyncio.CancelledError:
            call.left()
            raise
        except Exception as error:  # noqa: BLE001 - it becomes a status
            return call.failed(error)
        finally:
            upload.close()
        return call.answered(reply)

    async def stream_stream(self, requests: Any, context: Any) -> None:
        call = GrpcCall(self, context)
        if call.router is None:
            call.refused()
            return
        upload = Upload(context)
        try:
            stream = await call.router.exchange("grpc", pack(call.head), upload, call.meta)
            try:
                await call.pass_on(stream)
            finally:
                await stream.aclose()
        except asyncio.CancelledError:
            call.left()
            raise
        except Exception as error:  # noqa: BLE001 - it becomes a status
            call.failed(error)
        finally:
            upload.close()


class Upload:
    """The messages that the client sends, for the router."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._is_over = False

    def __aiter__(self) -> Upload:
        return self

    async def __anext__(self) -> bytes:
        try:
            message = await self._context.read()
        except Exception:  # noqa: BLE001 - grpc's own words for a call that is over
            self._end()
        if self._is_over:
            self._end()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message  # type: ignore[no-any-return]

    def _end(self) -> NoReturn:
        # The call is over in mid-upload, which must not look like the last message; nobody need hear of it.
        raise asyncio.CancelledError

    def close(self) -> None:
        self._is_over = True


class GrpcCall:
    """A call between its metadata and its status. `router` is None if it has been refused."""

    __slots__ = (
        "_began",
        "_context",
        "_is_over",
        "_server",
        "app_name",
        "head",
        "meta",
        "method",
        "refusal",
        "request_id",
        "route",
        "router",
    )

    def __init__(self, method: GrpcMethod, context: Any) -> None:
        self._began = time.monotonic()
        self._context = context
        self._is_over = False
        self._server = method.server
        self._server.ongoing += 1
        self.method = method.full_name
        self.app_name = self.route = ""
        self.router: Router | None = None
        self.refusal = Status(grpc_status.OK)
        metadata: Any = context.invocation_metadata() or ()
        known: dict[str, Any] = {}
        for key, value in metadata:
            name = _KEYS.get(key)
            if name is not None:
                known[name] = value
        self.request_id: str = known.get("request_id") or self._server.ids.request_id()
        self.head = GrpcHead(
            method.full_name,
            metadata,
            known.get("model_id", ""),
            known.get("session_id", ""),
            context.peer(),
            method.servicer,
        )
        route = self._server.find(known.get("application", ""))
        if isinstance(route, Status):
            self.refusal = route
            return
        self.app_name, self.route = route.app_name, route.prefix
        self.head.route = route.prefix
        try:
            self.meta = self._meta(known, route)
        except BadHeaderError as error:
            self.refusal = Status(grpc_status.INVALID_ARGUMENT, str(error))
            return
        self.router = self._server.router(route)

    def _meta(self, known: dict[str, Any], route: Route) -> RequestMeta:
        timeout_s = (
            self._server.request_timeout_s if route.request_timeout_s is None else route.request_timeout_s
        )
        if "timeout" in known:
            timeout_s = timeout_of(str(known["timeout"]))
        left_s = self._context.time_remaining()
        if left_s is not None and (timeout_s is None or left_s < timeout_s):
            timeout_s = max(left_s, 0.001)
        if "ignores_disconnect" in known:
            self.head.ignores_disconnect = str(known["ignores_disconnect"]).strip().lower() in (
                "1",
                "true",
                "?1",
            )
        trace = known.get("trace", "")
        return RequestMeta(
            self.request_id,
            trace if trace and is_traceparent(trace) else self._server.ids.traceparent(),
            self._began + timeout_s if timeout_s else 0.0,
            self.head.model_id,
            self.head.session_id,
            "idempotency_key" in known,
        )

    # --- its end

    def refused(self) -> bytes:
        return self._end(self.refusal.code, self.refusal.details)

    def left(self) -> None:
        """The client has cancelled it, or its deadline has passed."""
        is_late = 0.0 < self.meta.deadline <= time.monotonic()
        self._finished(grpc_status.DEADLINE_EXCEEDED if is_late else grpc_status.CANCELLED)

    def _finished(self, code: int) -> None:
        if not self._is_over:
            self._is_over = True
            self._server.finished(self, code, time.monotonic() - self._began)

    def failed(self, error: Exception) -> bytes:
        if self._context.done():  # the client has left, and its stream cannot be written to
            self.left()
            return b""
        status = grpc_status.of_error(error, self.request_id)
        if status.is_unexpected:
            self._server.log_failure(self, error)
        trailers: tuple[tuple[str, Any], ...] = ()
        if isinstance(error, BackPressureError) and error.retry_after_s is not None:
            trailers = ((PUSHBACK, str(math.ceil(error.retry_after_s * 1000))),)
        return self._end(status.code, status.details, trailers)

    def answered(self, reply: bytes) -> bytes:
        """What the replica said; returns the message."""
        if reply[0] != _HEAD:
            self._end(grpc_status.OK)
            return reply[1:]
        head, message = unpack(GrpcResponseHead, memoryview(reply)[1:])
        self._use(head)
        return bytes(message)

    async def pass_on(self, stream: RoutedStream) -> None:
        """Write the messages as they come, and the status after them."""
        write = self._context.write
        is_begun = is_over = False
        while items := await stream.read():
            for item in items:
                if item[:1] == GRPC_MESSAGE:
                    await write(item[1:])
                    if not is_begun:
                        is_begun = True
                        self._server.first_chunk(self, time.monotonic() - self._began)
                elif item:
                    head = unpack(GrpcResponseHead, memoryview(item)[1:])[0]
                    if head.compression and not (head.code or head.details or head.trailing_metadata):
                        self._compress(head)
                    else:
                        self._use(head)
                        is_over = True
        if not is_over:
            self._end(grpc_status.OK)

    def _use(self, head: GrpcResponseHead) -> None:
        self._compress(head)
        self._end(head.code, head.details, tuple((key, value) for key, value in head.trailing_metadata))

    def _compress(self, head: GrpcResponseHead) -> None:
        if head.compression:
            try:
                self._context.set_compression(grpc.Compression(head.compression))
            except RuntimeError:
                pass  # messages have left already, without it: too late is no failure

    def _end(self, code: int, details: str = "", trailers: tuple[tuple[str, Any], ...] = ()) -> bytes:
        context = self._context
        context.set_trailing_metadata(
            (("request_id", self.request_id), ("x-request-id", self.request_id), *trailers)
        )
        if code:
            context.set_code(code)
        if details:
            context.set_details(details)
        self._finished(code)
        return b""
