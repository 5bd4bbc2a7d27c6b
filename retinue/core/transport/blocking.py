"""A blocking client without thread or loop: for starters, tools and tests that ask one thing at a time."""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Any, Self

from retinue.core.transport import endpoints
from retinue.core.wire.failures import to_exception
from retinue.core.wire.framing import RECV_BYTES, FrameDecoder, encode
from retinue.core.wire.messages import Address, Failure, Hello, Message, Response

NO_NODE = b"\xff" * 16


class BlockingClient:
    """One connection. `timeout_s` bounds each wait; use it from one thread.

    Raises OSError or AuthenticationError if it cannot connect.
    """

    def __init__(
        self,
        address: Address,
        token: bytes,
        *,
        kind: str = "head",
        sender: Address | None = None,
        job_id: bytes = b"",
        timeout_s: float = 10.0,
    ) -> None:
        is_near = bool(address.path) and os.path.exists(address.path)
        self._timeout_s = timeout_s
        self._rid = 0
        self._inbox: deque[tuple[Any, bytes]] = deque()
        self._decoder = FrameDecoder()
        self._sock, rest = endpoints.connect(
            address, address.node_id if is_near else NO_NODE, token, timeout_s=timeout_s
        )
        self._decoder.feed(rest)
        self.send(Hello(kind, sender or Address(os.urandom(16), NO_NODE, ""), job_id))

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: Message, payload: bytes = b"") -> None:
        self._sock.settimeout(self._timeout_s)
        self._sock.sendall(encode(message, payload))

    def request(self, message: Any, payload: bytes = b"") -> tuple[Any, bytes]:
        """Ask and wait for the answer. Other messages that come meanwhile are kept for `receive`.

        Raises what a Failure names, TimeoutError or ConnectionError.
        """
        self._rid += 1
        message.rid = self._rid
        self.send(message, payload)
        others: deque[tuple[Any, bytes]] = deque()
        try:
            while True:
                answer, body = self.receive()
                if isinstance(answer, Response) and answer.rid == self._rid:  # type: ignore[attr-defined]
                    break
                others.append((answer, body))
        finally:
            self._inbox.extendleft(reversed(others))
        if isinstance(answer, Failure):
            raise to_exception(answer)
        return answer, body

    def has_message(self) -> bool:
        """Whether `receive` would answer without looking at the socket."""
        return bool(self._inbox)

    def receive(self, timeout_s: float | None = None) -> tuple[Any, bytes]:
        """The next message, whatever it is."""
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        while not self._inbox:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no message came in time")
            self._sock.settimeout(left)
            chunk = self._sock.recv(RECV_BYTES)
            if not chunk:
                raise ConnectionError("the other side closed the connection")
            self._decoder.feed(chunk)
            self._inbox.extend(self._decoder.frames())
        return self._inbox.popleft()

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
