"""Measure direct calls (`retinue.core.doors`) between two processes, and the bare round trip under them.

    python loadtests/doors.py                     all rows
    python loadtests/doors.py --seconds 0.3 --rounds 3

"bare" sends msgpack headers of a call behind a length over the same kind of socket and loop, a task per
message, and nothing else: no errors, deadlines, windows or cancels. Rows of one round are taken in turn, so
that both see the same machine; the table gives medians. Quote ranges: where the kernel puts the two processes
changes single calls by a third.
"""

import argparse
import asyncio
import itertools
import os
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import msgspec
import uvloop

from retinue.core.doors.calling import DoorConnection
from retinue.core.doors.process import connect_as
from retinue.core.doors.serving import DoorContext, DoorHost
from retinue.core.transport.endpoints import listen_unix
from retinue.core.wire.framing import FrameDecoder
from retinue.core.wire.messages import Address

IN_FLIGHT = 1000
STREAMS = 32
CHUNKS = 200
CHUNK = b"x" * 15
LONG_BYTES = 1 << 30
PIECE = b"y" * (256 * 1024)


# --- the process that answers ------------------------------------------------------------------------------


class Echo:
    load = 0

    async def call(self, method: str, body: bytes, context: DoorContext) -> bytes:
        if method == "suspend":
            await asyncio.sleep(0)
        elif method == "memory":
            return str(peak_mb()).encode()
        elif method == "cpu":
            return str(time.process_time()).encode()
        return body

    async def stream(self, method: str, body: bytes, context: DoorContext) -> AsyncIterator[bytes]:
        if method == "long":
            for _ in range(LONG_BYTES // len(PIECE)):
                yield PIECE
            return
        for _ in range(CHUNKS):
            yield CHUNK
            if method == "suspend":
                await asyncio.sleep(0)

    async def exchange(
        self, method: str, items: AsyncIterator[bytes], context: DoorContext
    ) -> AsyncIterator[bytes]:
        size = 0
        async for item in items:
            size += len(item)
        yield str(size).encode()


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


class Bare(asyncio.Protocol):
    """Frames of a length and a msgpack array, a task for each."""

    def __init__(self, on_message: Callable[["Bare", list[object]], None]) -> None:
        self._on_message = on_message
        self._data = b""
        self.encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(list[object]).decode

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        data = self._data + data
        position = 0
        while len(data) - position >= 4:
            (size,) = struct.unpack_from("<I", data, position)
            if len(data) - position - 4 < size:
                break
            self._on_message(self, self._decode(data[position + 4 : position + 4 + size]))
            position += 4 + size
        self._data = data[position:]

    def send(self, message: list[object]) -> None:
        data = self.encode(message)
        self.transport.write(struct.pack("<I", len(data)) + data)


async def serve(folder: str) -> None:
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def answer(protocol: Bare, message: list[object]) -> None:
        protocol.send([message[0], b""])

    def called(protocol: Bare, message: list[object]) -> None:
        task = loop.create_task(answer(protocol, message))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    await loop.create_unix_server(lambda: Bare(called), sock=listen_unix(f"{folder}/bare"))
    host = DoorHost()
    host.open("echo", Echo())
    listener = listen_unix(f"{folder}/doors")
    print("ready", flush=True)
    while True:
        sock, _ = await loop.sock_accept(listener)
        decoder = FrameDecoder()
        decoder.feed(await loop.sock_recv(sock, 4096))
        ((hello, _),) = decoder.frames()
        await host.adopt(sock, hello)  # type: ignore[arg-type]


# --- the process that calls --------------------------------------------------------------------------------


class BareClient:
    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[object]] = {}
        self._ids = itertools.count(1)
        self.loop = asyncio.get_running_loop()

    async def connect(self, path: str) -> None:
        def answered(protocol: Bare, message: list[object]) -> None:
            self._waiting.pop(message[0]).set_result(message[1])  # type: ignore[arg-type]

        _, self._protocol = await self.loop.create_unix_connection(lambda: Bare(answered), path)

    async def call(self) -> object:
        call_id = next(self._ids)
        future: asyncio.Future[object] = self.loop.create_future()
        self._waiting[call_id] = future
        self._protocol.send([call_id, "echo", "call", 0.0, "", "", b""])
        return await future


async def one_by_one(call: Callable[[], Awaitable[object]], seconds: float) -> float:
    count = 0
    begin = time.perf_counter()
    while (passed := time.perf_counter() - begin) < seconds:
        await call()
        count += 1
    return count / passed


async def in_flight(call: Callable[[], Awaitable[object]], seconds: float) -> float:
    count = 0
    begin = time.perf_counter()
    while (passed := time.perf_counter() - begin) < seconds:
        await asyncio.gather(*[call() for _ in range(IN_FLIGHT)])
        count += IN_FLIGHT
    return count / passed


