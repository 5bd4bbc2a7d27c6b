"""gRPC calls in the replica. Bytes become the user's messages, their answers bytes.

The method is the last part of the call's name, as in /package.Service/Method. The classes of the messages
come from the generated function that registered the method in the proxy; its module is imported with the
first call. Whatever user code raises becomes a status, never an exception of ours.

Lives here: that. Does not: slots and the request's context (`door`), finding the application (`proxy`).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import traceback
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from retinue.serve import grpc_status, servicers
from retinue.serve.context import RequestContext
from retinue.serve.grpc_status import Status
from retinue.serve.grpc_util import RetinueServegRPCContext, gRPCInputStream
from retinue.serve.messages import GRPC_HEAD, GRPC_MESSAGE, GrpcHead, GrpcResponseHead, pack
from retinue.serve.replica.answering import single
from retinue.serve.replica.measures import note_failure
from retinue.serve.replica.user_code import ASYNC, Method, UserCode, close, is_stream
from retinue.serve.servicers import ServicerMethod

logger = logging.getLogger("retinue.serve")

CONTEXT_PARAMETER = "grpc_context"
_ACCEPTED = b""


class _StatusError(Exception):
    """The call cannot reach user code."""

    def __init__(self, code: int, details: str) -> None:
        super().__init__(details)
        self.status = Status(code, grpc_status.cut(details))


class ReplicaContext(RetinueServegRPCContext):
    """The context of a call that came through a proxy."""

    def __init__(self, head: GrpcHead, request_id: str) -> None:
        # Not the base's: there is no context of grpc's here to copy.
        self._auth_context = {}
        self._code = self._details = self._compression = None
        self._invocation_metadata = [(key, value) for key, value in head.metadata]
        self._peer = head.peer
        self._peer_identities = self._peer_identity_key = None
        self._trailing_metadata = []
        self._id = request_id

    def request_id(self) -> str | None:
        return super().request_id() or self._id

    @property
    def is_changed(self) -> bool:
        return bool(self._code or self._details or self._trailing_metadata or self._compression)

    def head(self) -> GrpcResponseHead:
        return GrpcResponseHead(
            grpc_status.number_of(self._code),
            grpc_status.cut(self._details or ""),
            self._trailing_metadata,
            int(self._compression or 0),
        )


class Target:
    """What answers one gRPC method."""

    __slots__ = ("messages", "takes_context", "user")

    def __init__(self, messages: ServicerMethod, user: Method) -> None:
        self.messages = messages
        self.user = user
        self.takes_context = CONTEXT_PARAMETER in inspect.signature(user.function).parameters

    def encode(self, answer: Any) -> bytes:
        try:
            return self.messages.encode(answer)
        except TypeError as error:
            raise TypeError(
                f"{self.user.name} answers {self.messages.full_name} with a {type(answer).__name__}: {error}"
            ) from error


class GrpcCall:
    """One call on its way through user code."""

    def __init__(
        self, target: Target, head: GrpcHead, entered: RequestContext, *, shows_errors: bool
    ) -> None:
        self.target = target
        self.entered = entered
        self._shows_errors = shows_errors
        self.context = ReplicaContext(head, entered.request_id) if target.takes_context else None
        self.kwargs = {} if self.context is None else {CONTEXT_PARAMETER: self.context}

    def complete(self, answer: Any) -> bytes:
        encoded = self.target.encode(answer)
        if self.context is None or not self.context.is_changed:
            return GRPC_MESSAGE + encoded
        return GRPC_HEAD + pack(self.context.head(), encoded)

    def beginning(self) -> bytes:
        """What must reach the proxy before the first message; b"" is nothing."""
        context = self.context
        if context is None or not context._compression:
            return b""
        return GRPC_HEAD + pack(GrpcResponseHead(compression=int(context._compression)))

    def ending(self) -> bytes:
        if self.context is None or not self.context.is_changed:
            return b""
        return GRPC_HEAD + pack(self.context.head())

    def failure(self, error: Exception) -> bytes:
        """The status of what user code raised: what it set on its context, else what the error means."""
        note_failure(self.entered, error)
        context = self.context
        head = GrpcResponseHead()
        if context is not None:
            head = context.head()
        if head.code:
            head.details = head.details or grpc_status.cut(str(error))
            logger.info("request %s ended with %s: %s", self.entered.request_id, head.code, error)
        else:
            status = status_of(error, self.entered.request_id, shows_errors=self._shows_errors)
            head.code, head.details = status.code, status.details
        return GRPC_HEAD + pack(head)


def status_of(error: Exception, request_id: str, *, shows_errors: bool) -> Status:
    """The status of an error, which is logged where nobody expects it."""
    if isinstance(error, _StatusError):
        return error.status
    status = grpc_status.of_error(error, request_id)
    if status.is_unexpected:
        logger.error("request %s failed", request_id, exc_info=error)
        if shows_errors:
            # The end of a traceback says what happened.
            text = "".join(traceback.format_exception(error))
            return Status(status.code, text[-grpc_status.MAX_DETAILS_CHARS :])
    return status


class GrpcAnswerer:
    """Answers the gRPC calls of a replica. `shows_errors`: clients see tracebacks."""

    def __init__(self, user: UserCode, *, shows_errors: bool = False) -> None:
        self._user = user
        self._shows_errors = shows_errors
        self._targets: dict[str, Target] = {}
        self._loading = asyncio.Lock()

    async def _begin(self, head: GrpcHead, entered: RequestContext) -> GrpcCall:
        """Raises _StatusError where nothing can answer the call."""
        target = self._targets.get(head.method) or await self._load(head)
        return GrpcCall(target, head, entered, shows_errors=self._shows_errors)

    async def _load(self, head: GrpcHead) -> Target:
        async with self._loading:
            try:
                # In a thread: importing grpc and generated code takes about 60 ms.
                methods = await asyncio.to_thread(servicers.load, head.servicer)
                messages = methods[head.method]
            except Exception as error:
                logger.exception("the servicer %s cannot be used", head.servicer)
                raise _StatusError(
                    grpc_status.INTERNAL, f"the replica cannot import the servicer {head.servicer!r}"
                ) from error
        try:
            instance = self._user.instance
            # A deployment that is a function answers every method.
            method = self._user.method("__call__" if inspect.isroutine(instance) else messages.name)
        except AttributeError as error:
            raise _StatusError(grpc_status.UNIMPLEMENTED, str(error)) from None
        target = self._targets[head.method] = Target(messages, method)
        return target

    def _refuse(self, error: Exception, entered: RequestContext) -> bytes:
        status = status_of(error, entered.request_id, shows_errors=self._shows_errors)
        return GRPC_HEAD + pack(GrpcResponseHead(status.code, status.details))

    # --- one request

    async def call(self, head: GrpcHead, payload: memoryview, entered: RequestContext) -> bytes:
        """One request, one answer."""
        try:
            call = await self._begin(head, entered)
            request = _decode(call.target, bytes(payload))
        except Exception as error:  # noqa: BLE001 - it becomes a status
            return self._refuse(error, entered)
        return await self._one_answer(call, request)

    async def _one_answer(self, call: GrpcCall, request: Any) -> bytes:
        user = call.target.user
        try:
            if user.kind == ASYNC:
                result = await user.function(request, **call.kwargs)
            else:
                result = await self._user.run(user, (request,), call.kwargs)
            if is_stream(result):
                await close(result)
                raise TypeError(
                    f"{user.name} generates items, but {call.target.messages.full_name} has one answer"
                )
            return call.complete(result)
        except Exception as error:  # noqa: BLE001 - user code: it becomes a status
            return call.failure(error)

    async def stream(
        self, head: GrpcHead, payload: memoryview, entered: RequestContext
    ) -> AsyncIterator[bytes]:
        """One request, many answers."""
        try:
            call = await self._begin(head, entered)
            request = _decode(call.target, bytes(payload))
        except Exception as error:  # noqa: BLE001 - it becomes a status
            return single(self._refuse(error, entered))
        return self._answers(call, request)

    async def _answers(self, call: GrpcCall, request: Any) -> AsyncGenerator[bytes, None]:
        target = call.target
        items: Any = None
        try:
            items = await self._user.run(target.user, (request,), call.kwargs)
            if not is_stream(items):
                raise TypeError(
                    f"{target.user.name} does not generate items, as {target.messages.full_name} needs"
                )
            is_begun = False
            async for item in items:
                encoded = target.encode(item)
                if not is_begun:
                    is_begun = True
                    if head := call.beginning():
                        yield head
                yield GRPC_MESSAGE + encoded
        except Exception as error:  # noqa: BLE001 - user code: it becomes a status
            yield call.failure(error)
        except BaseException as error:
            note_failure(call.entered, error)  # nobody reads on
            raise
        else:
            if head := call.ending():
                yield head
        finally:
            await close(items)

    # --- a stream of requests

    async def exchange(
        self, first: GrpcHead, items: AsyncIterator[bytes], entered: RequestContext
    ) -> AsyncIterator[bytes]:
        """Requests as they come; one answer or many."""
        # The router keeps what the client sends until it knows that user code has begun.
        yield _ACCEPTED
        try:
            call = await self._begin(first, entered)
        except Exception as error:  # noqa: BLE001 - it becomes a status
            yield self._refuse(error, entered)
            return
        is_left = asyncio.Event()
        requests = gRPCInputStream(_decoded(call.target, items), cancel_event=is_left)
        is_over = False
        try:
            if call.target.messages.gives_stream:
                async with contextlib.aclosing(self._answers(call, requests)) as answers:
                    async for item in answers:
                        yield item
            else:
                yield await self._one_answer(call, requests)
            is_over = True
        finally:
            if not is_over:
                is_left.set()  # for what still holds the stream


def _decode(target: Target, data: bytes) -> Any:
    try:
        return target.messages.decode(data)
    except Exception as error:
        raise _StatusError(
            grpc_status.INVALID_ARGUMENT,
            f"the request is no message for {target.messages.full_name}: {error}",
        ) from error


async def _decoded(target: Target, items: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for item in items:
        yield _decode(target, item)
