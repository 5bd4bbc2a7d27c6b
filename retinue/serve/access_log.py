"""The access log: a line per answered request, written in batches.

A call of `logging` per request costs 15 us, a buffered line 2, none of it before the answer is on its way.

Lives here: the buffer and the lines' form. Does not: when it is flushed (`server`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import msgspec


class Access(NamedTuple):
    """One answered request. `status`: HTTP's, or the name of gRPC's. `seconds`: from when it began to be
    answered to its last byte out."""

    at: float  # wall clock
    client: str
    method: str
    path: str
    status: int | str
    seconds: float
    request_id: str
    route: str
    app_name: str
    protocol: str = "http"


class Out(Protocol):
    """What lines are written to: `logs.LogFile`, or any text file."""

    def write(self, text: str, /) -> int: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class AccessLog:
    """Keeps lines until `flush`. `limit` lines at most: what comes on top is counted and said."""

    def __init__(
        self,
        out: Out,
        *,
        is_json: bool = False,
        form: Callable[[Any], str] | None = None,
        limit: int = 100_000,
    ) -> None:
        self._out = out
        self._format: Callable[[Any], str] = form or (_as_json if is_json else _as_text)
        self._is_on = True
        self._lines: list[Any] = []
        self._limit = limit
        self._dropped = 0

    def use(self, out: Out, *, is_json: bool, is_on: bool = True) -> None:
        """Write there from now on, in that form; or nothing."""
        self.flush()
        self._out, self._format, self._is_on = out, _as_json if is_json else _as_text, is_on

    def add(self, access: Any) -> None:
        """An Access; with a `form` of its own, what that takes."""
        if not self._is_on:
            return
        if len(self._lines) < self._limit:
            self._lines.append(access)
        else:
            self._dropped += 1

    def flush(self) -> None:
        """Write what was kept. Raises OSError where the file cannot be written."""
        lines, self._lines = self._lines, []
        dropped, self._dropped = self._dropped, 0
        if lines:
            self._out.write("".join(map(self._format, lines)))
        if dropped:
            self._out.write(
                f"{dropped} requests were not logged: more than {self._limit} between two writes\n"
            )
        if lines or dropped:
            self._out.flush()

    def close(self) -> None:
        self.flush()
        self._out.close()


@functools.lru_cache(4)
def _second(at: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def stamp(at: float) -> str:
    """Wall clock as people read it, in milliseconds."""
    return f"{_second(int(at))},{int(at % 1 * 1000):03d}"


def _as_text(access: Access) -> str:
    return (
        f"INFO {stamp(access.at)} {access.protocol} {access.client} {access.request_id} -- "
        f"{access.method} {_printable(access.path)} {access.status} {access.seconds * 1000:.1f}ms\n"
    )


def _as_json(access: Access) -> str:
    line = {
        "levelname": "INFO",
        "asctime": stamp(access.at),
        "component_name": "proxy",
        "protocol": access.protocol,
        "client": access.client,
        "request_id": access.request_id,
        "method": access.method,
        "path": access.path,
        "route": access.route,
        "application": access.app_name,
        "status": access.status,
        "latency_ms": round(access.seconds * 1000, 3),
    }
    return msgspec.json.encode(line).decode() + "\n"


def _printable(path: str) -> str:
    """A path may hold any decoded byte: a line stays one line."""
    return path if path.isprintable() else path.encode("unicode_escape").decode()
