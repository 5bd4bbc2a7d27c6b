"""What can go wrong with a direct call, as its caller sees it. User code's own errors come as they are."""

from __future__ import annotations

from retinue.core.errors import RetinueError


class DoorError(RetinueError):
    """Base of what doors raise on their own account."""


class DoorClosedError(DoorError, ConnectionError):
    """There is no connection (any more), or no such door behind it.

    `is_retryable` says that the call had not been accepted: none of it was executed, so that it may be sent
    elsewhere. False: it was, or nobody can know.
    """

    def __init__(self, message: str, *, is_retryable: bool) -> None:
        super().__init__(message)
        self.is_retryable = is_retryable  # type: ignore[misc]

    def __reduce__(self) -> tuple[object, ...]:
        return _closed, (str(self), self.is_retryable)


def _closed(message: str, is_retryable: bool) -> DoorClosedError:
    return DoorClosedError(message, is_retryable=is_retryable)


class DoorRefusedError(DoorError):
    """The door did not take the call; `reason` is its own, in bytes. None of it was executed.

    A handler raises it to refuse: before it has executed anything, and before its first streamed item.
    """

    is_retryable = True

    def __init__(self, reason: bytes = b"") -> None:
        super().__init__(reason)
        self.reason = reason


class DoorTimeoutError(DoorError, TimeoutError):
    """The call's deadline passed. If it had begun, it is cancelled."""

    fault = "caller"


class DoorCancelledError(DoorError):
    """The handler was cancelled on its own side."""


class DoorBodyTooLargeError(DoorError):
    """A body, reply or item above the receiver's limit."""

    fault = "caller"
