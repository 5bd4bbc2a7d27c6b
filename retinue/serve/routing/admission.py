"""Which offered requests a replica takes: the replica's side of routing. Pure: events and a clock in.

Routers send requests to a replica without asking first (an *offer*). A replica that is full refuses, and
remembers the router. Remembered routers stand in a ring: each slot that becomes free is held for the first
of them, for 100 ms, who is told (a *notice*) and goes to the ring's end. So routers take turns, however many
requests wait in each, and as long as any router waits a full replica goes from one request to the next
without refusing any. A router leaves the ring when it says so (it has no waiting requests any more: method
"leave" of the replica's door), when its connection is lost, or when it lets held slots go by again and again
(the next one in the ring gets them): it joins again by its next offer.

Lives here: that. Does not: carrying notices (the replica's door handler), which replica a router prefers
(`scheduler`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence

HOLD_S = 0.1
# A router that lets so many holds go by, one after the other, is stuck; one notice may have been lost.
MISSED_HOLDS = 2

Router = Hashable


class Admission:
    """The slots of one replica. Methods that free slots return the routers to be noticed, one per slot."""

    def __init__(self, max_ongoing: int) -> None:
        self.max_ongoing = max_ongoing
        self.ongoing = 0
        self._holds: deque[tuple[float, Router]] = deque()  # (end, for whom), oldest first
        self._ring: dict[Router, int] = {}  # who waits, whose turn it is first; holds that went by

    @property
    def held(self) -> int:
        """Slots that are free, and held for a router."""
        return len(self._holds)

    @property
    def waiting(self) -> int:
        """Routers that are remembered."""
        return len(self._ring)

    @property
    def next_tick(self) -> float:
        """When `tick` has something to do; 0: never, as it is now."""
        return self._holds[0][0] if self._holds else 0.0

    def offer(self, router: Router, now: float, *, is_listening: bool = True) -> bool:
        """Whether the router's request is taken; it is ongoing then, until `finished`.

        If not, the router will get a notice. `is_listening` False: it has no `events` stream (yet), so that
        it could not be told and is not remembered.
        """
        if not self._holds and not self._ring:  # nearly always
            if self.ongoing < self.max_ongoing:
                self.ongoing += 1
                return True
        elif self._use_hold(router, now) or self.ongoing + len(self._holds) < self.max_ongoing:
            self.ongoing += 1
            return True
        if is_listening and router not in self._ring:
            self._ring[router] = 0
        return False

    def _use_hold(self, router: Router, now: float) -> bool:
        """Take one of the router's held slots, even one whose time is just over: it is free still.

        The latest: if the notice of an earlier one was lost, that one has to expire, not to change places.
        """
        holds = self._holds
        for position in range(len(holds) - 1, -1, -1):
            if holds[position][1] == router:
                del holds[position]
                if router in self._ring:
                    self._ring[router] = 0
                return True
        return False

    def finished(self, now: float) -> Sequence[Router]:
        """A request is over, and its code has returned."""
        self.ongoing -= 1
        if not self._ring:
            return ()
        return self._give_free(now)

    def left(self, router: Router, now: float) -> Sequence[Router]:
        """The router has nothing waiting any more, or is gone. Its ongoing requests still count."""
        self._ring.pop(router, None)
        if not self._holds:
            return ()
        self._holds = deque(hold for hold in self._holds if hold[1] != router)
        return self._give_free(now)

    def resize(self, max_ongoing: int, now: float) -> Sequence[Router]:
        """Another limit. What is ongoing above it goes on."""
        self.max_ongoing = max_ongoing
        while self._holds and self.ongoing + len(self._holds) > max_ongoing:
            self._holds.pop()
        return self._give_free(now)

    def tick(self, now: float) -> Sequence[Router]:
        """Take back what was held for too long. To be called at `next_tick`, or a little later."""
        expired = False
        while self._holds and self._holds[0][0] <= now:
            _, router = self._holds.popleft()
            # It is stuck, or the notice was lost. In the ring, it may cost a slot 100 ms every turn.
            missed = self._ring.get(router, 0) + 1
            if missed >= MISSED_HOLDS:
                self._ring.pop(router, None)
            elif router in self._ring:
                self._ring[router] = missed
            expired = True
        return self._give_free(now) if expired else ()

    def _give_free(self, now: float) -> Sequence[Router]:
        notices: list[Router] = []
        free = self.max_ongoing - self.ongoing - len(self._holds)
        while free > 0 and self._ring:
            router = next(iter(self._ring))
            self._ring[router] = self._ring.pop(router)
            self._holds.append((now + HOLD_S, router))
            notices.append(router)
            free -= 1
        return notices

    def check_invariants(self) -> None:
        assert self.ongoing >= 0
        assert self.ongoing + len(self._holds) <= max(self.max_ongoing, self.ongoing)
        free = self.max_ongoing - self.ongoing - len(self._holds)
        assert not (self._ring and free > 0), "a router waits beside a free slot"
