"""The floor under every call: a msgpack round trip between two Python processes over a Unix socket.

Nothing is left of a call here but the message: the caller encodes, sends, and blocks in `recv` until the echo
is there. No system in which caller and worker are two processes answers faster than this without spinning.
"""

import socket
import struct
import subprocess
import sys
from pathlib import Path

import msgspec

from corebench.stopwatch import Stopwatch

LOADTESTS = Path(__file__).resolve().parents[1]
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


def measure(seconds: float = 0.6) -> float:
    """Return round trips per second between this process and one started for it."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "corebench.floor", str(theirs.fileno())]
    with ours, subprocess.Popen(command, cwd=LOADTESTS, pass_fds=[theirs.fileno()]):
        theirs.close()
        connection = Connection(ours)

        def round_trip() -> None:
            connection.send((1, "small_value", b""))
            connection.receive()

        rate = Stopwatch(seconds).rate(round_trip)
        ours.shutdown(socket.SHUT_RDWR)
    return rate


if __name__ == "__main__":
    echo(int(sys.argv[1]))
