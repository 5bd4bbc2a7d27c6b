"""What libraries on top of the core may use beyond Ray's public names. `docs/doors.md` is the guide.

- Direct calls: `open` a door in one process and `connect` to it from another, to `call`, `stream`, `exchange`
  or `ask`.
- `KeyValue`, `AsyncKeyValue`: small durable values, with `watch`.
- `open_listener`, `release_listener`: listening sockets that outlive their process.
- `watch_nodes`: nodes that join, drain and leave.
- `doors.admin`: HTTP routes in the admin server.
- `cancellable`: a context variable for what a library runs, whose `is_cancelled` user code asks for by
  `get_runtime_context().is_canceled()`.
- `session_dir`: where a library keeps its logs.

Measured by `loadtests/doors.py`, Python 3.11, uvloop 0.22.1, both processes on one core of a busy machine, so
that rates say what CPU each call takes (at each end: 15 us one by one, 12 for a bare msgpack message):

    /s                              direct call     bare message
    one after the other             32,700          41,500
    1,000 in flight                 83,200          108,400
    streamed items, 32 x 200        1,440,000 in batches, 960,000 item by item, 300,000 if the
                                    generator suspends

On two cores 1 GiB went at 1,100 to 1,500 MB/s either way, with 33 MB of memory at each end.

Lives here: the names. Libraries import nothing else of `retinue.core`.
"""

from __future__ import annotations

from retinue.core.doors.calling import DoorConnection, DoorStream, Then
from retinue.core.doors.errors import (
    DoorBodyTooLargeError,
    DoorCancelledError,
    DoorClosedError,
    DoorError,
    DoorRefusedError,
    DoorTimeoutError,
)
from retinue.core.doors.kv import AsyncKeyValue, KeyValue, KvEvent
from retinue.core.doors.listeners import ListenerError, open_listener, release_listener
from retinue.core.doors.nodes import DRAINING, JOINED, LEFT, Node, NodeEvent, watch_nodes
from retinue.core.doors.process import connect, own_address, session_dir
from retinue.core.doors.process import open_door as open  # noqa: A004 - `doors.open`
from retinue.core.doors.serving import Door, DoorContext, DoorHandler
from retinue.core.doors.watching import Watch
from retinue.core.wire.messages import Address
from retinue.core.worker.context import cancellable

__all__ = [
    "DRAINING",
    "JOINED",
    "LEFT",
    "Address",
    "AsyncKeyValue",
    "Door",
    "DoorBodyTooLargeError",
    "DoorCancelledError",
    "DoorClosedError",
    "DoorConnection",
    "DoorContext",
    "DoorError",
    "DoorHandler",
    "DoorRefusedError",
    "DoorStream",
    "DoorTimeoutError",
    "KeyValue",
    "KvEvent",
    "ListenerError",
    "Node",
    "NodeEvent",
    "Then",
    "Watch",
    "cancellable",
    "connect",
    "open",
    "open_listener",
    "own_address",
    "release_listener",
    "session_dir",
    "watch_nodes",
]
