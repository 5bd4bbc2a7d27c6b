"""Workers' output: read from their files, folded and limited, sent to the drivers of their job.

Lives here: following files, `LineFolder` (pure: what of a stream of lines is passed on), the end of a dead
worker's. Does not: where the files are made (`zygote`), reading them for people (`log_files`), or showing
lines (the driver).
"""

from __future__ import annotations

import os
from collections.abc import Callable

from msgspec import Struct

CHUNK_BYTES = 64 * 1024
MAX_LINE_BYTES = 16 * 1024
# Of a file that grows faster than it is read, what lies further back is skipped.
MAX_BEHIND_BYTES = 1024 * 1024
# A source may send this many lines in a burst, and this many a second after it.
BURST_LINES = 200
LINES_PER_S = 100.0
REPEAT_WINDOW_S = 1.0


class LineFolder:
    """Decides which lines of one source are passed on: repeated ones as a count, floods cut.

    >>> folder = LineFolder()
    >>> folder.lines(["a", "a", "a", "b"], now=0.0)
    ['a', 'a [repeated 2 times]', 'b']
    """

    def __init__(self) -> None:
        self._last: str | None = None
        self._repeats = 0
        self._tokens = float(BURST_LINES)
        self._at = 0.0
        self._dropped = 0
        self._quiet_since = 0.0

    def lines(self, lines: list[str], *, now: float) -> list[str]:
        """What to show of these lines."""
        self._refill(now)
        out: list[str] = []
        for line in lines:
            if line == self._last:
                self._repeats += 1
                continue
            self._end_repeats(out)
            self._last = line
            self._pass(line, out)
        self._quiet_since = now
        return out

    def tick(self, *, now: float) -> list[str]:
        """What to show although no new line has come: counts that would otherwise wait for one."""
        self._refill(now)
        out: list[str] = []
        if now - self._quiet_since >= REPEAT_WINDOW_S:
            self._end_repeats(out)
            if self._dropped and self._tokens >= 1:
                self._tell_dropped(out)
        return out

    def _refill(self, now: float) -> None:
        self._tokens = min(BURST_LINES, self._tokens + (now - self._at) * LINES_PER_S)
        self._at = now

    def _end_repeats(self, out: list[str]) -> None:
        if self._repeats:
            repeats, self._repeats = self._repeats, 0
            self._pass(f"{self._last} [repeated {repeats} times]", out)

    def _pass(self, line: str, out: list[str]) -> None:
        if self._tokens < 1:
            self._dropped += 1
            return
        if self._dropped:
            self._tell_dropped(out)
        self._tokens -= 1
        out.append(line)

    def _tell_dropped(self, out: list[str]) -> None:
        dropped, self._dropped = self._dropped, 0
        out.append(f"[{dropped} lines were not shown; they are in the worker's log file]")


class Followed(Struct):
    """One file that is read as it grows."""

    path: str
    is_stderr: bool
    folder: LineFolder
    position: int = 0
    rest: bytes = b""

    def read_lines(self, *, is_last: bool = False) -> list[str]:
        """The complete lines that were written since the last time; with `is_last`, also half a one."""
        skipped = self._skip_if_far_behind()
        data = self.rest + _read_from(self.path, self.position)
        self.position += len(data) - len(self.rest)
        *lines, self.rest = data.split(b"\n")
        if len(self.rest) > MAX_LINE_BYTES or (is_last and self.rest):
            lines.append(self.rest)
            self.rest = b""
        return skipped + [line.decode(errors="replace").rstrip("\r") for line in lines]

    def _skip_if_far_behind(self) -> list[str]:
        try:
            behind = os.stat(self.path).st_size - self.position
        except OSError:
            return []
        if behind <= MAX_BEHIND_BYTES:
            return []
        skipped = behind - CHUNK_BYTES
        self.position += skipped
        self.rest = b""
        return [f"[{skipped} bytes were not shown; they are in the worker's log file]"]


class LogFollower:
    """Follows the files of this node's workers. `send(job_id, source, is_stderr, text)` shows them."""

    def __init__(self, send: Callable[[bytes, str, bool, str], None]) -> None:
        self._send = send
        self._sources: dict[bytes, tuple[bytes, str, list[Followed]]] = {}

    def follow(self, worker_id: bytes, job_id: bytes, source: str, paths: tuple[str, str]) -> None:
        """Begin, or (for a worker that became an actor) go on under another name."""
        known = self._sources.get(worker_id)
        files = known[2] if known else [Followed(p, i == 1, LineFolder()) for i, p in enumerate(paths)]
        self._sources[worker_id] = (job_id, source, files)

    def poll(self, *, now: float) -> None:
        """Look at all files. Call about every 100 ms; a file that has not grown costs one `stat`."""
        for job_id, source, files in list(self._sources.values()):
            for file in files:
                self._show(job_id, source, file, now, is_last=False)

    def forget(self, worker_id: bytes, *, now: float) -> None:
        """The worker is dead: show its last lines."""
        found = self._sources.pop(worker_id, None)
        if found is not None:
            job_id, source, files = found
            for file in files:
                self._show(job_id, source, file, now, is_last=True)

    def finish_job(self, job_id: bytes, *, now: float) -> None:
        """Its driver is about to leave: show all that its workers have written until now."""
        for found, source, files in list(self._sources.values()):
            if found == job_id:
                for file in files:
                    self._show(job_id, source, file, now, is_last=True)

    def _show(self, job_id: bytes, source: str, file: Followed, now: float, *, is_last: bool) -> None:
        shown: list[str] = []
        for _ in range(MAX_BEHIND_BYTES // CHUNK_BYTES if is_last else 1):
            lines = file.read_lines()
            if not lines:
                break
            shown += file.folder.lines(lines, now=now)
        if is_last:
            shown += file.folder.lines(file.read_lines(is_last=True), now=now)
        shown += file.folder.tick(now=now + REPEAT_WINDOW_S if is_last else now)
        if shown:
            self._send(job_id, source, file.is_stderr, "\n".join(shown) + "\n")


def tail(path: str, max_bytes: int) -> str:
    """The last whole lines of a file, at most `max_bytes`; "" if there is none."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            data = file.read(max_bytes)
    except OSError:
        return ""
    if size > max_bytes:
        data = data.partition(b"\n")[2] or data
    return data.decode(errors="replace").strip()


def _read_from(path: str, position: int) -> bytes:
    try:
        if os.stat(path).st_size <= position:
            return b""
        with open(path, "rb") as file:
            file.seek(position)
            return file.read(CHUNK_BYTES)
    except OSError:
        return b""  # not made yet, or removed
