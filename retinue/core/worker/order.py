"""The frames of one streaming call, in order, though some of them wait for other processes.

An item that carries references waits until their owners have counted the receiver. What comes after it,
the final reply included, must not overtake it: the receiver drops what is older than what it has.

Lives here: that queue. Does not: sending, or knowing why a frame is late.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class FrameOrder:
    """Calls `send` with each frame, in the order of `send` and `reserve`.

    That happens on the thread that fills the gap, or where `run(function)` runs what it gets. `send` and
    `reserve` are for one thread at a time.
    """

    __slots__ = ("_lock", "_run", "_send", "_slots")

    def __init__(
        self, send: Callable[[bytes], None], run: Callable[[Callable[[], None]], None] | None = None
    ) -> None:
        self._send = send
        self._run = run
        self._slots: deque[list[bytes]] = deque()  # one frame, or none while it is not made
        self._lock = threading.Lock()

    def send(self, frame: bytes) -> None:
        """The next frame."""
        if not self._slots:
            # Empty only after everything was sent, and nobody else appends: no lock (0.1 us an item).
            self._send(frame)
        else:
            self.reserve()(frame)

    def reserve(self) -> Callable[[bytes], None]:
        """Keep the next place; the frame follows by a call of what is returned, on any thread."""
        slot: list[bytes] = []
        with self._lock:
            self._slots.append(slot)

        def fill(frame: bytes) -> None:
            slot.append(frame)
            if self._run is None:
                self._send_ready()
            else:
                self._run(self._send_ready)

        return fill

    def _send_ready(self) -> None:
        with self._lock:
            while self._slots and self._slots[0]:
                self._send(self._slots[0][0])
                self._slots.popleft()
