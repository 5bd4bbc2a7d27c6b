"""What the callers of a pool wait on: results that arrive chunk by chunk from the pool's thread.

Lives here: `AsyncResult` for `apply` and `map`, the iterators of `imap`. Does not: anything that knows of
workers or references.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing import TimeoutError as PoolTimeoutError
from typing import Any, Self

from retinue.util.multiprocessing.worker import Failure

logger = logging.getLogger(__name__)

Outcomes = list[Any]  # of one chunk: values and Failures
Deliver = Callable[[Outcomes], None]
Callback = Callable[[Any], Any]


class PoolTerminatedError(Exception):
    """The pool was terminated before the call had finished; it may have run, in part or not at all."""


class AsyncResult:
    """The result of `apply_async`, `map_async` or `starmap_async`, in the making.

    Callbacks run on the pool's thread: keep them short, and let them not wait for other results.
    """

    def __init__(
        self,
        *,
        num_chunks: int,
        is_single: bool = False,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> None:
        self._chunks: list[Outcomes] = [[] for _ in range(num_chunks)]
        self._num_missing = num_chunks
        self._is_single = is_single
        self._callback = callback
        self._error_callback = error_callback
        self._error: Exception | None = None
        self._value: Any = None
        self._done = threading.Event()
        self.pool: Any = None  # held by whoever holds the result
        if num_chunks == 0:
            self._finish()

    def wait(self, timeout: float | None = None) -> None:
        """Return when the result is ready, or after `timeout` seconds."""
        self._done.wait(timeout)

    def get(self, timeout: float | None = None) -> Any:
        """Return the result, or raise the first exception in order that the calls raised.

        Raises `multiprocessing.TimeoutError` if it is not ready after `timeout` seconds.
        """
        if not self._done.wait(timeout):
            raise PoolTimeoutError(f"the result was not ready after {timeout} s")
        if self._error is not None:
            raise self._error
        return self._value

    def ready(self) -> bool:
        """Say whether all calls have finished."""
        return self._done.is_set()

    def successful(self) -> bool:
        """Say whether all calls finished without an exception; ValueError if they have not finished."""
        if not self.ready():
            raise ValueError(f"{self!r} is not ready")
        return self._error is None

    def deliver(self, index: int, outcomes: Outcomes) -> None:
        """Take in the outcomes of one chunk; once for each, from the pool's thread."""
        self._chunks[index] = outcomes
        self._num_missing -= 1
        failed = next((outcome for outcome in outcomes if isinstance(outcome, Failure)), None)
        if failed is not None and self._error is None:
            self._error = failed.exception()
            _call_back(self._error_callback, self._error)
        if self._num_missing == 0:
            self._finish()

    def _finish(self) -> None:
        outcomes = [outcome for chunk in self._chunks for outcome in chunk]
        if self._error is not None:
            # The callback heard of the first in time; `get` raises the first in order, as `map` would.
            self._error = next(o for o in outcomes if isinstance(o, Failure)).exception()
        else:
            self._value = outcomes[0] if self._is_single else outcomes
            _call_back(self._callback, self._value)
        self._chunks = []
        self._done.set()


class IMapIterator:
    """Iterates over results while the input is still being read; the base of both orders.

    At most `window` chunks are on their way at a time, and the next part of the input is read, in the
    caller's thread, when a result is taken. An exception that a call raised is raised in its turn, and the
    iteration may go on behind it.
    """

    def __init__(
        self,
        submit: Callable[[list[Any], Deliver], None],
        items: Iterable[Any],
        *,
        chunksize: int,
        window: int,
    ) -> None:
        self._submit = submit
        self._items: Iterator[Any] = iter(items)
        self._chunksize = chunksize
        self._arrived: queue.SimpleQueue[tuple[int, Outcomes]] = queue.SimpleQueue()
        self._num_submitted = 0
        self._num_arrived = 0
        self._is_exhausted = False
        self._ready: deque[Any] = deque()
        for _ in range(window):
            self._submit_next()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """Return the next result, or raise `multiprocessing.TimeoutError` after `timeout` seconds."""
        while not self._ready:
            if self._num_arrived == self._num_submitted:
                raise StopIteration
            try:
                index, outcomes = self._arrived.get(timeout=timeout)
            except queue.Empty:
                raise PoolTimeoutError(f"the next result was not ready after {timeout} s") from None
            self._num_arrived += 1
            self._submit_next()
            self._ready.extend(self._in_turn(index, outcomes))
        outcome = self._ready.popleft()
        if isinstance(outcome, Failure):
            raise outcome.exception()
        return outcome

    def _submit_next(self) -> None:
        if self._is_exhausted:
            return
        chunk = list(islice(self._items, self._chunksize))
        if not chunk:
            self._is_exhausted = True
            return
        index = self._num_submitted
        self._num_submitted += 1
        self._submit(chunk, lambda outcomes: self._arrived.put((index, outcomes)))

    def _in_turn(self, index: int, outcomes: Outcomes) -> Outcomes:
        raise NotImplementedError


class OrderedIMapIterator(IMapIterator):
    """Results in the order of the input."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._early: dict[int, Outcomes] = {}
        self._next_index = 0
        super().__init__(*args, **kwargs)

    def _in_turn(self, index: int, outcomes: Outcomes) -> Outcomes:
        self._early[index] = outcomes
        in_turn: Outcomes = []
        while self._next_index in self._early:
            in_turn += self._early.pop(self._next_index)
            self._next_index += 1
        return in_turn


class UnorderedIMapIterator(IMapIterator):
    """Results in the order in which the chunks finish."""

    def _in_turn(self, index: int, outcomes: Outcomes) -> Outcomes:
        return outcomes


def _call_back(callback: Callback | None, value: Any) -> None:
    if callback is None:
        return
    try:
        callback(value)
    except Exception:
        logger.exception("a callback of a pool's result raised")
