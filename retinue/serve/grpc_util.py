"""What methods that answer gRPC calls are handed beside the request.

A method that has a parameter `grpc_context` gets a `RetinueServegRPCContext`; one whose requests are a stream
gets a `gRPCInputStream`.

Lives here: these two. Does not: calling the methods (`replica.grpc`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, TypeVar

__all__ = ["RetinueServegRPCContext", "gRPCInputStream"]

T = TypeVar("T")
Metadata = list[tuple[str, Any]]

_REQUEST_ID = "request_id"


class gRPCInputStream(AsyncIterator[T]):
    """The messages that the client sends, for `async for`, as they come."""

    def __init__(
        self, request_iterator: AsyncIterator[T], *, cancel_event: asyncio.Event | None = None
    ) -> None:
        self._messages = request_iterator
        self._cancelled = cancel_event or asyncio.Event()
        self._is_exhausted = False

    def __aiter__(self) -> gRPCInputStream[T]:
        return self

    async def __anext__(self) -> T:
        """The next message; StopAsyncIteration after the last, and after `cancel()`."""
        if self._is_exhausted or self._cancelled.is_set():
            self._is_exhausted = True
            raise StopAsyncIteration
        try:
            return await self._messages.__anext__()
        except StopAsyncIteration:
            self._is_exhausted = True
            raise

    def is_cancelled(self) -> bool:
        """Whether the client has cancelled the call, or `cancel()` was called."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Read no more of it."""
        self._cancelled.set()

    @property
    def is_exhausted(self) -> bool:
        """Whether it has been read to its end."""
        return self._is_exhausted


class RetinueServegRPCContext:
    """What is known of the call, and what is to be sent beside the answer.

    Made of anything with the methods of grpc.ServicerContext, in tests for instance. What is set here reaches
    the client with the answer; with a stream, after its last message.
    """

    def __init__(self, grpc_context: Any) -> None:
        self._auth_context: dict[str, Any] = dict(grpc_context.auth_context() or {})
        self._code: Any = grpc_context.code()
        self._details: Any = grpc_context.details()
        self._invocation_metadata: Metadata = [(k, v) for k, v in grpc_context.invocation_metadata() or ()]
        self._peer: str = grpc_context.peer()
        self._peer_identities: Any = grpc_context.peer_identities()
        self._peer_identity_key: str | None = grpc_context.peer_identity_key()
        self._trailing_metadata: Metadata = [(k, v) for k, v in grpc_context.trailing_metadata() or ()]
        self._compression: Any = None

    # --- the call

    def invocation_metadata(self) -> Metadata:
        """What the client sent beside the request, as (key, value) pairs; those named `-bin` have bytes."""
        return self._invocation_metadata

    def _find(self, key: str) -> Any:
        found = None
        for name, value in self._invocation_metadata:
            if name == key:
                found = value
        return found

    def request_id(self) -> str | None:
        """The metadata `request_id`; where the client sent none, the id that the proxy gave the call."""
        return self._find(_REQUEST_ID)  # type: ignore[no-any-return]

    def application(self) -> str | None:
        """The metadata `application`, or None."""
        return self._find("application")  # type: ignore[no-any-return]

    def multiplexed_model_id(self) -> str | None:
        """The metadata `multiplexed_model_id`, or None."""
        return self._find("multiplexed_model_id")  # type: ignore[no-any-return]

    def traceparent(self) -> str | None:
        """The metadata `traceparent` (W3C trace context), or None."""
        return self._find("traceparent")  # type: ignore[no-any-return]

    def tracestate(self) -> str | None:
        """The metadata `tracestate` (W3C trace context), or None."""
        return self._find("tracestate")  # type: ignore[no-any-return]

    def peer(self) -> str:
        """The client's address, as grpc writes it: `ipv4:127.0.0.1:51234`."""
        return self._peer

    def auth_context(self) -> dict[str, Any]:
        """Properties of an authenticated connection; empty without TLS."""
        return self._auth_context

    def peer_identities(self) -> Any:
        """Identities of an authenticated client, as bytes; None without TLS."""
        return self._peer_identities

    def peer_identity_key(self) -> str | None:
        """Which property of `auth_context` identifies the client; None without TLS."""
        return self._peer_identity_key

    # --- the answer

    def code(self) -> Any:
        """The grpc.StatusCode that was set; None at first, which means OK."""
        return self._code

    def set_code(self, code: Any) -> None:
        """Answer with this grpc.StatusCode. It holds whether the method returns or raises after it."""
        self._code = code

    def details(self) -> Any:
        """The details that were set; None at first."""
        return self._details

    def set_details(self, details: str) -> None:
        """Text to go with the code."""
        self._details = details

    def set_compression(self, compression: Any) -> None:
        """Compress the answer: a grpc.Compression. In a stream it counts if set before the first message."""
        self._compression = compression

    def trailing_metadata(self) -> Metadata:
        """What is to be sent after the answer, as (key, value) pairs."""
        return self._trailing_metadata

    def set_trailing_metadata(self, trailing_metadata: Iterable[tuple[str, Any]]) -> None:
        """Send these pairs after the answer, instead of those set before. The request's id is always sent."""
        kept = [pair for pair in self._trailing_metadata if pair[0] == _REQUEST_ID]
        self._trailing_metadata = kept + [(key, value) for key, value in trailing_metadata]
