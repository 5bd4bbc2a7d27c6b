"""Waiting, on a thread of its own, for the one answer that another thread brings.

Lives here: the wait, its deadline, and what becomes of an answer that comes too late. Does not: asking.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

from retinue.core.wire.failures import to_exception
from retinue.core.wire.messages import Failure

OnResponse = Callable[[Any, bytes], None]


class Answer:
    """Pass it as a request's `on_response`, then `wait`.

    An answer that comes after the wait was given up (late, or interrupted) goes to `on_abandoned`, so that
    what it gave is not lost.
    """

    __slots__ = ("_came", "_lock", "_on_abandoned", "_waiting")

    def __init__(self, on_abandoned: OnResponse | None = None) -> None:
        self._came: list[tuple[Any, bytes]] = []
        self._waiting = [True]  # emptied in one step when nobody waits any more
        self._on_abandoned = on_abandoned
        self._lock = threading.Lock()
        self._lock.acquire()

    def __call__(self, response: Any, body: bytes) -> None:
        if self._waiting:
            self._came.append((response, body))
            self._lock.release()
        elif self._on_abandoned is not None:
            self._on_abandoned(response, body)

    @property
    def has_come(self) -> bool:
        """Whether it came while somebody waited for it."""
        return bool(self._came)

    def wait(
        self,
        late: str,
        timeout_s: float | None = None,
        *,
        check: Callable[[], None] | None = None,
        check_every_s: float = 0.1,
    ) -> tuple[Any, bytes]:
        """Give (response, payload).

        Raises the error that a Failure names, TimeoutError(late), or what `check` raises, which is called
        every `check_every_s` meanwhile.
        """
        try:
            if check is None:
                self._lock.acquire(timeout=-1 if timeout_s is None else timeout_s)
            else:
                self._acquire(timeout_s, check, check_every_s)
        finally:
            self._waiting.clear()
        if not self._came:
            raise TimeoutError(late)
        response, body = self._came[0]
        if type(response) is Failure:
            raise to_exception(response)
        return response, body

    def _acquire(self, timeout_s: float | None, check: Callable[[], None], every_s: float) -> None:
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while not self._lock.acquire(timeout=max(0.0, min(every_s, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                return
            check()
