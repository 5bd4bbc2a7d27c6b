"""What is kept of the requests that a replica has answered: counts, times, and a line in its log.

Measured by `loadtests/serve_bookkeeping.py`, us a request: counts and times 0.5, the log's line 0.4 at once
and 1.1 when it is written, in batches.

Lives here: names and tags of the replica's metrics, what an access line says. Does not: taking requests
(`door`), the file (`retinue.serve.logs`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from retinue.serve import grpc_status
from retinue.serve.access_log import AccessLog
from retinue.serve.context import RequestContext
from retinue.serve.measures import Tally, Timings, add_source, counter, gauge, remove_source
from retinue.serve.messages import GRPC_MESSAGE, CallHead, GrpcResponseHead, HttpHead, status_of, unpack
from retinue.util.metrics import Sample

LOG_FLUSH_S = 0.1
# Of messages that say what became of a call by handle.
OK, ERROR, CANCELLED = "OK", "ERROR", "CANCELLED"
_TAGS = ("route", "method")
_monotonic = time.monotonic


def note_failure(request: RequestContext, error: BaseException) -> None:
    """Remember why a streamed answer ends before its end, for the log."""
    request.failure = type(error).__name__
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        request.is_cancelled = True


class RequestMeasures:
    """Of one replica; scraped from `publish` to `close`. All but the samples is for its loop."""

    def __init__(self, app_name: str, deployment: str, replica: str, load: Callable[[], int]) -> None:
        self.access_log: AccessLog | None = None
        # Requests that a proxy has logged already: a second line costs 5 % of an echo's throughput (wrk, 64
        # connections, 27,300/s without and 26,100/s with it), so that it is written where it is asked for.
        self.logs_proxied = False
        self._tags = {"application": app_name, "deployment": deployment, "replica": replica}
        self._load = load
        self._is_flushing = False
        self._latency = Timings(
            "serve_deployment_processing_latency_seconds", "From a request's slot to its answer's end", _TAGS
        )
        self._first_chunk = Timings(
            "serve_deployment_time_to_first_chunk_seconds",
            "From a request's slot to the first chunk of its streamed answer",
            _TAGS,
        )
        self._errors = Tally(
            "serve_deployment_error_counter", "Requests whose code raised", (*_TAGS, "exception_type")
        )
        self.started = Timings(
            "serve_replica_initialization_latency_seconds", "Constructor, reconfigure and lifespan", ()
        )

    def publish(self) -> None:
        add_source(self._samples)

    # --- the life of a request

    def answered(self, entered: RequestContext, answer: bytes) -> None:
        """A complete reply."""
        head = entered.head
        if type(head) is HttpHead:
            self._over(entered, "__call__", head.method, head.path, status_of(answer))
        elif type(head) is CallHead:
            self._over(entered, head.method, "CALL", head.method, OK)
        elif head is not None:
            self._over(entered, head.method, "GRPC", head.method, self._grpc_status(entered, answer))

    def first_chunk(self, entered: RequestContext) -> None:
        head = entered.head
        name = "__call__" if type(head) is HttpHead else head.method
        self._first_chunk.add((entered.route, name), _monotonic() - entered.began)

    def stream_over(self, entered: RequestContext) -> None:
        """A streamed answer has ended, in whatever way."""
        if entered.head is None:
            return
        if entered.failure and not entered.is_cancelled:
            self.failed(entered, entered.failure)
        if type(entered.head) is HttpHead:
            self._end(entered, entered.status or 499)
        else:
            self._end(entered, CANCELLED if entered.is_cancelled else ERROR if entered.failure else OK)

    def raised(self, entered: RequestContext, error: BaseException) -> None:
        """There is no answer but this."""
        if entered.head is None:
            return  # what came was no request
        if isinstance(error, asyncio.CancelledError):
            self._end(entered, 499 if type(entered.head) is HttpHead else CANCELLED)
        else:
            self.failed(entered, type(error).__name__)
            self._end(entered, 500 if type(entered.head) is HttpHead else ERROR)

    def failed(self, entered: RequestContext, what: str) -> None:
        """The user's code has raised `what`; the request may have an answer all the same."""
        head = entered.head
        name = "__call__" if head is None or type(head) is HttpHead else head.method
        self._errors.add((entered.route, name, what))

    def _end(self, entered: RequestContext, status: int | str) -> None:
        head: Any = entered.head
        if type(head) is HttpHead:
            self._over(entered, "__call__", head.method, head.path, status)
        else:
            kind = "CALL" if type(head) is CallHead else "GRPC"
            self._over(entered, head.method, kind, head.method, status)

    def _over(self, entered: RequestContext, name: str, method: str, path: str, status: int | str) -> None:
        now = _monotonic()
        seconds = now - entered.began
        route = entered.route
        self._latency.add((route, name), seconds)
        log = self.access_log
        if log is not None and (self.logs_proxied or method == "CALL"):
            log.add((now, entered.request_id, route, method, path, status, seconds))
            if not self._is_flushing:
                self._is_flushing = True
                asyncio.get_running_loop().call_later(LOG_FLUSH_S, self.flush_log)

    def _grpc_status(self, entered: RequestContext, answer: bytes) -> str:
        if answer[:1] == GRPC_MESSAGE:
            return OK
        name = grpc_status.name_of(unpack(GrpcResponseHead, memoryview(answer)[1:])[0].code)
        if name != OK:
            self.failed(entered, name)
        return name

    def flush_log(self) -> None:
        self._is_flushing = False
        if self.access_log is not None:
            self.access_log.flush()

    def close(self) -> None:
        remove_source(self._samples)
        self.flush_log()

    # --- scrapes

    def _samples(self) -> list[Sample]:
        tags = self._tags
        found = [
            *self._latency.samples(tags),
            *self._first_chunk.samples(tags),
            *self._errors.samples(tags),
            *self.started.samples(tags),
        ]
        for key, count in self._latency.counts().items():
            own = {**tags, **dict(zip(_TAGS, key, strict=True))}
            found.append(counter("serve_deployment_request_counter", "Requests answered", count, own))
        text = "Requests that the replica executes"
        found.append(gauge("serve_replica_processing_queries", text, self._load(), tags))
        return found
