"""One HTTP request on its way through the proxy: what its headers ask for, and what the log will say of it.

Lives here: reading the headers that mean something to Retinue, ids, deadlines. Does not: sockets, routing.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import time

from retinue.serve.messages import Route
from retinue.serve.routing.router import RequestMeta

# Names of headers that the proxy looks at, all lower case.
REQUEST_ID = b"x-request-id"
TIMEOUT = b"x-request-timeout-seconds"
IGNORES_DISCONNECT = b"x-request-disconnect-disabled"
MODEL_ID = b"serve_multiplexed_model_id"
SESSION_ID = b"x-session-id"
TRACEPARENT = b"traceparent"
IDEMPOTENCY_KEY = b"idempotency-key"
CONTENT_LENGTH = b"content-length"
EXPECT = b"expect"
KNOWN_HEADERS = frozenset(
    (
        REQUEST_ID,
        TIMEOUT,
        IGNORES_DISCONNECT,
        MODEL_ID,
        SESSION_ID,
        TRACEPARENT,
        IDEMPOTENCY_KEY,
        CONTENT_LENGTH,
        EXPECT,
    )
)

# These may be executed twice (RFC 9110, 9.2.1): they change nothing.
_SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
# Of a client: it goes into logs and answers, where it must not pass for anything else.
_REQUEST_ID = re.compile(rb"[\x21-\x7e\xa1-\xff]{1,256}")
_MAX_TIMEOUT_S = 7 * 24 * 3600.0


class IdMaker:
    """Ids of requests and traces: a prefix of this process's own and a counter (uuid4: 3.4 us, this: 0.7)."""

    def __init__(self) -> None:
        self._prefix = os.urandom(8).hex()
        self._count = itertools.count(int.from_bytes(os.urandom(4), "big"))

    def request_id(self) -> str:
        """32 hexadecimal digits, unique."""
        return f"{self._prefix}{next(self._count):016x}"

    def traceparent(self) -> str:
        """A W3C trace context of a new trace, not sampled: whoever traces has sent one."""
        count = next(self._count)
        return f"00-{self._prefix}{count:016x}-{count & 0xFFFFFFFFFFFFFFFF or 1:016x}-00"


class BadHeaderError(ValueError):
    """A header that Retinue reads says something that it cannot mean; the message names it."""


class Passage:
    """A request between its head and the last byte of its answer."""

    __slots__ = (
        "app_name",
        "began",
        "deadline",
        "ignores_disconnect",
        "is_over",
        "method",
        "path",
        "request_id",
        "route",
    )

    def __init__(self, method: str, path: str, known: dict[bytes, bytes], ids: IdMaker) -> None:
        self.method = method
        self.path = path
        self.began = time.monotonic()
        self.deadline = 0.0
        self.route = ""
        self.app_name = ""
        self.is_over = False
        self.ignores_disconnect = False
        self.request_id = ""
        given = known.get(REQUEST_ID)
        if given is not None and _REQUEST_ID.fullmatch(given):
            self.request_id = given.decode("latin-1")
        self.request_id = self.request_id or ids.request_id()

    def read_headers(
        self, route: Route, known: dict[bytes, bytes], timeout_s: float | None, ids: IdMaker
    ) -> RequestMeta:
        """What the router needs to know. Raises BadHeaderError."""
        self.route = route.prefix
        self.app_name = route.app_name
        trace = ""
        model_id = session_id = ""
        may_repeat = self.method in _SAFE_METHODS
        if route.request_timeout_s is not None:
            timeout_s = route.request_timeout_s
        if known:
            given = known.get(TRACEPARENT)
            if given is not None and _TRACEPARENT.fullmatch(given):
                trace = given.decode("ascii")
            if MODEL_ID in known:
                model_id = known[MODEL_ID].decode("latin-1")
            if SESSION_ID in known:
                session_id = known[SESSION_ID].decode("latin-1")
            if IDEMPOTENCY_KEY in known:
                may_repeat = True
            if IGNORES_DISCONNECT in known:
                self.ignores_disconnect = known[IGNORES_DISCONNECT].strip().lower() in (b"1", b"true", b"?1")
            if TIMEOUT in known:
                timeout_s = timeout_of(known[TIMEOUT].decode("latin-1"))
        if timeout_s:
            self.deadline = self.began + timeout_s
        return RequestMeta(
            self.request_id,
            trace or ids.traceparent(),
            self.deadline,
            model_id,
            session_id,
            may_repeat,
        )

    def is_late(self) -> bool:
        """Whether its time is up. A status of 500 says no more than that then: nested calls end with it, and
        what they raise is not the application's mistake."""
        return 0.0 < self.deadline <= time.monotonic()


def is_traceparent(value: str) -> bool:
    """Whether it is a W3C trace context."""
    return value.isascii() and _TRACEPARENT.fullmatch(value.encode()) is not None


def timeout_of(value: str) -> float:
    """The seconds that x-request-timeout-seconds says. Raises BadHeaderError."""
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _MAX_TIMEOUT_S:
        raise BadHeaderError(f"x-request-timeout-seconds is a number of seconds above 0, got {value!r}")
    return seconds
