"""HTTP for user code that has no web framework: its Request, and what its result becomes.

A request costs about 5 us here; Starlette's own Request and JSONResponse cost 10.

Lives here: requests and answers of plain deployments. Does not: ASGI applications (`asgi`), slots (`door`).
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NoReturn

import msgspec
from starlette.concurrency import iterate_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from retinue.exceptions import RetinueTaskError
from retinue.serve.context import RequestContext
from retinue.serve.exceptions import BackPressureError, RetinueServeException
from retinue.serve.messages import HttpHead, HttpResponseHead, pack
from retinue.serve.replica.threads import ThreadIterator, ThreadPool

Headers = list[tuple[bytes, bytes]]
_JSON = (b"content-type", b"application/json")
_TEXT = (b"content-type", b"text/plain; charset=utf-8")
_BYTES = (b"content-type", b"text/plain")


class InvalidJSONError(json.JSONDecodeError):
    """The request's body is no JSON: the client's mistake, so it becomes 400 unless user code catches it."""


def scope_of(head: HttpHead, kind: str = "http") -> dict[str, Any]:
    """The ASGI scope of a request; `root_path` ends with the route's prefix, as in Starlette's mounts.

    Of ASGI 2.4, which lets frameworks do without a task that waits for the client to leave: we cancel theirs.
    """
    root_path = head.root_path + ("" if head.prefix == "/" else head.prefix)
    scope: dict[str, Any] = {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": head.http_version,
        "method": head.method,
        "scheme": head.scheme,
        "path": head.root_path + head.path,
        "raw_path": head.raw_path,
        "query_string": head.query_string,
        "root_path": root_path,
        "headers": head.headers,
        "client": head.client,
        "server": head.server,
        "state": {},
        "extensions": {},
    }
    if kind == "websocket":
        del scope["method"]
        scope["subprotocols"] = head.subprotocols
    return scope


class ReplicaRequest(Request):
    """A starlette Request whose body is here already, or comes as items of an upload."""

    # What Starlette's constructor sets, which is not run: of the class, as most requests change none of it.
    _was_json = False
    _stream_consumed = False
    _is_disconnected = False
    _form = None

    def __init__(
        self,
        head: HttpHead,
        body: memoryview | bytes,
        context: RequestContext,
        upload: AsyncIterator[bytes] | None = None,
    ) -> None:
        self._head = head
        self._context = context
        self._view = body
        self._upload = upload
        if upload is None:
            self._body = bytes(body)

    def __getattr__(self, name: str) -> Any:
        if name == "scope":  # made when something asks for it: many handlers read only the body
            self.scope = scope = scope_of(self._head)
            return scope
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def method(self) -> str:
        return self._head.method

    async def stream(self) -> Any:
        if self._upload is None:
            yield self._body
            yield b""
            return
        if hasattr(self, "_body"):
            yield self._body
            yield b""
            return
        if self._stream_consumed:
            raise RuntimeError("the request's body has been read already, as a stream")
        self._stream_consumed = True
        if self._view:
            yield bytes(self._view)
        async for chunk in self._upload:
            if chunk:
                yield chunk
        yield b""

    async def json(self) -> Any:
        """The body, decoded. Raises InvalidJSONError (400 unless caught)."""
        self._was_json = True
        body = self._body if self._upload is None else await self.body()
        try:
            return msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _lenient_json(body)
        except RecursionError:
            raise InvalidJSONError("it is nested too deeply", "", 0) from None

    async def is_disconnected(self) -> bool:
        return self._context.is_cancelled

    async def _receive(self) -> dict[str, Any]:
        """For code that reads a Request as ASGI, such as mounted applications."""
        if not self._stream_consumed:
            return {"type": "http.request", "body": await self.body(), "more_body": False}
        await asyncio.get_running_loop().create_future()  # until it is cancelled: the client has gone
        raise ClientDisconnect

    async def _send(self, message: Any) -> NoReturn:
        raise RuntimeError("this request is answered by what its handler returns")


def _lenient_json(body: bytes) -> Any:
    """What msgspec refuses and Python's own decoder takes: NaN, lone surrogates, other encodings."""
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        raise InvalidJSONError(error.msg, error.doc, error.pos) from None
    except UnicodeDecodeError as error:
        raise InvalidJSONError(f"the body is not text: {error}", "", 0) from None
    except RecursionError:
        raise InvalidJSONError("it is nested too deeply", "", 0) from None


# --- answers


def _plain(value: Any) -> Any:
    """What JSON has no word for: numpy, pydantic, and objects with fields."""
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    for name in ("tolist", "item"):  # arrays and scalars of numpy, tensors
        convert = getattr(value, name, None)
        if callable(convert):
            return convert()
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "__iter__"):
        return list(value)
    if hasattr(value, "__dict__"):
        return vars(value)
    raise TypeError(f"an answer of type {type(value).__name__} cannot be written as JSON")


