"""What a watch gives its reader: events as they come, the latest of each key, to threads and to loops alike.

Events wait for a slow reader, but never two of one key: the later one replaces the earlier. So a watch holds
as much as there are keys, and who falls behind misses steps, never the state.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, Self, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
Wake = Callable[[], None]


class Mailbox(Generic[T]):
    """Events on their way from one thread to another. One reader."""

    def __init__(self) -> None:
        self.is_closed = False
        self._lock = threading.Lock()
        self._events: dict[Hashable, T] = {}
        self._wake: Wake | None = None

    def put(self, key: Hashable, event: T) -> None:
        with self._lock:
            self._events.pop(key, None)
            self._events[key] = event
            wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    def take(self, wake: Wake | None = None) -> T | None:
        """The oldest event; None if there is none: then `wake` is called once there is, or at the end."""
        with self._lock:
            for key in self._events:
                return self._events.pop(key)
            if self.is_closed and wake is not None:
                wake()
            else:
                self._wake = wake
        return None

    def close(self) -> None:
        with self._lock:
            self.is_closed = True
            self._events.clear()
            wake, self._wake = self._wake, None
        if wake is not None:
            wake()


class Watch(Generic[T]):
    """Events, to iterate over with `for` or `async for`, by one reader; endless until it is closed.

    Dropping it closes it.
    """

    def __init__(self, mailbox: Mailbox[T], leave: Callable[[], None]) -> None:
        self._mailbox = mailbox
        self._leave = leave
        self._thread: threading.Thread | None = None

    # --- threads

    def next(self, timeout_s: float | None = None) -> T:
        """The next event. Raises TimeoutError, or StopIteration once it is closed."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        event = _take(self._mailbox, deadline)
        if event is None:
            raise StopIteration
        return event

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        return self.next()

    def each(self, callback: Callable[[T], None]) -> None:
        """Call `callback` with every event, on a thread of its own that ends with the watch."""
        # The thread holds the mailbox, not the watch: that can be dropped.
        self._thread = threading.Thread(
            target=_call_for_each, args=(self._mailbox, callback), name="retinue-watch", daemon=True
        )
        self._thread.start()

    # --- loops

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        loop = asyncio.get_running_loop()
        while True:
            woken: asyncio.Future[None] = loop.create_future()
            event = self._mailbox.take(lambda: _wake_loop(loop, woken))  # noqa: B023 - called for this turn
            if event is not None:
                return event
            if self._mailbox.is_closed:
                raise StopAsyncIteration
            await woken

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    # --- the end

    def close(self) -> None:
        """No more events; whoever waits for one stops."""
        if not self._mailbox.is_closed:
            self._leave()
            self._mailbox.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._leave()  # only posts: a finalizer may run inside any lock


def _take(mailbox: Mailbox[T], deadline: float | None) -> T | None:
    """The next event; None at the end. Raises TimeoutError."""
    while True:
        waiting = threading.Lock()
        waiting.acquire()
        event = mailbox.take(lambda: _release(waiting))  # noqa: B023 - called for this turn
        if event is not None or mailbox.is_closed:
            return event
        if not waiting.acquire(timeout=-1 if deadline is None else max(0.0, deadline - time.monotonic())):
            raise TimeoutError("no event came in time")


def _release(lock: threading.Lock) -> None:
    if lock.locked():
        lock.release()


def _call_for_each(mailbox: Mailbox[T], callback: Callable[[T], None]) -> None:
    while (event := _take(mailbox, None)) is not None:
        try:
            callback(event)
        except Exception:  # user code
            logger.exception("a watch's callback failed")


def _wake_loop(loop: asyncio.AbstractEventLoop, woken: asyncio.Future[None]) -> None:
    try:
        loop.call_soon_threadsafe(_set, woken)
    except RuntimeError:
        pass  # the loop has ended, and whoever waited on it


def _set(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
