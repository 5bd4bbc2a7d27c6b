"""Load by our own client: streams, a fixed number of clients, a fixed rate, clients that leave.

All functions run their own uvloop loop and return when every request has an answer or was given up.
Lives here: when requests are sent and what came of them. Does not: figures.
"""

import asyncio
import gc
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import uvloop

from servebench.http import Address, Answer, Client, Connection, connect
from servebench.stats import OK, Tally, is_event_stream_right

Check = Callable[[Answer], bool]
T = TypeVar("T")

TICK_S = 0.001
LATE_S = 10.0  # how long answers are waited for when the load has ended
_TIMED = re.compile(rb"tok\d+ (\d+)")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Without garbage collections: they would stall the client, and look like a slow server."""
    gc.collect()
    gc.disable()
    try:
        return uvloop.run(coroutine)
    finally:
        gc.enable()


def judge(answer: Answer | None, check: Check) -> str:
    if answer is None:
        return "broken"
    if not answer.is_ok:
        return str(answer.status)
    return OK if check(answer) else "wrong"


def one_by_one(
    address: Address, data: bytes, check: Check, seconds: float, *, to_first: bool = False
) -> Tally:
    """One blocking connection, the next request when the last is answered. `to_first`: times to the first
    bytes of the body."""
    tally = Tally()
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        with Client(address) as client:
            while client.is_open and (started := time.perf_counter()) < ends:
                try:
                    answer = client.ask(data)
                except ConnectionError:
                    tally.add(started, time.perf_counter() - started, "broken")
                    break
                took = (answer.first_at if to_first else time.perf_counter()) - started
                tally.add(started, took, judge(answer, check))
    return tally


async def closed_loop(
    address: Address,
    make: Callable[[int], bytes],
    check: Check,
    *,
    clients: int,
    seconds: float,
    stop: asyncio.Event | None = None,
) -> Tally:
    """`clients` connections, each sends its next request when the last is answered; `make(n)` is the n-th.

    A connection that breaks is made anew.
    """
    tally = Tally()
    ends = time.perf_counter() + seconds
    number = 0
    finished = asyncio.Event()
    active = clients
    beginning: set[asyncio.Task[None]] = set()

    def go_on(connection: Connection) -> None:
        nonlocal number, active
        if time.perf_counter() >= ends or (stop is not None and stop.is_set()):
            connection.close()
            active -= 1
            if active == 0:
                finished.set()
        elif not connection.is_open:
            connection.close()
            task = asyncio.ensure_future(begin())
            beginning.add(task)
            task.add_done_callback(beginning.discard)
        else:
            connection.send(make(number))
            number += 1

    def on_end(connection: Connection, answer: Answer | None) -> None:
        tally.add(connection.sent_at, time.perf_counter() - connection.sent_at, judge(answer, check))
        go_on(connection)

    async def begin() -> None:
        nonlocal active
        while True:
            try:
                connection = await connect(address, on_end)
            except OSError:
                tally.add(time.perf_counter(), 0.0, "refused")
                if time.perf_counter() >= ends:
                    active -= 1
                    if active == 0:
                        finished.set()
                    return
                await asyncio.sleep(0.01)
            else:
                go_on(connection)
                return

    await asyncio.gather(*(begin() for _ in range(clients)))
    await asyncio.wait_for(finished.wait(), seconds + 60)
    return tally


class OpenLoop:
    """A fixed rate, whatever the answers: requests due at each tick go out on idle or new connections.

    Times count from when a request was due. `fresh`: a connection for each request.
    """

    def __init__(
        self,
        address: Address,
        make: Callable[[int], bytes],
        check: Check,
        rate: float,
        *,
        fresh: bool = False,
    ) -> None:
        self._address = address
        self._make = make
        self._check = check
        self._rate = rate
        self._fresh = fresh
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._is_stopped = False
        self.tally = Tally()
        self.on_answer: Callable[[Answer], None] | None = None

    async def run(self, seconds: float) -> Tally:
        started = time.perf_counter()
        sent = 0
        total = int(seconds * self._rate)
        while sent < total and not self._is_stopped:
            owed = min(total, int((time.perf_counter() - started) * self._rate) + 1)
            while sent < owed:
                self._send(sent, started + sent / self._rate)
                sent += 1
            await asyncio.sleep(TICK_S)
        await self._end()
        return self.tally

    def stop(self) -> None:
        self._is_stopped = True

    def _send(self, number: int, due: float) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                connection.tag = due
                connection.send(self._make(number))
                return
        task = asyncio.ensure_future(self._connect(number, due))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, number: int, due: float) -> None:
        try:
            connection = await connect(self._address, self._on_end)
        except OSError:
            self.tally.add(due, time.perf_counter() - due, "refused")
            return
        self._open.add(connection)
        connection.tag = due
        connection.send(self._make(number))

    def _on_end(self, connection: Connection, answer: Answer | None) -> None:
        due = connection.tag
        self.tally.add(due, time.perf_counter() - due, judge(answer, self._check))
        if answer is not None and self.on_answer is not None:
            self.on_answer(answer)
        if connection.is_open and not self._fresh:
            self._idle.append(connection)
        else:
            connection.close()
            self._open.discard(connection)

    async def _end(self) -> None:
        ends = time.perf_counter() + LATE_S
        while (self._connecting or any(c.is_busy for c in self._open)) and time.perf_counter() < ends:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for connection in list(self._open):
            if connection.is_busy:
                connection.is_busy = False
                self.tally.add(connection.tag, time.perf_counter() - connection.tag, "late")
            connection.close()
        await asyncio.sleep(0)


async def open_loop(address: Address, data: bytes, check: Check, *, rate: float, seconds: float) -> Tally:
    return await OpenLoop(address, lambda _: data, check, rate).run(seconds)


@dataclass
class Streams:
    """What came of streams: events and seconds in all, times to the first piece, delays of events."""

    events: int = 0
    seconds: float = 0.0
    first_s: list[float] = field(default_factory=list)
    delays_s: list[float] = field(default_factory=list)
    wrong: Counter[str] = field(default_factory=Counter)  # those that were not, by what they were


async def streams(address: Address, data: bytes, *, clients: int, chunks: int, seconds: float) -> Streams:
    """`clients` at a time, again and again until `seconds` have passed; only streams that are right count."""
    result = Streams()
    started = time.perf_counter()
    ends = started + seconds

    async def client() -> None:
        while time.perf_counter() < ends:
            done: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
            connection = await connect(address, lambda _, a, d=done: d.set_result(a), timed=True)
            while time.perf_counter() < ends:
                began = time.monotonic_ns()
                connection.send(data)
                answer = await done
                outcome = judge(answer, lambda a: is_event_stream_right(a.body, chunks))
                if answer is None or outcome != OK:
                    result.wrong[outcome] += 1
                else:
                    result.events += chunks
                    result.first_s.append((answer.pieces[0][0] - began) / 1e9)
                    for arrived, piece in answer.pieces:
                        made = _TIMED.findall(piece)
                        result.delays_s.extend((arrived - int(m)) / 1e9 for m in made)
                if not connection.is_open:
                    break
                done = asyncio.get_running_loop().create_future()
                connection._on_end = lambda _, a, d=done: d.set_result(a)
            connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    result.seconds = time.perf_counter() - started
    return result


async def leave(address: Address, data: bytes, *, clients: int, after_s: float) -> None:
    """Send `clients` requests at once and close every connection in mid-request."""

    def ignore(*_: Any) -> None:
        return

    connections = await asyncio.gather(*(connect(address, ignore) for _ in range(clients)))
    for connection in connections:
        connection.send(data)
    await asyncio.sleep(after_s)
    for connection in connections:
        connection.close()
    await asyncio.sleep(0)
