"""HTTP/1.1 on the proxy's connections: uvicorn's protocol, with a shorter way for small requests.

uvicorn starts an ASGI task as soon as it has a request's head. Here a request whose body is there, or will
be soon, is held back until it is complete; then it goes to the replica as one frame, and a complete answer
leaves in one write (39,400 requests/s against 28,800 the ASGI way, both with all features). Uploads,
websockets, and what is none of an application's go the ASGI way, `AsgiSide`.

The class leans on names of uvicorn that are not promised: `pyproject.toml` fixes its minor version, and
tests run every case both ways.

Lives here: when a request begins, how its answer is written, time-outs of connections, what happens when a
client leaves. Does not: routing (`routing`), what errors mean (`answers`), the listening socket (`server`).
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from retinue.serve.messages import HttpResponseHead, Route, pack, unpack
from retinue.serve.proxy import answers
from retinue.serve.proxy.answers import Answer
from retinue.serve.proxy.requests import (
    CONTENT_LENGTH,
    EXPECT,
    KNOWN_HEADERS,
    BadHeaderError,
    Passage,
)

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from retinue.serve.proxy.server import HttpServer
    from retinue.serve.routing.asking import Asking
    from retinue.serve.routing.streams import RoutedStream

# Bodies up to this size go in one piece, above it they are streamed.
SMALL_BODY_BYTES = 1024 * 1024
METRICS_PATH = "/metrics"
_BODILESS = frozenset((204, 304))
_FINAL = range(200, 600)  # statuses that end a request
_NAME_IS_BAD = HEADER_RE.search
_VALUE_IS_BAD = HEADER_VALUE_RE.search


class ProxyProtocol(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(
        self, config: Config, server_state: ServerState, proxy: HttpServer, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(config, server_state, {}, loop)
        self.access_log = False  # uvicorn's; ours knows more
        self.proxy = proxy
        self.known: dict[bytes, bytes] = {}
        self._present: RequestResponseCycle | None = None  # the request that was begun last
        self._held: RequestResponseCycle | None = None  # the same, while its body is not complete
        self._asking: Asking | None = None  # the present request, the short way
        self._task: asyncio.Task[None] | None = None  # its streamed answer
        self._passage: Passage | None = None
        self._head_bytes = 0
        self._is_head_over = False
        self._is_starting = False
        self._is_told = False
        self._unsent = 0  # bytes, when the client was last seen to have taken some
        self._unsent_deadline = 0.0
        self.deadline = time.monotonic() + proxy.limits.header_timeout_s  # for the client's next step

    # --- the connection

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        present = self._present
        if present is not None and not present.response_complete:
            present.disconnected = True  # uvicorn tells the last request that was read
            present.message_event.set()
        self.pipeline.clear()
        self._held = self._present = self.cycle = None  # type: ignore[assignment]  # no reference cycles
        passage = self._passage
        if passage is None or passage.ignores_disconnect:
            return
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
            self.proxy.finished(passage, answers.CLIENT_LEFT, self.client)
        elif self._task is not None:
            self._task.cancel()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.known = self.scope["known"] = {}  # type: ignore[typeddict-unknown-key]
        self._head_bytes = 0
        self._is_head_over = False
        self._expect_within(self.proxy.limits.header_timeout_s, is_told=True)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + 4)
        if self._is_head_over:
            return  # a trailer: whoever checks headers in front of us has not looked at it
        name = name.lower()
        if name in KNOWN_HEADERS:
            self.known[name] = value
            if name == EXPECT and value.lower() == b"100-continue":
                self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._is_head_over = True
        try:
            super().on_headers_complete()
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError, AttributeError):
            raise _BadTargetError from None  # AttributeError: there is no path in it

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self.proxy.limits.max_header_bytes:
            raise _HeadTooLargeError

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self._upgrade()
                return
            rest = data[upgrade.args[0] :]
            if rest and not self.transport.is_closing():
                self.data_received(rest)  # uvicorn forgets it
        except httptools.HttpParserCallbackError as error:
            if isinstance(error.__context__, _HeadTooLargeError):
                self._refuse(Answer(431, b"the request's head is too large\n"))
            elif isinstance(error.__context__, _BadTargetError):
                self._refuse(Answer(400, b"the request's target is no path\n"))
            else:
                self.logger.error("a request could not be read", exc_info=error)
                self.transport.close()
        except httptools.HttpParserError:
            self._refuse(Answer(400, b"this is not HTTP/1.1\n"))
        else:
            if self._held is not None:
                self._look_at_held(self._held)

    def _upgrade(self) -> None:
        """To a websocket: the connection has another protocol from now on."""
        if self.is_answering or not self.url.startswith((b"/", b"http")):
            self._refuse(Answer(400, b"this connection cannot become a websocket\n"))
        else:
            self.deadline = 0.0
            self.handle_websocket_upgrade()

    def _refuse(self, answer: Answer) -> None:
        """Say why, and close: there is no request to answer.

        Not a word while an earlier one is being answered: it would pass for its answer.
        """
        text = [
            STATUS_LINE[answer.status],
            *(name + b": " + value + b"\r\n" for name, value in answer.headers),
            b"content-length: %d\r\nconnection: close\r\n\r\n" % len(answer.body),
            answer.body,
        ]
        present = self._present
        if not self.pipeline and (
            present is None
            or present.response_complete
            or (present.more_body and not present.response_started)
        ):
            self.transport.write(b"".join(text))
        self.transport.close()

    # --- when a request begins

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """The head is there and earlier requests are answered: begin now, or once the body is there."""
        if self.flow.write_paused:  # nor before the client has read their answers
            self.flow.pause_reading()
            self.pipeline.append((cycle, app))
            return
        self._present = cycle
        if cycle.more_body:
            self._held = cycle
            self._expect_within(self.proxy.limits.body_timeout_s, is_told=True)
        else:
            self._begin(cycle)

    def on_body(self, body: bytes) -> None:
        if self._held is not None and self._held is self.cycle:
            self.cycle.body += body
        else:
            super().on_body(body)
        if self.deadline:
            self._expect_within(self.proxy.limits.body_timeout_s, is_told=True)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        cycle = self._held
        self.deadline = 0.0
        if self._is_idle:  # answered before it was all there
            self._expect_within(self.proxy.limits.keep_alive_s)
        elif cycle is not None and not cycle.more_body:
            self._held = None
            self._begin(cycle)

    def _look_at_held(self, cycle: RequestResponseCycle) -> None:
        """A body that is not complete: wait for a small one of known size, stream any other."""
        length = self.known_of(cycle).get(CONTENT_LENGTH)
        limit = self.proxy.limits.max_body_bytes
        if length is not None and int(length) > limit:
            self._held = None
            self.flow.pause_reading()
            self._begin(cycle, answers.too_large(limit))
        elif length is None or int(length) > SMALL_BODY_BYTES or len(cycle.body) > SMALL_BODY_BYTES:
            self._held = None
            if cycle.body:
                cycle.message_event.set()  # what came while it was held
            super()._start_asgi_task(cycle, self.app)
        elif cycle.waiting_for_100_continue:
            cycle.waiting_for_100_continue = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _begin(self, cycle: RequestResponseCycle, answer: Answer | None = None) -> None:
        """A complete request (or one whose answer is known): the short way."""
        scope = cycle.scope
        path = scope["path"]
        proxy = self.proxy
        self._passage = passage = Passage(scope["method"], path, self.known_of(cycle), proxy.ids)
        if answer is None and len(cycle.body) > proxy.limits.max_body_bytes:
            answer = answers.too_large(proxy.limits.max_body_bytes)
        if answer is None:
            route = proxy.routes.find(path)
            if route is None or path in proxy.own_paths:
                if path == METRICS_PATH:
                    self._task = self.loop.create_task(self._show_metrics(cycle, passage))
                    return
                answer = proxy.own_answer(path)
            elif proxy.is_draining:
                cycle.keep_alive = False
            if answer is None:
                assert route is not None
                self._ask(cycle, passage, route)
                return
        self._write(cycle, passage, answer.status, answer.headers, answer.body)

    async def _show_metrics(self, cycle: RequestResponseCycle, passage: Passage) -> None:
        try:
            self._write_answer(cycle, passage, await self.proxy.metrics_answer())
        except asyncio.CancelledError:
            self.proxy.finished(passage, answers.CLIENT_LEFT, self.client)
            if not cycle.disconnected:
                raise  # the proxy ends

    @property
    def _is_idle(self) -> bool:
        """Whether every request that was read is answered."""
        return self._present is not None and self._present.response_complete and not self.pipeline

    @property
    def is_answering(self) -> bool:
        """Whether a request is being answered."""
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete

    @staticmethod
    def known_of(cycle: RequestResponseCycle) -> dict[bytes, bytes]:
        """The headers of a request that Retinue reads."""
        return cycle.scope["known"]  # type: ignore[typeddict-item, no-any-return]

    # --- the short way

    def _ask(self, cycle: RequestResponseCycle, passage: Passage, route: Route) -> None:
        proxy = self.proxy
        try:
            meta = passage.read_headers(route, self.known_of(cycle), proxy.request_timeout_s, proxy.ids)
            body = pack(proxy.head_of(cycle.scope, route, meta, passage), cycle.body)
            then = functools.partial(self._answered, cycle, passage)
            asking = proxy.router(route).ask_soon("http", body, meta, then)
        except BadHeaderError as error:
            self._write_answer(cycle, passage, answers.bad_request(str(error)))
        except Exception as error:  # noqa: BLE001 - each has an answer
            self._failed(cycle, passage, error)
        else:
            if self._passage is passage:
                self._asking = asking

    def _answered(
        self,
        cycle: RequestResponseCycle,
        passage: Passage,
        reply: bytes | RoutedStream | None,
        error: BaseException | None,
    ) -> None:
        self._asking = None
        if error is not None:
            if isinstance(error, Exception):
                self._failed(cycle, passage, error)
            else:
                self.transport.abort()  # the proxy ends
        elif type(reply) is bytes:
            try:
                answer, body = unpack(HttpResponseHead, reply)
            except ValueError as problem:
                self._failed(cycle, passage, problem)
                return
            if answer.status == 500 and passage.is_late():
                self._write_answer(cycle, passage, answers.TOO_LATE)
            else:
                self._write(cycle, passage, answer.status, answer.headers, body)
        else:
            self._task = self.loop.create_task(self._stream(cycle, passage, reply))  # type: ignore[arg-type]

    async def _stream(self, cycle: RequestResponseCycle, passage: Passage, stream: RoutedStream) -> None:
        """Pass a streamed answer on, what came together in one write. Its first item begins with the head."""
        head: HttpResponseHead | None = None
        try:
            items = await stream.read()
            answer, first = unpack(HttpResponseHead, items[0])
            head = answer
            items[0] = bytes(first)
            start = start_message(answer, passage)
            await cycle.send(start)
            self.proxy.first_chunk(passage)
            await send_body(cycle.send, items, stream)
        except asyncio.CancelledError:
            self.proxy.finished(passage, answers.CLIENT_LEFT, self.client)
            if not cycle.disconnected:
                raise  # the proxy ends
        except Exception as error:  # noqa: BLE001 - each has an answer
            if head is None or not cycle.response_started:
                self._failed(cycle, passage, error)
            else:
                self.cut(cycle, passage, head, error)
        else:
            self.proxy.finished(passage, answer.status, self.client)
        finally:
            await stream.aclose()

    def cut(
        self, cycle: RequestResponseCycle, passage: Passage, head: HttpResponseHead, error: Exception
    ) -> None:
        """A stream that broke after its first byte never ends as one that is complete."""
        self.proxy.log_failure(passage, error)
        if is_event_stream(head) and cycle.chunked_encoding and not cycle.disconnected:
            event = answers.error_event(answers.of_error(error))
            self.transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        cycle.response_complete = True
        self.transport.close()
        self.proxy.finished(passage, answers.of_error(error).status, self.client)

    def _failed(self, cycle: RequestResponseCycle, passage: Passage, error: Exception) -> None:
        answer = self.proxy.answer_to(error, passage)
        if cycle.response_started:
            self.transport.close()
            self.proxy.finished(passage, answer.status, self.client)
        else:
            self._write_answer(cycle, passage, answer)

    def _write_answer(self, cycle: RequestResponseCycle, passage: Passage, answer: Answer) -> None:
        self._write(cycle, passage, answer.status, answer.headers, answer.body)

    def _write(
        self,
        cycle: RequestResponseCycle,
        passage: Passage,
        status: int,
        headers: list[tuple[bytes, bytes]],
        body: bytes | memoryview,
    ) -> None:
        """A complete answer in one write, and the connection's next request."""
        if cycle.disconnected:
            self.proxy.finished(passage, answers.CLIENT_LEFT, self.client)
            return
        keep_alive = cycle.keep_alive
        is_head = passage.method == "HEAD"
        if status not in _FINAL:
            self._failed(cycle, passage, ValueError(f"an answer's status is 200 to 599, not {status}"))
            return
        content = [STATUS_LINE[status]]
        for name, value in headers:
            name = name.lower()
            if name == b"content-length":
                if is_head and value.isdigit():
                    content += (b"content-length: ", value, b"\r\n")
                continue
            if name == b"transfer-encoding":
                continue
            if name == b"connection" and b"close" in value.lower():
                keep_alive = False
                continue
            if _NAME_IS_BAD(name) or _VALUE_IS_BAD(value):
                self._failed(cycle, passage, ValueError(f"the response has an invalid header: {name!r}"))
                return
            content += (name, b": ", value, b"\r\n")
        if not is_head and status not in _BODILESS:
            content.append(b"content-length: %d\r\n" % len(body))
        content.append(b"x-request-id: %b\r\n" % passage.request_id.encode("latin-1"))
        content.append(b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
        if not is_head and status not in _BODILESS:
            content.append(body)  # type: ignore[arg-type]
        self.transport.write(b"".join(content))
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if not keep_alive:
            self.transport.close()
        self.proxy.finished(passage, status, self.client)
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """As uvicorn's, with one sweep over all connections for a timer of each (2.4 us)."""
        self.server_state.total_requests += 1
        self._passage = self._task = None
        if not self.transport.is_closing():
            self._go_on()

    def _go_on(self) -> None:
        """Begin the requests that wait behind the one that was answered; read on behind the last of them."""
        if self._is_starting:
            return  # answered at once: whoever began it goes on (a thousand may, so not from here)
        self._is_starting = True
        try:
            while self.pipeline and not self.is_busy:
                cycle, app = self.pipeline.pop()
                self._start_asgi_task(cycle, app)
                if self._held is not None:
                    self._look_at_held(self._held)
        finally:
            self._is_starting = False
        if not self.pipeline and not self.transport.is_closing():
            self.flow.resume_reading()
            if self._is_idle:
                self._expect_within(self.proxy.limits.keep_alive_s)

    @property
    def is_busy(self) -> bool:
        """Whether no request can begin."""
        present = self._present
        return (
            (present is not None and not present.response_complete)
            or self.flow.write_paused
            or self.transport.is_closing()
        )

    # --- slow clients

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unsent_deadline = 0.0
        if not self.transport.is_closing():
            self._go_on()

    def _expect_within(self, timeout_s: float, *, is_told: bool = False) -> None:
        """The client has to do its next step by then; `is_told`: it is told that it was late."""
        self.deadline = time.monotonic() + timeout_s
        self._is_told = is_told

    def sweep(self, now: float) -> None:
        """Close the connection if its client is too slow; the server calls this about once a second."""
        if self.flow.write_paused or self.transport.is_closing():
            self._look_at_unsent(now)
        elif not self.deadline or now < self.deadline:
            pass
        elif self.flow.read_paused or (self.is_answering and not self._is_body_late):
            # We are the slow ones.
            self._expect_within(self.proxy.limits.body_timeout_s, is_told=self._is_told)
        elif self._is_told:
            self._refuse(Answer(408, b"the request took too long to arrive\n"))
        else:
            self.transport.close()

    @property
    def _is_body_late(self) -> bool:
        """Whether what is waited for is the body of the request that is being answered."""
        return self._present is self.cycle and self.cycle.more_body

    def _look_at_unsent(self, now: float) -> None:
        unsent = self.transport.get_write_buffer_size()
        if not self._unsent_deadline or unsent < self._unsent:  # it reads, if slowly
            self._unsent_deadline = now + self.proxy.limits.write_timeout_s
            self._unsent = unsent
        elif now >= self._unsent_deadline:
            self.transport.abort()  # what it does not read cannot be flushed


class _HeadTooLargeError(Exception):
    """Raised through the parser."""


class _BadTargetError(Exception):
    """Raised through the parser."""


async def send_body(send: Callable[[Any], Awaitable[None]], items: list[bytes], stream: RoutedStream) -> None:
    """Send a body's first items and the rest of the stream, what came together in one write, and its end."""
    while items:
        body = items[0] if len(items) == 1 else b"".join(items)
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        items = await stream.read()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def is_event_stream(head: HttpResponseHead) -> bool:
    """Whether an answer is made of server-sent events."""
    for name, value in head.headers:
        if name == b"content-type":
            return value.startswith(b"text/event-stream")
    return False


def start_message(head: HttpResponseHead, passage: Passage) -> Any:
    """A streamed answer's head, for uvicorn. Raises ValueError for one that no client could understand.

    uvicorn finds that only once it has begun to answer; and two lengths it would send.
    """
    if head.status not in _FINAL:
        raise ValueError(f"an answer's status is 200 to 599, not {head.status}")
    headers = []
    length = b""
    for name, value in head.headers:
        name = name.lower()
        if _NAME_IS_BAD(name) or _VALUE_IS_BAD(value):
            raise ValueError(f"the response has an invalid header: {name!r}")
        if name == b"transfer-encoding":
            continue  # ours to say
        if name == b"content-length":
            if not value.isdigit() or (length and value != length):
                raise ValueError(f"the response has an invalid length: {value!r}")
            if length:
                continue
            length = value
        headers.append((name, value))
    headers.append((b"x-request-id", passage.request_id.encode("latin-1")))
    return {"type": "http.response.start", "status": head.status, "headers": headers}
