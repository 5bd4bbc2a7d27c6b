"""The wire of a bulk connection: fixed headers, nothing else. Spoken after the handshake, by `transfer`.

The puller sends FETCH, ASK and LEAVE and gets, in the same order: for a FETCH one DATA per chunk, for an ASK
one HAVE; or, instead of the first of those that the source cannot give, one GONE. After a GONE the source
answers every request for that object with GONE, until a LEAVE for it.

    FETCH  number = first chunk   count = chunks
    ASK    number = chunks seen   count = milliseconds to wait for news
    LEAVE
    DATA   number = chunk         count = bytes, which follow
    HAVE   number = 1: complete   count = chunks, whose numbers follow as 32 bits each
    GONE
"""

import array
import socket
import struct
import sys
from collections.abc import Sequence

from msgspec import Struct

FETCH, ASK, LEAVE, DATA, HAVE, GONE = range(1, 7)

ID_BYTES = 28
MAX_HAVE = 65_536
_HEADER = struct.Struct(f"!B3xI{ID_BYTES}sQ")


class BulkProtocolError(Exception):
    """The other side of a bulk connection sent what it must not; the connection is of no use any more."""


class Header(Struct, frozen=True):
    kind: int
    object_id: bytes
    number: int = 0
    count: int = 0


def send(sock: socket.socket, header: Header, payload: memoryview | bytes = b"") -> None:
    """Send a header and what follows it; blocks. Raises OSError when the connection is over."""
    head = _HEADER.pack(header.kind, header.count, header.object_id, header.number)
    if not payload:
        sock.sendall(head)
        return
    sent = sock.sendmsg([head, payload])  # one packet where it fits, no copy
    if sent < len(head):
        sock.sendall(head[sent:])
        sent = len(head)
    if sent < len(head) + len(payload):
        sock.sendall(memoryview(payload)[sent - len(head) :])


def receive(sock: socket.socket) -> Header:
    """Wait for a header. Raises EOFError at the end of the connection, BulkProtocolError for nonsense."""
    head = bytearray(_HEADER.size)
    receive_into(sock, memoryview(head))
    kind, count, object_id, number = _HEADER.unpack(head)
    if not FETCH <= kind <= GONE:
        raise BulkProtocolError(f"message of kind {kind}")
    return Header(kind, object_id, number, count)


def receive_into(sock: socket.socket, target: memoryview) -> None:
    """Fill `target`; blocks. Raises EOFError if the connection ends first."""
    position = 0
    while position < len(target):
        count = sock.recv_into(target[position:])
        if count == 0:
            raise EOFError("the bulk connection was closed")
        position += count


def pack_chunks(chunks: Sequence[int]) -> bytes:
    return _in_network_order(array.array("I", chunks)).tobytes()


def receive_chunks(sock: socket.socket, count: int) -> tuple[int, ...]:
    if count > MAX_HAVE:
        raise BulkProtocolError(f"{count} chunks in one message")
    data = bytearray(4 * count)
    receive_into(sock, memoryview(data))
    return tuple(_in_network_order(array.array("I", bytes(data))))


def _in_network_order(numbers: "array.array[int]") -> "array.array[int]":
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers
