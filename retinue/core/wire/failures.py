"""Turn a Failure message into the exception it names, and back. The one table of names that travel."""

from __future__ import annotations

from retinue.core import errors
from retinue.core.wire.messages import Failure

_BUILTIN: dict[str, type[Exception]] = {
    "ValueError": ValueError,
    "TypeError": TypeError,
    "KeyError": KeyError,
    "TimeoutError": TimeoutError,
    "ConnectionError": ConnectionError,
    "FileNotFoundError": FileNotFoundError,
}


def to_exception(failure: Failure) -> Exception:
    """The exception that `failure` names; one of an unknown name becomes a RetinueSystemError."""
    builtin = _BUILTIN.get(failure.kind)
    if builtin is not None:
        return builtin(failure.message)
    cls = getattr(errors, failure.kind, None)
    if not (isinstance(cls, type) and issubclass(cls, errors.RetinueError)):
        return errors.RetinueSystemError(f"{failure.kind}: {failure.message}")
    if issubclass(cls, errors.ObjectLostError | errors.TaskCancelledError):
        return cls(message=failure.message)
    return cls(failure.message)


def to_failure(rid: int, error: BaseException) -> Failure:
    """`error` as the answer to request `rid`."""
    return Failure(rid, type(error).__name__, _message_of(error))


def _message_of(error: BaseException) -> str:
    """What the constructor takes, so that the error says the same again on the other side."""
    text: object = getattr(error, "error_message", "") or getattr(error, "message", "")
    if not text and len(error.args) == 1:
        text = error.args[0]
    return text if isinstance(text, str) and text else str(error)
