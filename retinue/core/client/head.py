"""The process's connection to the head: opened on first use, opened again when the head comes back.

Requests that the head's death left unanswered are sent again to its successor (all of them may be
repeated: they name what they make). Calls that need the head wait for it; nothing else notices.
"""

from __future__ import annotations

import logging
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from retinue.core.client.peers import open_connection
from retinue.core.transport.answers import Answer, OnResponse
from retinue.core.transport.threads import Connection
from retinue.core.wire.messages import Address, Failure

if TYPE_CHECKING:
    from retinue.core.client.runtime import Runtime

logger = logging.getLogger(__name__)

RETRY_S = 0.05
GIVE_UP_S = 60.0

Request = tuple[Any, bytes, OnResponse]


class HeadClient:
    """Requests to the head, in order. `on_connected` runs before any of them on each new connection."""

    def __init__(self, runtime: Runtime, address: Address) -> None:
        self._runtime = runtime
        self._io = runtime.io
        self.address = address
        self.handlers: dict[type, Callable[[Connection, Any, bytes], None]] = {}
        self.on_connected: list[Callable[[Connection], None]] = []
        self.connection: Connection | None = None
        self._lock = threading.Lock()
        self._queue: deque[Request] = deque()
        self._is_opening = False
        self._is_closed = False
        self._lost_at = 0.0

    def request(self, message: Any, on_response: OnResponse, payload: bytes = b"") -> None:
        """Ask the head; `on_response` runs on the I/O thread, whichever head it is that answers."""
        with self._lock:
            connection = self.connection
            if connection is None or connection.is_closed:
                self._queue.append((message, payload, on_response))
                must_open = not self._is_opening and not self._is_closed
                self._is_opening = self._is_opening or must_open
            else:
                must_open = False
        if connection is not None and not connection.is_closed:
            self._send(connection, message, payload, on_response)
        elif must_open:
            self._io.post(self._open)

    def _send(self, connection: Connection, message: Any, payload: bytes, on_response: OnResponse) -> None:
        def answered(response: Any, body: bytes) -> None:
            if type(response) is Failure and response.kind == "ConnectionError" and not self._is_closed:
                self.request(message, on_response, payload)
            else:
                on_response(response, body)

        connection.request(message, answered, payload)

    def call(self, message: Any, payload: bytes = b"", *, timeout_s: float = GIVE_UP_S) -> tuple[Any, bytes]:
        """Ask the head and wait for (response, payload); raises what a Failure names, or TimeoutError."""
        assert threading.current_thread() is not self._io.thread
        answer = Answer()
        self.request(message, answer, payload)
        return answer.wait(
            f"the head did not answer {type(message).__name__} within {timeout_s} s", timeout_s
        )

    def send(self, message: Any, payload: bytes = b"") -> None:
        """One-way; kept until there is a connection."""
        with self._lock:
            connection = self.connection
            is_open = connection is not None and not connection.is_closed
            if not is_open:
                self._queue.append((message, payload, _no_answer))
        if is_open and connection is not None:
            connection.send(message, payload)
        else:
            self._io.post(self._ensure_open)

    def _ensure_open(self) -> None:
        with self._lock:
            if (
                self._is_opening
                or self._is_closed
                or (self.connection is not None and not self.connection.is_closed)
            ):
                return
            self._is_opening = True
        self._open()

    def _open(self) -> None:
        open_connection(self._runtime, self.address, "head", self._on_message, self._lost, self._opened)

    def _opened(self, connection: Connection | None) -> None:
        if connection is None:
            if not self._is_closed:
                self._io.call_later(RETRY_S, self._open)
            return
        self._io.watch(connection, add=select.EPOLLIN)
        for function in self.on_connected:
            self._io.guard(lambda function=function: function(connection))  # type: ignore[misc]
        with self._lock:
            self.connection = connection
            self._is_opening = False
            queue, self._queue = self._queue, deque()
        for message, payload, on_response in queue:
            if on_response is _no_answer:
                connection.send(message, payload)
            else:
                self._send(connection, message, payload, on_response)

    def _on_message(self, connection: Connection, message: Any, payload: bytes) -> None:
        handler = self.handlers.get(type(message))
        if handler is None:
            raise ConnectionError(f"no handler for {type(message).__name__} from the head")
        handler(connection, message, payload)

    def _lost(self, connection: Connection) -> None:
        if self._is_closed:
            return
        self._lost_at = time.monotonic()
        logger.info("lost the head; connecting again")
        self._io.call_later(RETRY_S, self._ensure_open)

    def close(self) -> None:
        self._is_closed = True
        if self.connection is not None:
            self.connection.lost()


def _no_answer(response: Any, body: bytes) -> None:
    """For one-way messages in the queue."""
