"""The process that runs a pool's functions: what crosses to it, and what comes back."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from multiprocessing import pool
from typing import Any

import cloudpickle


class Call(IntEnum):
    """How the function takes an item of a chunk."""

    ONE = 0  # function(item)
    STAR = 1  # function(*item)
    FULL = 2  # function(*item[0], **item[1])


@dataclass(frozen=True, slots=True)
class Failure:
    """The exception that one item raised, and its traceback as text; empty if none was raised there."""

    error: Exception
    trace: str

    def exception(self) -> Exception:
        """Return the exception, with the remote traceback as its cause."""
        if self.trace:
            self.error.__cause__ = RemoteTraceback(self.trace)
        return self.error


class RemoteTraceback(Exception):
    """Shows where in the worker an exception was raised."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class PoolWorker:
    """Runs chunks, one at a time; each item's outcome is its value or a `Failure`."""

    def __init__(self, initializer: Callable[..., Any] | None, initargs: Iterable[Any]) -> None:
        if initializer is not None:
            initializer(*initargs)

    def ready(self) -> bool:
        """Answer once the initializer has run."""
        return True

    def run(self, function: Callable[..., Any], items: list[Any], call: int) -> list[Any]:
        """Run the function on each item; an exception ends its item only."""
        return [_outcome(function, item, call) for item in items]


def _outcome(function: Callable[..., Any], item: Any, call: int) -> Any:
    try:
        if call == Call.ONE:
            return function(item)
        if call == Call.STAR:
            return function(*item)
        return function(*item[0], **item[1])
    except Exception as error:  # noqa: BLE001  the caller gets it
        return Failure(_portable(error), traceback.format_exc())


def _portable(error: Exception) -> Exception:
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception as reason:  # noqa: BLE001  it runs code of the exception's class
        as_text: Exception = pool.MaybeEncodingError(reason, error)  # type: ignore[attr-defined]
        return as_text
    return error
