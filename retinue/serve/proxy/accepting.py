"""Accepts no more connections than a proxy may have; further ones wait in the listener's queue.

Lives here: that, for proxies with `max_connections`. Does not: accepting without a limit, which the loop's
own server does quicker.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

RETRY_S = 0.1  # after a failure to accept, such as too many open files
HANDSHAKE_TIMEOUT_S = 60.0


class Connections(set[Any]):
    """uvicorn's set of protocols, which tells when one leaves it."""

    def __init__(self, on_left: Callable[[], None]) -> None:
        super().__init__()
        self._on_left = on_left

    def discard(self, connection: Any) -> None:
        super().discard(connection)
        self._on_left()

    def remove(self, connection: Any) -> None:
        super().remove(connection)
        self._on_left()


class Accepting:
    """`connections` are those that there are. The listener stays the caller's."""

    def __init__(
        self, limit: int, factory: Callable[[], asyncio.Protocol], context: ssl.SSLContext | None
    ) -> None:
        self._limit = limit
        self._factory = factory
        self._context = context
        self._may_look = asyncio.Event()
        self._beginning: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self.connections = Connections(self._may_look.set)

    def start(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._task = asyncio.get_running_loop().create_task(self._run(listener))

    async def _run(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while len(self.connections) + len(self._beginning) >= self._limit:
                self._may_look.clear()
                await self._may_look.wait()
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:
                logger.warning("no connection could be accepted: %s", error)
                await asyncio.sleep(RETRY_S)
                continue
            task = loop.create_task(self._begin(client))
            self._beginning.add(task)
            task.add_done_callback(self._begun)

    async def _begin(self, client: socket.socket) -> None:
        timeout_s = HANDSHAKE_TIMEOUT_S if self._context is not None else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._factory, client, ssl=self._context, ssl_handshake_timeout=timeout_s
            )
        except OSError as error:  # the client left, or speaks no TLS
            logger.debug("a connection did not begin: %s", error)
            client.close()

    def _begun(self, task: asyncio.Task[None]) -> None:
        self._beginning.discard(task)
        self._may_look.set()

    def close(self) -> None:
        """Accept nothing more."""
        for task in (self._task, *self._beginning):
            if task is not None:
                task.cancel()
