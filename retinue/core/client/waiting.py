"""How a thread waits: in steps, asleep until it is woken, or until enough has come.

Lives here: the tools. Does not: what is waited for (`runtime`, `streams`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from retinue.core.transport import threads

if TYPE_CHECKING:
    from retinue.core.client.runtime import WaitHook

# A wait shorter than this does not lend the task's CPUs to others.
SHORT_WAIT_S = 0.002


class Wait:
    """One wait: how long each step may take, and telling the hook once when it is not a short one."""

    __slots__ = ("_announced", "_deadline", "_hook", "_started")

    def __init__(self, hook: WaitHook | None, deadline: float | None) -> None:
        self._hook = hook
        self._deadline = deadline
        self._announced = False
        self._started = time.monotonic() if hook is not None else 0.0

    def limit(self) -> float:
        """Seconds until the waiter should look again; 0 or less at the deadline."""
        if self._hook is not None:
            self._hook.check_interrupted()
        limit = threads.RECHECK_S
        if self._deadline is not None:
            limit = min(limit, self._deadline - time.monotonic())
        if self._hook is not None and not self._announced:
            if time.monotonic() - self._started < SHORT_WAIT_S:
                return min(limit, SHORT_WAIT_S)
            self._announced = True
            self._hook.blocked()
        return limit

    def over(self) -> None:
        if self._announced and self._hook is not None:
            self._hook.unblocked()


class Wake:
    """Wakes one sleeping thread, once or often."""

    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()

    def __call__(self) -> None:
        try:
            self.lock.release()
        except RuntimeError:
            pass  # it is awake already


class Countdown:
    """Wakes one sleeping thread when it was called often enough; called by one thread after another.

    `left -= 1` is one step under the GIL: no call and no jump lies within it.
    """

    __slots__ = ("left", "lock")

    def __init__(self, count: int) -> None:
        self.left = count
        self.lock = threading.Lock()
        self.lock.acquire()

    def __call__(self) -> None:
        self.left -= 1
        if self.left <= 0:
            try:
                self.lock.release()
            except RuntimeError:
                pass  # already at zero


class Once:
    """Calls a function the first time it is called."""

    __slots__ = ("_function", "_lock")

    def __init__(self, function: Callable[[], None]) -> None:
        self._function: Callable[[], None] | None = function
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            function, self._function = self._function, None
        if function is not None:
            function()
