"""What a client is told when its request did not get an answer of the application's.

Lives here: errors of routing and replicas as HTTP statuses, headers and words. Does not: writing them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from retinue.core.doors import DoorBodyTooLargeError, DoorClosedError, DoorTimeoutError
from retinue.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)

Headers = list[tuple[bytes, bytes]]

TEXT: tuple[bytes, bytes] = (b"content-type", b"text/plain; charset=utf-8")
JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")
# How long a client should wait where nobody can say better.
RETRY_AFTER_S = 1.0


class Answer(NamedTuple):
    """A complete response of the proxy's own. `is_unexpected`: the proxy's log should have the traceback."""

    status: int
    body: bytes
    headers: Headers = [TEXT]  # noqa: RUF012 - never changed
    is_unexpected: bool = False


NOT_READY = Answer(503, b"this proxy has not heard of any application yet\n", [TEXT, (b"retry-after", b"1")])
DRAINING = Answer(503, b"this proxy is draining\n", [TEXT, (b"retry-after", b"1"), (b"connection", b"close")])
TOO_LATE = Answer(504, b"the request's deadline has passed\n")
CLIENT_LEFT = 499  # in logs and metrics alone: nobody is there to read it


def not_found(path: str) -> Answer:
    """No application has a prefix of the path."""
    return Answer(404, f"no application has a route for {path!r}; see /-/routes\n".encode())


def bad_request(problem: str) -> Answer:
    return Answer(400, f"{problem}\n".encode())


def too_large(limit_bytes: int) -> Answer:
    """The body is above the proxy's `max_body_bytes`; the connection ends, as the rest of it is not read."""
    text = f"the body is larger than {limit_bytes} bytes, the most that this proxy takes\n"
    return Answer(413, text.encode(), [TEXT, (b"connection", b"close")])


def retry_after(seconds: float | None) -> tuple[bytes, bytes]:
    """The header, in whole seconds as HTTP wants it, at least one."""
    return b"retry-after", str(max(1, math.ceil(seconds or RETRY_AFTER_S))).encode()


def of_error(error: BaseException) -> Answer:
    """Who is at fault, and whether to try again, as status and words."""
    if isinstance(error, BackPressureError):
        return Answer(error.http_status, f"{error}\n".encode(), [TEXT, retry_after(error.retry_after_s)])
    if isinstance(error, DeploymentUnavailableError):
        return Answer(503, f"{error}\n".encode(), [TEXT, retry_after(None)])
    if isinstance(error, ReplicaUnavailableError | DoorClosedError):
        return Answer(502, b"the replica died while it executed this request\n")
    if isinstance(error, DoorTimeoutError | TimeoutError):
        return TOO_LATE
    if isinstance(error, DoorBodyTooLargeError):
        return Answer(413, f"{error}\n".encode())
    if isinstance(error, RequestCancelledError):
        return Answer(503, b"the request was cancelled\n", [TEXT, retry_after(None)])
    return Answer(500, b"Internal Server Error\n", is_unexpected=True)


def error_event(answer: Answer) -> bytes:
    """The server-sent event with which a stream ends that cannot go on."""
    return b"event: error\ndata: " + answer.body.strip() + b"\n\n"
