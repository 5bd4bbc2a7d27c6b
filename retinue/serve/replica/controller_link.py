"""The replica's connection to the controller's door, over which it reports what it was not asked for.

The controller may be away, or be another incarnation: a report that cannot be delivered is dropped, as the
next one says all that it did. Lives here: finding the controller, sending. Does not: what is reported.
"""

from __future__ import annotations

import logging

from msgspec import Struct

from retinue.core import doors
from retinue.serve.messages import CONTROLLER_DOOR, CONTROLLER_KEY, NAMESPACE, ControllerInfo, decode, encode

logger = logging.getLogger("retinue.serve")

TIMEOUT_S = 5.0


class ControllerLink:
    def __init__(self) -> None:
        self._kv = doors.AsyncKeyValue(NAMESPACE)
        self._connection: doors.DoorConnection | None = None

    async def report(self, method: str, message: Struct) -> bool:
        """Whether the controller has it."""
        try:
            connection = await self._connect()
            if connection is None:
                return False
            await connection.call(CONTROLLER_DOOR, method, encode(message))
        except (doors.DoorError, OSError, TimeoutError) as error:
            logger.debug("the controller was not told %s: %r", method, error)
            self.close()
            return False
        return True

    async def _connect(self) -> doors.DoorConnection | None:
        if self._connection is None or self._connection.is_closed:
            info = await self._kv.get(CONTROLLER_KEY)
            if info is None:
                return None
            address = decode(ControllerInfo, info).address
            self._connection = await doors.connect(address, timeout_s=TIMEOUT_S)
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
