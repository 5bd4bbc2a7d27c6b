"""How many requests run, who is refused, and who hears of free slots: the shell around routing's `Admission`.

Lives here: the clock, the timer, and the routers' streams of events. Does not: the decisions (`admission`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from retinue.core.doors import Address, DoorRefusedError
from retinue.serve.messages import (
    EVENT_DRAINING,
    EVENT_MODELS,
    EVENT_ROUTING_STATS,
    EVENT_SLOT,
    REFUSED_DRAINING,
    REFUSED_FULL,
    ReplicaEvent,
    encode,
)
from retinue.serve.routing.admission import Admission

# Notices to a router that does not read: a lost one costs it a delay, never a request.
MAX_UNREAD_EVENTS = 1024


class EventStream:
    """What one router is told, as it comes. Ends after `end()`."""

    def __init__(self, owner: Slots, router: bytes, first: Sequence[bytes]) -> None:
        self._owner = owner
        self._router = router
        self._events: deque[bytes] = deque(first, maxlen=MAX_UNREAD_EVENTS)
        self._waiter: asyncio.Future[None] | None = None
        self._is_over = False

    def tell(self, event: bytes) -> None:
        self._events.append(event)
        self._wake()

    def end(self) -> None:
        self._is_over = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> bytes:
        while not self._events:
            if self._is_over:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._events.popleft()

    async def aclose(self) -> None:
        self._owner.router_gone(self._router, self)


class Slots:
    """The replica's slots. `load` is how many are taken."""

    def __init__(self, max_ongoing: int) -> None:
        self._admission = Admission(max_ongoing)
        self._streams: dict[bytes, EventStream] = {}  # by the routers' process
        self._timer: asyncio.TimerHandle | None = None
        self._idle: asyncio.Event = asyncio.Event()
        self._idle.set()
        self._state: dict[int, bytes] = {}  # events that a router must know from its start
        self.is_draining = False
        self.moved = 0  # grows with each request that is over and each item that was sent

    @property
    def load(self) -> int:
        return self._admission.ongoing

    def take(self, caller: Address) -> None:
        """Take a slot, or raise DoorRefusedError: nothing is executed then."""
        if self.is_draining:
            raise DoorRefusedError(REFUSED_DRAINING)
        router = caller.worker_id
        if not self._admission.offer(router, time.monotonic(), is_listening=router in self._streams):
            raise DoorRefusedError(REFUSED_FULL)
        self._idle.clear()

    def free(self) -> None:
        """A request's code has returned."""
        self.moved += 1
        admission = self._admission
        noticed = admission.finished(time.monotonic())
        if noticed:
            self._notice(noticed)
        if not admission.ongoing:
            self._idle.set()

    def leave(self, caller: Address) -> None:
        """The router has nothing waiting any more."""
        self._notice(self._admission.left(caller.worker_id, time.monotonic()))

    def waits(self, caller: Address, age_s: float) -> None:
        """So long the router's oldest request waits; minus infinity: none does."""
        router = caller.worker_id
        if router in self._streams:
            now = time.monotonic()
            self._notice(self._admission.waits(router, now - age_s, now))

    def resize(self, max_ongoing: int) -> None:
        self._notice(self._admission.resize(max_ongoing, time.monotonic()))

    async def wait_idle(self) -> None:
        await self._idle.wait()

    # --- events

    def listen(self, caller: Address) -> EventStream:
        """The events for one router. A second stream of the same one replaces its first."""
        stream = EventStream(self, caller.worker_id, list(self._state.values()))
        old = self._streams.get(caller.worker_id)
        self._streams[caller.worker_id] = stream
        if old is not None:
            old.end()
        return stream

    def router_gone(self, router: bytes, stream: EventStream) -> None:
        if self._streams.get(router) is stream:
            del self._streams[router]
            self._notice(self._admission.left(router, time.monotonic()))

    def _notice(self, routers: Sequence[Any]) -> None:
        if routers:
            event = encode(ReplicaEvent(EVENT_SLOT, max_ongoing_requests=self._admission.max_ongoing))
            for router in routers:
                stream = self._streams.get(router)
                if stream is not None:
                    stream.tell(event)
        if self._timer is None and self._admission.next_tick:
            self._set_timer()

    def _set_timer(self) -> None:
        loop = asyncio.get_running_loop()
        wait_s = max(0.0, self._admission.next_tick - time.monotonic())
        self._timer = loop.call_later(wait_s + 0.001, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._notice(self._admission.tick(time.monotonic()))

    def tell_all(self, event: ReplicaEvent) -> None:
        """Tell every router, and those that come."""
        encoded = self._state[event.kind] = encode(event)
        for stream in self._streams.values():
            stream.tell(encoded)

    def models_changed(self, loaded: Sequence[str], loading: Sequence[str]) -> None:
        self.tell_all(ReplicaEvent(EVENT_MODELS, list(loaded), list(loading)))

    def routing_stats(self, stats: dict[str, Any]) -> None:
        self.tell_all(ReplicaEvent(EVENT_ROUTING_STATS, stats=stats))

    def drain(self) -> None:
        """Refuse from now on."""
        self.is_draining = True
        self.tell_all(ReplicaEvent(EVENT_DRAINING))

    def end(self) -> None:
        """End the streams of events."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for stream in self._streams.values():
            stream.end()