_encoder = msgspec.json.Encoder(enc_hook=_plain, decimal_format="number")


def to_json(value: Any) -> bytes:
    try:
        return _encoder.encode(value)
    except TypeError:
        # Keys that msgspec refuses and Python's encoder takes, such as None.
        return json.dumps(value, default=_plain, separators=(",", ":")).encode()


def complete(result: Any, status: int = 200) -> bytes:
    """The reply for a result that is no stream."""
    if type(result) is dict:
        body, kind = to_json(result), _JSON
    elif isinstance(result, str):
        body, kind = result.encode(), _TEXT
    elif isinstance(result, bytes | bytearray | memoryview):
        body, kind = bytes(result), _BYTES
    elif result is None:
        body, kind = b"", _BYTES
    elif isinstance(result, Response):
        return pack(HttpResponseHead(result.status_code, result.raw_headers), result.body)
    else:
        body, kind = to_json(result), _JSON
    return pack(HttpResponseHead(status, [kind, (b"content-length", b"%d" % len(body))]), body)


def chunk_of(item: Any) -> bytes:
    """An item of a stream. What is no text nor bytes becomes a line of JSON."""
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    return to_json(item) + b"\n"


def is_complete(response: Response) -> bool:
    """Whether a starlette response is head and body, and nothing else."""
    return type(response).__call__ is Response.__call__ and response.background is None


class Answer:
    """What user code has answered, before it is sent: a head, and chunks; then what remains to be done."""

    __slots__ = ("after", "chunks", "head")

    def __init__(
        self,
        head: HttpResponseHead,
        chunks: AsyncIterator[Any],
        after: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.head = head
        self.chunks = chunks
        self.after = after


def streamed(response: StreamingResponse, pool: ThreadPool) -> Answer:
    """A streaming response, read by us: Starlette's own way starts two tasks for it."""
    head = HttpResponseHead(response.status_code, response.raw_headers)
    chunks = aiter(response.body_iterator)
    frame = getattr(chunks, "ag_frame", None)
    if frame is not None and frame.f_code is iterate_in_threadpool.__code__:
        # Of a plain iterator Starlette fetches each item by a call in a thread of its own: 100 us an item.
        chunks = ThreadIterator(pool, functools.partial(iter, frame.f_locals["iterator"]))
    return Answer(head, chunks, response.background)


def of_items(items: AsyncIterator[Any]) -> Answer:
    return Answer(HttpResponseHead(200, [_TEXT]), items)


# --- errors


def error_reply(
    error: BaseException, request: ReplicaRequest | None, *, request_id: str, debug: str
) -> bytes:
    """The reply for what user code raised. Server errors tell nothing of the code, unless `debug` has it."""
    cause = error.cause if isinstance(error, RetinueTaskError) and error.cause is not None else error
    if isinstance(cause, HTTPException):
        return _http_exception(cause)
    if isinstance(cause, InvalidJSONError):
        return _detail(400, f"the request's body is not valid JSON: {cause.msg} (position {cause.pos})")
    if isinstance(cause, BackPressureError):
        retry = (
            []
            if cause.retry_after_s is None
            else [(b"retry-after", b"%d" % max(1, round(cause.retry_after_s)))]
        )
        return _text(cause.http_status, str(cause), retry)
    if isinstance(cause, RetinueServeException) and cause.http_status != 500:
        return _text(cause.http_status, str(cause))
    if request is not None and request._was_json and is_validation_error(cause):
        return _detail(422, json.loads(cause.json(include_url=False, include_context=False)))  # type: ignore[attr-defined]
    text = "Internal Server Error" + (f" (request id {request_id})" if request_id else "")
    return _text(500, debug or text)


def is_validation_error(error: BaseException) -> bool:
    """Whether it is pydantic's, without importing that."""
    return type(error).__name__ == "ValidationError" and type(error).__module__.startswith("pydantic")


def is_clients_fault(error: BaseException) -> bool:
    """Whether the log can do without it."""
    return isinstance(error, InvalidJSONError) or (
        isinstance(error, HTTPException) and error.status_code < 500
    )


def _http_exception(error: HTTPException) -> bytes:
    headers = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in (error.headers or {}).items()]
    if error.status_code in {204, 304}:
        return pack(HttpResponseHead(error.status_code, headers))
    return _text(error.status_code, str(error.detail), headers)


def _text(status: int, text: str, headers: Headers | None = None) -> bytes:
    body = text.encode()
    sized = [_TEXT, (b"content-length", b"%d" % len(body)), *(headers or [])]
    return pack(HttpResponseHead(status, sized), body)


def _detail(status: int, detail: Any) -> bytes:
    return complete({"detail": detail}, status)
