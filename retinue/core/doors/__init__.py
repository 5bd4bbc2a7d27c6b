"""What libraries on top of the core may use beyond Ray's public names: `docs/doors.md` is its guide.

- Direct calls: `open` a door in one process, `connect` to it from another, `call` or `stream`.

Lives here: the names. Nothing outside of `retinue.core` imports anything else of it.
"""

from __future__ import annotations

from retinue.core.doors.calling import DoorConnection, DoorStream
from retinue.core.doors.errors import (
    DoorBodyTooLargeError,
    DoorCancelledError,
    DoorClosedError,
    DoorError,
    DoorRefusedError,
    DoorTimeoutError,
)
from retinue.core.doors.process import connect, own_address
from retinue.core.doors.process import open_door as open  # noqa: A004 - `doors.open`
from retinue.core.doors.serving import Door, DoorContext, DoorHandler
from retinue.core.wire.messages import Address

__all__ = [
    "Address",
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
    "connect",
    "open",
    "own_address",
]
