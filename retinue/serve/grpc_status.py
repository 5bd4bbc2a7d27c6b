"""gRPC's status codes, and which of them an error becomes. Nothing here imports grpc.

Lives here: errors of routing, of replicas and of user code as codes and words. Does not: sending them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from retinue.core.doors import DoorBodyTooLargeError, DoorClosedError, DoorTimeoutError
from retinue.exceptions import RetinueTaskError
from retinue.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
    gRPCStatusError,
)

NAMES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
    "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
OK, CANCELLED, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND = 0, 1, 3, 4, 5
RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 8, 12, 13, 14

# Details travel in the trailers, which most clients limit to 8 KiB together.
MAX_DETAILS_CHARS = 4096


class Status(NamedTuple):
    """`is_unexpected`: the log should have the traceback."""

    code: int
    details: str = ""
    is_unexpected: bool = False


def number_of(code: Any) -> int:
    """Of a grpc.StatusCode, or of its number; 0 of None."""
    if code is None:
        return OK
    value = getattr(code, "value", code)
    return int(value[0] if isinstance(value, tuple) else value)


def name_of(code: int) -> str:
    return NAMES[code] if 0 <= code < len(NAMES) else str(code)


def cut(details: str) -> str:
    """What of it goes into a trailer."""
    return details if len(details) <= MAX_DETAILS_CHARS else details[: MAX_DETAILS_CHARS - 3] + "..."


def of_error(error: BaseException, request_id: str) -> Status:
    """Who is at fault and whether to try again, as code and words. What user code raised tells no more than
    that it failed."""
    if isinstance(error, RetinueTaskError) and error.cause is not None:
        error = error.cause
    if isinstance(error, gRPCStatusError):
        code = number_of(error.grpc_code) or INTERNAL
        return Status(code, cut(error.grpc_details or str(error)))
    if isinstance(error, BackPressureError):
        return Status(RESOURCE_EXHAUSTED, cut(str(error)))
    if isinstance(error, DeploymentUnavailableError):
        return Status(UNAVAILABLE, cut(str(error)))
    if isinstance(error, ReplicaUnavailableError | DoorClosedError):
        return Status(
            UNAVAILABLE, f"the replica died while it executed this request (request id {request_id})"
        )
    if isinstance(error, DoorTimeoutError):
        return Status(DEADLINE_EXCEEDED, "the request's deadline has passed")
    if isinstance(error, DoorBodyTooLargeError):
        return Status(RESOURCE_EXHAUSTED, cut(str(error)))
    if isinstance(error, RequestCancelledError):
        return Status(CANCELLED, "the request was cancelled")
    return Status(INTERNAL, f"internal error (request id {request_id})", is_unexpected=True)
