"""Constant load on a served application, and what became of each request.

A closed loop: each connection sends its next request when the answer to the last one has come. No request is
sent again by the client, so whatever fails is counted.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Self

TIMEOUT_S = 30.0


@dataclass
class Outcome:
    """One request. `status` 0: no answer came, `problem` says why. Times are of the monotonic clock."""

    began: float
    ended: float
    status: int
    problem: str = ""
    answer: Any = None


@dataclass
class Load:
    """Use as a context, which begins when some requests are over, unless the application `is_slow`.

    `reconnects`: a connection that breaks is made again (its request has failed).
    """

    port: int
    path: str = "/"
    connections: int = 6
    method: str = "GET"
    reconnects: bool = True
    is_slow: bool = False
    outcomes: list[Outcome] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # connections that could not be made

    def __enter__(self) -> Self:
        self._news = threading.Condition()
        self._is_over = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        if not self.is_slow:
            self.more(self.connections)
        return self

    def stop(self) -> None:
        """Begin no more requests."""
        self._is_over = True

    def __exit__(self, *exc: object) -> None:
        self.stop()
        self._thread.join()

    # --- the other thread

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self.connections):
                group.create_task(self._connection())

    async def _connection(self) -> None:
        while not self._is_over:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError as error:
                self.refused.append(str(error))
                return
            try:
                await self._ask(reader, writer)
            finally:
                writer.close()
            if not self.reconnects:
                return

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = f"{self.method} {self.path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode()
        while not self._is_over:
            began = time.monotonic()
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    writer.write(request)
                    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
                    length = next(int(h[16:]) for h in head if h.startswith("content-length: "))
                    body = await reader.readexactly(length)
            except (OSError, EOFError, TimeoutError) as error:
                self._add(Outcome(began, time.monotonic(), 0, repr(error)))
                return
            status = int(head[0].split()[1])
            answer = json.loads(body) if status == 200 else body.decode()
            self._add(Outcome(began, time.monotonic(), status, "" if status == 200 else answer, answer))
            if "connection: close" in head:
                return

    def _add(self, outcome: Outcome) -> None:
        with self._news:
            self.outcomes.append(outcome)
            self._news.notify_all()

    # --- what tests ask

    @property
    def failed(self) -> list[Outcome]:
        return [o for o in self.outcomes if o.status != 200]

    def more(self, count: int, timeout_s: float = TIMEOUT_S) -> None:
        """Until so many more requests are over."""
        wanted = len(self.outcomes) + count
        with self._news:
            assert self._news.wait_for(lambda: len(self.outcomes) >= wanted, timeout_s), (
                "the load stands still"
            )

    def versions(self) -> collections.Counter[Any]:
        return collections.Counter(o.answer["version"] for o in self.outcomes if o.status == 200)

    def rate(self, since: float, until: float) -> float:
        """Good answers per second."""
        return sum(since < o.ended <= until and o.status == 200 for o in self.outcomes) / (until - since)

    def longest_gap(self) -> float:
        """Between two good answers that follow each other."""
        ends = sorted(o.ended for o in self.outcomes if o.status == 200)
        return max(b - a for a, b in itertools.pairwise(ends))

    def explain(self) -> str:
        found = collections.Counter((o.status, o.problem[:200]) for o in self.failed)
        return (
            f"{len(self.failed)} of {len(self.outcomes)} failed: {dict(found)}; refused: {self.refused[:3]}"
        )

    def check(self) -> None:
        """Not one request has failed."""
        assert not self.failed, self.explain()
        assert not self.refused, self.explain()