async def streamed(connection: DoorConnection, method: str, seconds: float) -> float:
    """Items per second of `STREAMS` streams at once, read as batches."""

    async def one() -> int:
        count = 0
        stream = connection.stream("echo", method)
        while items := await stream.read():
            count += len(items)
        return count

    count = 0
    begin = time.perf_counter()
    while (passed := time.perf_counter() - begin) < seconds:
        count += sum(await asyncio.gather(*[one() for _ in range(STREAMS)]))
    return count / passed


async def iterated(connection: DoorConnection, seconds: float) -> float:
    """The same, item by item."""

    async def one() -> int:
        count = 0
        async for _ in connection.stream("echo", "items"):
            count += 1
        return count

    count = 0
    begin = time.perf_counter()
    while (passed := time.perf_counter() - begin) < seconds:
        count += sum(await asyncio.gather(*[one() for _ in range(STREAMS)]))
    return count / passed


async def long_down(connection: DoorConnection) -> float:
    begin = time.perf_counter()
    size = 0
    async for item in connection.stream("echo", "long"):
        size += len(item)
    assert size == LONG_BYTES
    return size / (time.perf_counter() - begin) / 1e6


async def long_up(connection: DoorConnection) -> float:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(LONG_BYTES // len(PIECE)):
            yield PIECE

    begin = time.perf_counter()
    async for answer in connection.exchange("echo", "long", pieces()):
        assert int(answer) == LONG_BYTES
    return LONG_BYTES / (time.perf_counter() - begin) / 1e6


@dataclass
class Result:
    """`rate` a second, and what each one cost both processes: steadier than rates where others work too."""

    rate: float
    caller_us: float
    handler_us: float


async def measured(row: Callable[[], Awaitable[float]], doors: DoorConnection) -> Result:
    theirs = float(await doors.call("echo", "cpu"))
    begin, own = time.perf_counter(), time.process_time()
    rate = await row()
    own, passed = time.process_time() - own, time.perf_counter() - begin
    theirs = float(await doors.call("echo", "cpu")) - theirs
    count = rate * passed
    return Result(rate, own / count * 1e6, theirs / count * 1e6)


async def measure(folder: str, options: argparse.Namespace) -> None:
    bare = BareClient()
    await bare.connect(f"{folder}/bare")
    own, theirs = (Address(os.urandom(16), b"n" * 16, f"{folder}/doors") for _ in range(2))
    doors = await connect_as(own, theirs, b"")

    def call(method: str = "call", **more: float) -> Callable[[], Awaitable[object]]:
        return lambda: doors.call("echo", method, b"", **more)  # type: ignore[arg-type]

    def later() -> Awaitable[object]:
        return doors.call("echo", "call", b"", deadline=time.monotonic() + 60)

    s = options.seconds
    rows: dict[str, Callable[[], Awaitable[float]]] = {
        "bare: one by one, /s": lambda: one_by_one(bare.call, s),
        "call: one by one, /s": lambda: one_by_one(call(), s),
        "call: with a deadline, /s": lambda: one_by_one(later, s),
        "call: handler suspends, /s": lambda: one_by_one(call("suspend"), s),
        "bare: 1,000 in flight, /s": lambda: in_flight(bare.call, s),
        "call: 1,000 in flight, /s": lambda: in_flight(call(), s),
        "call: 1,000 with deadlines, /s": lambda: in_flight(later, s),
        "stream: 32 x 200, read(), items/s": lambda: streamed(doors, "items", s),
        "stream: the same, item by item": lambda: iterated(doors, s),
        "stream: the same, generator suspends": lambda: streamed(doors, "suspend", s),
        "1 GiB down, MB/s": lambda: long_down(doors),
        "1 GiB up, MB/s": lambda: long_up(doors),
    }
    results: dict[str, list[Result]] = {name: [] for name in rows if options.rows in name}
    for _ in range(options.rounds):
        for name in results:
            results[name].append(await measured(rows[name], doors))
    print(f"{'':40} {'median':>12} {'CPU, us each: caller':>22} {'handler':>8}   range")
    for name, found in results.items():
        rates = [result.rate for result in found]
        caller = statistics.median(result.caller_us for result in found)
        handler = statistics.median(result.handler_us for result in found)
        spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
        print(f"{name:40} {statistics.median(rates):>12,.0f} {caller:>22.1f} {handler:>8.1f}   {spread}")
    theirs_mb = int(await doors.call("echo", "memory"))
    print(f"peak memory: caller {peak_mb()} MB, handler {theirs_mb} MB; uvloop {uvloop.__version__}")
    doors.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="of each row in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve(options.serve))
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--serve", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
            try:
                assert server.stdout is not None
                server.stdout.readline()
                uvloop.run(measure(folder, options))
            finally:
                server.kill()


if __name__ == "__main__":
    main()
