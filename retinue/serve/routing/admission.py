"""Which offered requests a replica takes: the replica's side of routing. Pure: events and a clock in.

Routers send requests to a replica without asking first (an *offer*). A replica that is full refuses, and
remembers the router. Each slot that becomes free is held for one of the remembered routers, for 100 ms, who
is told (a *notice*): the one whose oldest request has waited longest. Routers tell since when that is, as it
changes (method "waits" of the replica's door), so requests are taken first come, first served over all
routers and replicas; a router whose queue is empty for now gets a slot that nobody else wants. As long as any
router waits, a full replica goes from one request to the next without refusing any. A router is forgotten
when it says so (method "leave": it was given a slot and has no use for any), when its connection is lost, or
when it lets held slots go by again and again: it is remembered again by its next offer.

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

NOTHING_WAITS = float("inf")  # instead of a time


class _Place:
    """A router that is remembered."""

    __slots__ = ("held", "missed", "since")

    def __init__(self, since: float) -> None:
        self.since = since  # its oldest request waits, as far as is known
        self.held = 0  # slots
        self.missed = 0  # holds that went by, one after the other


class Admission:
    """The slots of one replica. Methods that free slots return the routers to be noticed, one per slot."""

    def __init__(self, max_ongoing: int) -> None:
        self.max_ongoing = max_ongoing
        self.ongoing = 0
        self._holds: deque[tuple[float, Router]] = deque()  # (end, for whom), oldest first
        self._ring: dict[Router, _Place] = {}

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
            self._remember(router, now)
        return False

    def waits(self, router: Router, since: float, now: float) -> Sequence[Router]:
        """The router's oldest request waits since then; NOTHING_WAITS: it wants to be remembered, no more."""
        place = self._ring.get(router)
        if place is not None:
            place.since = since
            return ()
        self._remember(router, since)
        return self._give_free(now)

    def _remember(self, router: Router, since: float) -> None:
        place = self._ring[router] = _Place(since)
        place.held = sum(hold[1] == router for hold in self._holds)

    def _use_hold(self, router: Router, now: float) -> bool:
        """Take one of the router's held slots, even one whose time is just over: it is free still.

        The latest: if the notice of an earlier one was lost, that one has to expire, not to change places.
        """
        holds = self._holds
        for position in range(len(holds) - 1, -1, -1):
            if holds[position][1] == router:
                del holds[position]
                place = self._ring.get(router)
                if place is not None:
                    place.held -= 1
                    place.missed = 0
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
            place = self._ring.get(self._holds.pop()[1])
            if place is not None:
                place.held -= 1
        return self._give_free(now)

    def tick(self, now: float) -> Sequence[Router]:
        """Take back what was held for too long. To be called at `next_tick`, or a little later."""
        expired = False
        while self._holds and self._holds[0][0] <= now:
            _, router = self._holds.popleft()
            # It is stuck, or the notice was lost. In the ring, it may cost a slot 100 ms every turn.
            place = self._ring.get(router)
            if place is not None:
                place.held -= 1
                place.missed += 1
                if place.missed >= MISSED_HOLDS:
                    del self._ring[router]
            expired = True
        return self._give_free(now) if expired else ()

    def _give_free(self, now: float) -> Sequence[Router]:
        notices: list[Router] = []
        free = self.max_ongoing - self.ongoing - len(self._holds)
        while free > 0 and self._ring:
            router = min(self._ring, key=self._rank)
            place = self._ring.pop(router)
            place.held += 1
            self._ring[router] = place  # behind those that wait as long
            self._holds.append((now + HOLD_S, router))
            notices.append(router)
            free -= 1
        return notices

    def _rank(self, router: Router) -> tuple[int, float]:
        # A slot that is held already is for its oldest request; others may have come before the next one.
        place = self._ring[router]
        return place.held, place.since

    def check_invariants(self) -> None:
        assert self.ongoing >= 0
        assert self.ongoing + len(self._holds) <= max(self.max_ongoing, self.ongoing)
        free = self.max_ongoing - self.ongoing - len(self._holds)
        for router, place in self._ring.items():
            assert place.held == sum(hold[1] == router for hold in self._holds)
        assert not (self._ring and free > 0), "a router waits beside a free slot"
