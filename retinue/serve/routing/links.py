"""The connection to one replica: made as soon as the replica is known, made again when it is lost.

Lives here: connecting, the stream of the replica's events, telling it that we leave its ring. Does not: what
follows for requests (`router`).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from retinue.core import doors
from retinue.core.doors import DoorClosedError, DoorConnection, DoorError
from retinue.serve.messages import (
    AGE,
    EVENT_DRAINING,
    EVENT_MODELS,
    EVENT_ROUTING_STATS,
    EVENT_SLOT,
    REPLICA_DOOR,
    ReplicaEvent,
    ReplicaInfo,
    decode,
)
from retinue.serve.routing.scheduler import Replica

if TYPE_CHECKING:
    from retinue.serve.routing.router import Router

logger = logging.getLogger(__name__)

FIRST_RETRY_S, LAST_RETRY_S = 0.02, 1.0


def _ignore(answer: object, error: BaseException | None) -> None:
    """Nothing follows: what was told is told again when it changes."""


class Link:
    """A replica and the connection to it; None while there is none."""

    def __init__(self, router: Router, info: ReplicaInfo, replica: Replica) -> None:
        self.info = info
        self.replica = replica
        self.connection: DoorConnection | None = None
        self.stats: dict[str, object] = {}  # what the user's record_routing_stats gave
        self.was_tried = asyncio.Event()  # the first attempt to connect is over
        self._router = router
        self._leaves: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def load(self) -> int:
        """What the replica last said of itself; -1: nothing yet."""
        connection = self.connection
        return -1 if connection is None else connection.loads.get(REPLICA_DOOR, -1)

    def close_when_idle(self) -> None:
        """The replica is in use no more; what it still works on is waited for."""
        if self.replica.sent == 0:
            self.close()

    def close(self) -> None:
        self.was_tried.set()
        if self._task is not None:
            self._task.cancel()
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    # --- connecting

    async def _run(self) -> None:
        pause = FIRST_RETRY_S
        while True:
            try:
                connection = await doors.connect(self.info.address)
            except (OSError, DoorError) as error:  # TimeoutError is an OSError
                logger.debug("replica %s cannot be reached: %s", self.info.replica_id, error)
                self.was_tried.set()
            else:
                pause = FIRST_RETRY_S
                await self._use(connection)
            # It may be there still (its door is about to open), or the controller will say that it is not.
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_RETRY_S)

    async def _use(self, connection: DoorConnection) -> None:
        """Until the connection is over."""
        self.connection = connection
        over = asyncio.Event()
        connection.on_closed(over.set)
        connection.on_closed(lambda: self._closed(connection))
        try:
            # Its events first: so the replica knows whom to notice when requests come.
            events = connection.stream(REPLICA_DOOR, "events")
            self._router.usable(self)
            self.was_tried.set()
            await self._follow(events)
            await over.wait()
        except DoorError as error:
            if not (connection.is_closed and isinstance(error, DoorClosedError)):
                logger.warning("replica %s tells no events: %s", self.info.replica_id, error)
        finally:
            connection.close()
            self._closed(connection)

    async def _follow(self, events: doors.DoorStream) -> None:
        async for item in events:
            event = decode(ReplicaEvent, item)
            match event.kind:
                case kind if kind == EVENT_SLOT:
                    self._router.noticed(self)
                case kind if kind == EVENT_MODELS:
                    self._router.models(self, event.model_ids, event.loading_model_ids)
                case kind if kind == EVENT_DRAINING:
                    self._router.drains(self)
                case kind if kind == EVENT_ROUTING_STATS:
                    self.stats = dict(event.stats)

    def _closed(self, connection: DoorConnection) -> None:
        if self.connection is connection:
            self.connection = None
            self._router.lost(self)

    # --- telling

    def tell_wait(self, age_s: float) -> None:
        """So long our oldest request waits; minus infinity: none does."""
        if self.connection is not None:
            try:
                self.connection.ask_soon(REPLICA_DOOR, "waits", AGE.pack(age_s), _ignore)
            except DoorError as error:
                # Then others may be served before it; if the connection is lost, `_closed` follows.
                logger.debug("replica %s was not told how long we wait: %s", self.info.replica_id, error)

    def leave(self) -> None:
        """Nothing waits here any more: the replica shall hold no slot for us."""
        if self.connection is not None:
            task = asyncio.get_running_loop().create_task(self._leave(self.connection))
            self._leaves.add(task)
            task.add_done_callback(self._leaves.discard)

    async def _leave(self, connection: DoorConnection) -> None:
        try:
            await connection.call(REPLICA_DOOR, "leave")
        except DoorError as error:
            # Then it holds a slot for 100 ms at most.
            logger.debug("replica %s was not told that we leave: %s", self.info.replica_id, error)
