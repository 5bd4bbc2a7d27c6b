"""The owners of the objects that this node's store has: what they must hear, and when they are gone.

An owner is a process, here or on another node. It hears of copies that come and go; when it dies, what it
owned is nobody's and goes. Lives here: whose the objects are, and one connection to each owner on another
node. Does not: the copies themselves (`store`), or bringing them here (`pulling`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from retinue.core.config import AgentConfig
from retinue.core.errors import RetinueError
from retinue.core.transport import loop as transport
from retinue.core.transport.loop import LoopConnection
from retinue.core.wire.messages import Address, CopyLost, Hello, Message

logger = logging.getLogger(__name__)


class OwnerRoom:
    """Build, set the callbacks, `close`."""

    def __init__(self, config: AgentConfig) -> None:
        self.on_orphans: Callable[[list[bytes]], None] = lambda object_ids: None
        self.is_alive_here: Callable[[bytes], bool] = lambda worker_id: True
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._owner_of: dict[bytes, Address] = {}
        self._owned: dict[bytes, set[bytes]] = {}  # by the owner's worker id
        self._connections: dict[bytes, asyncio.Task[LoopConnection]] = {}  # likewise
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def close(self) -> None:
        self._is_closed = True
        for task in list(self._tasks):
            task.cancel()
        for connecting in list(self._connections.values()):
            connecting.cancel()
            if connecting.done() and not connecting.cancelled() and connecting.exception() is None:
                connecting.result().close()

    # --- whose is what

    def holds(self, object_ids: Sequence[bytes], owner: Address) -> None:
        """This node has copies of these. One without a worker id owns for ever."""
        worker_id = owner.worker_id
        if not worker_id:
            return
        owned = self._owned.get(worker_id)
        if owned is None:
            owned = self._owned[worker_id] = set()
            self._loop.call_soon(self._watch, owner)  # not within the call: its death changes the books
        owned.update(object_ids)
        for object_id in object_ids:
            self._owner_of[object_id] = owner

    def forget(self, object_ids: Sequence[bytes]) -> None:
        """The copies here were freed."""
        for object_id in object_ids:
            self._take(object_id)

    def gone(self, object_id: bytes, asked_for: Address | None) -> None:
        """The copy here was evicted, or is lost. `asked_for`: the owner as somebody who waits for it says."""
        owner = self._take(object_id) or asked_for
        if owner is not None:
            self.tell(owner, CopyLost(object_id, self._config.node_id))

    def _take(self, object_id: bytes) -> Address | None:
        owner = self._owner_of.pop(object_id, None)
        if owner is not None:
            owned = self._owned[owner.worker_id]
            owned.discard(object_id)
            if not owned:
                del self._owned[owner.worker_id]
        return owner

    # --- deaths

    def process_died(self, worker_id: bytes) -> None:
        """A process of this node is no more, or one elsewhere cannot be reached."""
        orphans = list(self._owned.get(worker_id, ()))
        if orphans and not self._is_closed:
            logger.info("freeing %d objects whose owner is gone", len(orphans))
            self.on_orphans(orphans)

    def _watch(self, owner: Address) -> None:
        if owner.worker_id not in self._owned or self._is_closed:
            return
        if owner.node_id != self._config.node_id:
            self._run(self._reach(owner))
        elif not self.is_alive_here(owner.worker_id):
            self.process_died(owner.worker_id)

    async def _reach(self, owner: Address) -> None:
        """See that there is a connection, whose end will tell of the owner's."""
        try:
            await self.connection(owner)
        except (OSError, RetinueError):
            self.process_died(owner.worker_id)

    # --- talking to them

    async def connection(self, owner: Address) -> LoopConnection:
        """The one connection to an owner: what is said to it arrives in order. Raises OSError."""
        task = self._connections.get(owner.worker_id)
        if task is None:
            task = self._connections[owner.worker_id] = self._loop.create_task(self._connect(owner))
        return await asyncio.shield(task)

    def tell(self, owner: Address, message: Message) -> None:
        """Say it, if the owner is there to hear it."""

        async def send() -> None:
            try:
                (await self.connection(owner)).send(message)
            except (OSError, RetinueError) as error:
                logger.debug("an object's owner cannot be told: %s", error)

        self._run(send())

    async def _connect(self, owner: Address) -> LoopConnection:
        hello = Hello("peer", self._config.address)
        try:
            connection = await transport.connect(owner, hello, self._config.token, _ignore, self._lost)
        except BaseException:
            self._connections.pop(owner.worker_id, None)
            raise
        connection.context = owner
        if connection.is_closed:
            self._lost(connection)
        return connection

    def _lost(self, connection: LoopConnection) -> None:
        """A broken connection is not yet a death: whether it can be made anew will tell."""
        owner = connection.context
        if owner is not None:
            self._connections.pop(owner.worker_id, None)
            self._watch(owner)

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        if self._is_closed:
            coroutine.close()
            return
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _ignore(connection: LoopConnection, message: Any, payload: bytes) -> None:
    """Owners say nothing that was not asked."""
