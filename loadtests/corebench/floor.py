"""The floor under every call: a msgpack round trip between two Python processes over a Unix socket.

Nothing is left of a call here but the message: the caller encodes, sends, and blocks in `recv` until the echo
is there. No system in which caller and worker are two processes answers faster than this without spinning.
"""

import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import msgspec

from corebench.stopwatch import Stopwatch

LOADTESTS = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "corebench.floor"]
HEADER = struct.Struct("<I")


class Connection:
    """Length-prefixed msgpack over a blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder().decode

    def send(self, message: object) -> None:
        body = self._encode(message)
        self._socket.sendall(HEADER.pack(len(body)) + body)

    def receive(self) -> object:
        """Read one message; EOFError when the peer has closed."""
        data = self._socket.recv(65536)
        while len(data) < HEADER.size or len(data) < HEADER.size + HEADER.unpack_from(data)[0]:
            if not (more := self._socket.recv(65536)):
                raise EOFError
            data += more
        return self._decode(memoryview(data)[HEADER.size :])


def echo(descriptor: int) -> None:
    """Answer every request until the peer closes: the other process of the pair."""
    connection = Connection(socket.socket(fileno=descriptor))
    try:
        while True:
            call_id, _method, _argument = connection.receive()  # type: ignore[misc]
            connection.send((call_id, b"ok"))
    except EOFError:
        return


def round_trips(seconds: float) -> float:
    """Return round trips per second between this process and one started for it, each on a core of its own.

    Left to the kernel, the two share a core in some runs and not in others, and a figure that doubles by luck
    is no floor. Calls between two processes that both compute cross cores: that is the case we hold on to.
    """
    cores = sorted(os.sched_getaffinity(0))
    ours, theirs = socket.socketpair()
    os.sched_setaffinity(0, {cores[-1]})  # inherited by the process that echoes
    with ours, subprocess.Popen([*COMMAND, "echo", str(theirs.fileno())], pass_fds=[theirs.fileno()]):
        os.sched_setaffinity(0, {cores[0]})
        theirs.close()
        connection = Connection(ours)

        def round_trip() -> None:
            connection.send((1, "small_value", b""))
            connection.receive()

        rate = Stopwatch(seconds).rate(round_trip)
        ours.shutdown(socket.SHUT_RDWR)
    return rate


def measure(seconds: float = 0.6) -> float:
    """Return round trips per second, measured in processes of their own: ours keeps its cores."""
    answer = subprocess.run(
        [*COMMAND, "measure", str(seconds)], cwd=LOADTESTS, check=True, capture_output=True, text=True
    )
    return float(answer.stdout)


if __name__ == "__main__":
    if sys.argv[1] == "echo":
        echo(int(sys.argv[2]))
    else:
        print(round_trips(float(sys.argv[2])))
