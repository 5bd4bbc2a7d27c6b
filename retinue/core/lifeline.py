"""The child's end of the bond between a process and the one that started it.

The parent holds the writing end of a pipe: end of file means that it is gone. A user's process that forks
(multiprocessing) leaves a copy of that end in its child, so the parent's own pidfd is watched as well.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable


class Lifeline:
    """Calls `on_end` once, on the loop, when the parent is gone."""

    def __init__(self, fd: int, on_end: Callable[[], None]) -> None:
        self._fd = fd
        self._on_end = on_end
        self._pidfd = -1
        self._loop: asyncio.AbstractEventLoop | None = None

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        os.set_blocking(self._fd, False)
        loop.add_reader(self._fd, self._readable)
        try:
            self._pidfd = os.pidfd_open(os.getppid())
        except OSError:
            return  # gone already (the pipe tells), or a kernel that has no pidfds
        loop.add_reader(self._pidfd, self._ended)

    def _readable(self) -> None:
        try:
            if not os.read(self._fd, 4096):
                self._ended()
        except BlockingIOError:
            pass

    def _ended(self) -> None:
        self.close()
        self._on_end()

    def close(self) -> None:
        if self._loop is None:
            return
        loop, self._loop = self._loop, None
        for fd in (self._fd, self._pidfd):
            if fd >= 0:
                loop.remove_reader(fd)
                os.close(fd)
