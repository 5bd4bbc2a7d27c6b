"""Tells routers and proxies what is so, by the key-value table: the latest value of each key, in order.

Lives here: writing, and waiting until something was written. Does not: what is written.
"""

from __future__ import annotations

import asyncio
import logging

from retinue.core.doors import AsyncKeyValue

logger = logging.getLogger(__name__)

RETRY_S = 0.5


class Publisher:
    """Writes in the background. A value that equals the one before is not written again."""

    def __init__(self, kv: AsyncKeyValue) -> None:
        self._kv = kv
        self._written: dict[bytes, bytes | None] = {}
        self._due: dict[bytes, bytes | None] = {}
        self._wake = asyncio.Event()
        self._writing: bytes | None = None
        self._is_closed = False
        self._waiters: list[tuple[bytes, asyncio.Future[None]]] = []

    def publish(self, key: bytes, value: bytes | None) -> None:
        """Let `key` have `value` (None: no value)."""
        if self._is_closed:
            return
        if key in self._written and self._written[key] == value:
            self._due.pop(key, None)
        else:
            self._due[key] = value
        self._wake.set()

    def close(self) -> None:
        """Write nothing from now on."""
        self._is_closed = True
        self._due.clear()

    async def flush(self, key: bytes) -> None:
        """Return when what was published under `key` has been written."""
        if key in self._due or self._writing == key:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append((key, waiter))
            self._wake.set()
            await waiter

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._due:
                key = next(iter(self._due))
                value = self._due.pop(key)
                self._writing = key
                try:
                    await self._write(key, value)
                finally:
                    self._writing = None
                self._written[key] = value
                self._answer()
            self._answer()

    async def _write(self, key: bytes, value: bytes | None) -> None:
        while True:
            try:
                if value is None:
                    await self._kv.delete(key)
                else:
                    await self._kv.put(key, value)
            except TimeoutError:  # no head for a long time: routers go on with what they know
                logger.warning("publishing %s waits for the head", key.decode())
                await asyncio.sleep(RETRY_S)
                if key in self._due:
                    value = self._due.pop(key)
            else:
                return

    def _answer(self) -> None:
        still = []
        for key, waiter in self._waiters:
            if key in self._due:
                still.append((key, waiter))
            elif not waiter.done():
                waiter.set_result(None)
        self._waiters = still
