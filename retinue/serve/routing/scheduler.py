"""Decide which replica answers each request; hold the rest until there is room. Pure: events and a clock in.

Requests are bound late: they wait here, first come, first served, and go to a replica that has room for them:
on this node if one has, the less busy of two random ones if there are many. The counterpart at the replica is
`admission`, which is strict about the limit and may refuse; then this router is in that replica's ring, and
offers it requests only on notices (a *credit* each), or once after 100 ms without one.

How busy a replica is: what this router has there, which it knows, and what others have (`others`), which
replies tell. The second is a hint: it steers the choice, and is halved when nothing has been heard for a
while, so that no replica is shunned for what it did long ago.

Lives here: the waiting order and its limits, deadlines of what waits, the choice. Does not: sockets, futures,
clocks (`router`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any
from zlib import crc32

from retinue.serve.routing.admission import NOTHING_WAITS

OFFER_AGAIN_S = 0.1  # without a notice
# So long a request waits for a replica that has, or loads, its model while others have room.
MODEL_WAIT_S = 1.0
RATE_WINDOW_S = 0.05  # of the service rate
RATE_WEIGHT = 0.3  # of the latest window
RETRY_AFTER_S = 1.0  # if nothing is known
FORGET_TURNS = 63  # as a mask: each so many choices, old hints are halved
EXPECTED_MODELS = 64
# Of what a replica believes of our oldest request's wait; less is not worth a message. Simulated: 1.5 to 5
# messages a request where 8 to 23 tell everything, and requests wait up to 1.5 instead of 1.0 shares.
TELL_SHARE = 0.25


class Replica:
    """A replica as this router sees it. `link` is the shell's own."""

    __slots__ = (
        "asked_at",
        "credits",
        "expected",
        "is_asked",
        "is_heard",
        "is_near",
        "is_rationed",
        "is_usable",
        "limit",
        "link",
        "loading",
        "models",
        "others",
        "replica_id",
        "seed",
        "sent",
        "told",
    )

    def __init__(self, replica_id: str, limit: int, is_near: bool, link: Any = None) -> None:
        self.replica_id = replica_id
        self.limit = limit
        self.is_near = is_near
        self.link = link
        self.is_usable = False  # connected, and not draining
        self.sent = 0  # requests of this router that are there, or on their way
        self.others = 0  # requests of others, as far as is known
        self.is_heard = False  # since hints were last halved
        self.is_rationed = False  # it has refused us: we are in its ring
        self.credits = 0
        self.is_asked = False  # an offer is on its way that no notice called for
        self.asked_at = 0.0
        self.told = 0.0  # since when our oldest request waits, as it knows
        self.models: frozenset[str] = frozenset()
        self.loading: frozenset[str] = frozenset()
        self.expected: set[str] = set()  # models that our requests have it load
        self.seed = crc32(replica_id.encode())

    @property
    def load(self) -> int:
        return self.sent + self.others

    def has_room(self) -> bool:
        """Whether a request may be offered. A credit is a slot, even if a reply that frees it is to come."""
        if self.is_rationed:
            return self.is_usable and self.credits > 0
        return self.is_usable and self.sent < self.limit

    def has_model(self, model_id: str) -> bool:
        return model_id in self.models

    def gets_model(self, model_id: str) -> bool:
        return model_id in self.loading or model_id in self.expected

    def __repr__(self) -> str:
        return f"Replica({self.replica_id!r}, sent={self.sent}, others={self.others}, limit={self.limit})"


class Waiting:
    """A request in the queue. `token` is the shell's own; `turn` its place in the order of arrival."""

    __slots__ = ("deadline", "is_over", "model_id", "session_id", "since", "token", "turn")

    def __init__(
        self, turn: int, since: float, deadline: float, model_id: str, session_id: str, token: Any
    ) -> None:
        self.turn = turn
        self.since = since
        self.deadline = deadline
        self.model_id = model_id
        self.session_id = session_id
        self.token = token
        self.is_over = False  # assigned, late, or cancelled


class ReplicaScheduler:
    """The requests of one router to one deployment.

    After each event that may have made room (`done`, `noticed`, `refused`, `usable`, ...) the shell calls
    `assign` if anything is `queued`, and `tick` each few milliseconds as long as that is so; it sends "leave"
    to the replicas in `leaving`, "waits" to those in `telling`, and empties both. `random` gives floats in
    [0, 1).
    """

    def __init__(
        self,
        random: Callable[[], float],
        *,
        max_queued: int = -1,
        max_queue_wait_s: float | None = None,
    ) -> None:
        self.max_queued = max_queued
        self.max_queue_wait_s = max_queue_wait_s
        self.queued = 0
        self.outside = 0  # requests that wait elsewhere (for a user's router), and `claim`
        self.turn = 0
        self.leaving: list[Replica] = []
        self.telling: list[Replica] = []
        self.replicas: dict[str, Replica] = {}
        self._random = random
        self._near: list[Replica] = []  # usable ones
        self._far: list[Replica] = []
        self._queue: deque[Waiting] = deque()  # in order; those that are over are dropped when met
        self._next_deadline = 0.0
        self._rate = 0.0  # requests/s that left the queue for a replica, while it was never empty
        self._window_from = 0.0
        self._window_count = 0

    # --- replicas

    def add(self, replica_id: str, limit: int, *, is_near: bool = True, link: Any = None) -> Replica:
        """A replica that is not usable yet."""
        replica = self.replicas[replica_id] = Replica(replica_id, limit, is_near, link)
        return replica

    def remove(self, replica_id: str) -> Replica | None:
        """It gets no more requests; those that it has still end with `done`."""
        replica = self.replicas.pop(replica_id, None)
        if replica is not None:
            self.unusable(replica)
        return replica

    def usable(self, replica: Replica) -> None:
        """It is connected."""
        if not replica.is_usable and self.replicas.get(replica.replica_id) is replica:
            replica.is_usable = True
            replica.others = 0
            self._let_in(replica)
            (self._near if replica.is_near else self._far).append(replica)

    def unusable(self, replica: Replica) -> None:
        """Its connection is lost, or it drains."""
        if replica.is_usable:
            replica.is_usable = False
            self._let_in(replica)
            (self._near if replica.is_near else self._far).remove(replica)

    def resize(self, replica: Replica, limit: int) -> None:
        replica.limit = limit

    def models(self, replica: Replica, models: Iterable[str], loading: Iterable[str]) -> None:
        """What it holds and loads."""
        replica.models = frozenset(models)
        replica.loading = frozenset(loading)
        replica.expected -= replica.models
        replica.expected -= replica.loading

    def usable_replicas(self) -> list[Replica]:
        return self._near + self._far

    @property
    def ongoing(self) -> int:
        return sum(replica.sent for replica in self.replicas.values())

    # --- requests

    def take(self) -> Replica | None:
        """A replica for a request without model and session; None: it has to `wait`.

        The caller then has one request more there; `turn` is the request's place, should it be refused.
        Measured: 0.25 us with one replica, 0.5 us with more.
        """
        self.turn = turn = self.turn + 1
        if self.queued:
            return None
        if not turn & FORGET_TURNS:
            self._forget()
        group = self._near or self._far
        size = len(group)
        if size == 1:
            replica = group[0]
        elif size:
            random = self._random
            first = int(random() * size)
            second = int(random() * (size - 1))
            if second >= first:
                second += 1
            replica = group[first]
            other = group[second]
            if other.sent + other.others < replica.sent + replica.others:
                replica = other
        else:
            return None
        if replica.is_rationed or replica.sent + replica.others >= replica.limit:
            found = self._least_busy(self._near) or self._least_busy(self._far) or self._offered_at_all()
            if found is None:
                return None
            replica = found
            self._use_credit(replica)
        replica.sent += 1
        return replica

    def take_for(self, model_id: str, session_id: str) -> Replica | None:
        """As `take`, for a request with a model, a session, or both."""
        self.turn += 1
        if self.queued:
            return None
        replica = self._choose(model_id, session_id, 0.0)
        if replica is not None:
            self._sent(replica, model_id)
        return replica

    def claim(self, replica: Replica) -> bool:
        """Take this very replica, if a request may be offered there."""
        if not replica.has_room():
            return False
        self._sent(replica, "")
        return True

    def wait(
        self,
        turn: int,
        now: float,
        token: Any,
        since: float = 0.0,
        *,
        deadline: float = 0.0,
        model_id: str = "",
        session_id: str = "",
    ) -> Waiting | None:
        """Queue a request that no replica was taken for, or that was refused; None: the queue is full.

        `turn`: what `self.turn` was when it came; `since`: when it was first queued, if not now. The caller
        then `assign`s, before any other event.
        """
        if 0 <= self.max_queued <= self.queued or self._is_too_long(now):
            return None
        waiting = Waiting(turn, since or now, deadline, model_id, session_id, token)
        queue = self._queue
        if not queue or queue[-1].turn < turn:
            queue.append(waiting)
        else:  # it was refused: its place is at the front, or near it
            place = 0
            while queue[place].turn < turn:
                place += 1
            queue.insert(place, waiting)
        if not self.queued:
            self._window_from = now
            self._window_count = 0
        self.queued += 1
        if deadline and (not self._next_deadline or deadline < self._next_deadline):
            self._next_deadline = deadline
        return waiting

    def cancel(self, waiting: Waiting) -> None:
        """Its caller has left."""
        if not waiting.is_over:
            self._leave_queue(waiting)
            self._after_queue()

    def done(self, replica: Replica, load: int = -1) -> None:
        """A request is over there. `load`: what the replica then said of itself; -1: nothing."""
        replica.sent = sent = replica.sent - 1
        if load >= 0:
            replica.others = load - sent if load > sent else 0
            replica.is_heard = True
        if replica.is_asked:
            # We asked without a notice, and were not refused: we seem to be in its ring no more.
            self._let_in(replica)

    def refused(self, replica: Replica, now: float, load: int = -1) -> None:
        """The replica is full, and remembers us."""
        self.done(replica, load)
        replica.is_rationed = True
        replica.is_asked = False
        replica.asked_at = now
        replica.told = now

    def noticed(self, replica: Replica, now: float) -> None:
        """A slot there is held for us."""
        if replica.is_rationed:
            replica.credits += 1
            replica.is_asked = False
            replica.asked_at = now
        # Else we have left, and the slot is given to another by now.

    def assign(self, now: float) -> list[tuple[Waiting, Replica]]:
        """The requests that can go now, in order, each with its replica (which counts it from now on)."""
        assigned: list[tuple[Waiting, Replica]] = []
        passed: list[Waiting] = []
        queue = self._queue
        while queue:
            waiting = queue[0]
            if waiting.is_over:
                queue.popleft()
                continue
            if waiting.model_id or waiting.session_id:
                replica = self._choose(waiting.model_id, waiting.session_id, now - waiting.since)
            else:
                replica = self._any_with_room()
            if replica is not None:
                queue.popleft()
                self._sent(replica, waiting.model_id)
                self._leave_queue(waiting)
                self._window_count += 1
                assigned.append((waiting, replica))
            elif waiting.model_id and self._any_with_room() is not None:
                passed.append(queue.popleft())  # it waits for its model; others need not
            else:
                break
        queue.extendleft(reversed(passed))
        self._after_queue()
        self._give_back()
        self._tell(now)
        return assigned

    def tick(self, now: float) -> list[Waiting]:
        """Who waited for too long (and is out of the queue). Lets replicas be asked again; then `assign`."""
        late: list[Waiting] = []
        if self._next_deadline and self._next_deadline <= now:
            late = [w for w in self._queue if 0.0 < w.deadline <= now and not w.is_over]
            self._next_deadline = min((w.deadline for w in self._queue if w.deadline > now), default=0.0)
        if self.max_queue_wait_s is not None:
            for waiting in self._queue:  # in order of arrival, nearly
                if now - waiting.since <= self.max_queue_wait_s:
                    break
                if not waiting.is_over and waiting not in late:
                    late.append(waiting)
        for waiting in late:
            self._leave_queue(waiting)
        self._drop_dead()
        self._after_queue()
        if self.queued:
            self._measure(now)
            self.ask_again(now)
        return late

    def ask_again(self, now: float) -> None:
        """Allow one offer to each replica whose notice has not come for long."""
        for replica in self.replicas.values():
            if replica.is_rationed and not replica.credits and now - replica.asked_at >= OFFER_AGAIN_S:
                replica.credits = 1
                replica.is_asked = True
                replica.asked_at = now

    def waiting_longer_than(self, limit_s: float, now: float) -> list[Waiting]:
        """Takes those out of the queue that have waited for more than `limit_s`; a negative limit: all."""
        found = [w for w in self._queue if not w.is_over and (limit_s < 0.0 or now - w.since > limit_s)]
        for waiting in found:
            self._leave_queue(waiting)
        self._after_queue()
        return found

    def estimated_wait_s(self, now: float) -> float:
        """How long one more request would wait; 0 if nothing waits, or nothing is known."""
        return (self.queued + 1) / self._rate if self._rate and self.queued else 0.0

    def retry_after_s(self, now: float) -> float:
        """When there may be room again."""
        return self.estimated_wait_s(now) or RETRY_AFTER_S

    # --- the choice

    def _any_with_room(self) -> Replica | None:
        return (
            self._noticing(self._near)
            or self._noticing(self._far)
            or self._least_busy(self._near)
            or self._least_busy(self._far)
            or self._offered_at_all()
        )

    @staticmethod
    def _noticing(group: list[Replica]) -> Replica | None:
        """One that holds a slot for us: nobody else can use that."""
        for replica in group:
            if replica.credits:
                return replica
        return None

    def _least_busy(self, group: Collection[Replica]) -> Replica | None:
        """Of those that seem to have room; of equally busy ones any."""
        best: Replica | None = None
        least = 0
        ties = 0
        for replica in group:
            load = replica.sent + replica.others
            if load >= replica.limit or replica.is_rationed:
                continue
            if best is None or load < least:
                best, least, ties = replica, load, 1
            elif load == least:
                ties += 1
                if self._random() * ties < 1.0:
                    best = replica
        return best

    def _offered_at_all(self) -> Replica | None:
        """The one that seems least full: it may have room by now, and has us wait in its ring if not."""
        best: Replica | None = None
        for replica in self.usable_replicas():
            if replica.has_room() and (best is None or replica.others < best.others):
                best = replica
        return best

    def _choose(self, model_id: str, session_id: str, waited_s: float) -> Replica | None:
        usable = self.usable_replicas()
        if model_id:
            holding = [r for r in usable if r.has_model(model_id)]
            getting = [r for r in usable if r.gets_model(model_id)]
            replica = self._sticky(holding, session_id) or self._sticky(getting, session_id)
            if replica is not None:
                return replica
            if (holding or getting) and waited_s < MODEL_WAIT_S:
                return None
            fewest = sorted((r for r in usable if r.has_room()), key=_models_and_load)
            if fewest:
                count = _models_and_load(fewest[0])[0]
                usable = [r for r in fewest if _models_and_load(r)[0] == count]
        return self._sticky(usable, session_id)

    def _sticky(self, group: list[Replica], session_id: str) -> Replica | None:
        """The session's replica, the next in its order if that has no room; without a session any."""
        if not session_id:
            return (
                self._noticing(group)
                or self._least_busy([r for r in group if r.is_near])
                or self._least_busy(group)
                or min((r for r in group if r.has_room()), key=_others, default=None)
            )
        key = crc32(session_id.encode())
        return max((r for r in group if r.has_room()), key=lambda r: _mixed(key, r.seed), default=None)

    def _sent(self, replica: Replica, model_id: str) -> None:
        replica.sent += 1
        self._use_credit(replica)
        if model_id and not replica.has_model(model_id) and model_id not in replica.loading:
            if len(replica.expected) >= EXPECTED_MODELS:
                replica.expected.clear()
            replica.expected.add(model_id)

    @staticmethod
    def _use_credit(replica: Replica) -> None:
        if replica.credits:
            replica.credits -= 1

    def _forget(self) -> None:
        for replica in self.replicas.values():
            if replica.is_heard:
                replica.is_heard = False
            else:
                replica.others >>= 1

    # --- the queue

    def _leave_queue(self, waiting: Waiting) -> None:
        waiting.is_over = True
        self.queued -= 1

    def _drop_dead(self) -> None:
        """Those that were cancelled within the queue are dropped when they become many."""
        if len(self._queue) > 2 * self.queued + 64:
            self._queue = deque(w for w in self._queue if not w.is_over)

    def _after_queue(self) -> None:
        if self.queued == 0:
            self._queue.clear()
            self._next_deadline = 0.0

    def _give_back(self) -> None:
        """Leave the ring of a replica that holds a slot for us which nobody here wants.

        Only then. Simulated: routers that left as soon as nothing waited gave up their turn at one replica
        while their offer to the next was on its way, was refused there, and so on: 400 refusals a request.
        """
        if self.outside:
            return
        for replica in self.replicas.values():
            if replica.credits:
                self._let_in(replica)
                self.leaving.append(replica)

    @property
    def oldest(self) -> float:
        """Since when the oldest request waits."""
        for waiting in self._queue:
            if not waiting.is_over:
                return waiting.since
        return NOTHING_WAITS

    def _tell(self, now: float) -> None:
        """Replicas that have us wait shall know how long we do, if it has become much less, or any more."""
        oldest = self.oldest
        for replica in self.replicas.values():
            if not replica.is_rationed or not replica.is_usable:
                continue
            gain = oldest - replica.told
            if gain < 0.0 or (gain > 0.0 and gain >= TELL_SHARE * (now - replica.told)):
                replica.told = oldest
                self.telling.append(replica)

    @staticmethod
    def _let_in(replica: Replica) -> None:
        replica.is_rationed = False
        replica.is_asked = False
        replica.credits = 0

    def _measure(self, now: float) -> None:
        """The rate at which requests leave the queue, while it is never empty."""
        elapsed = now - self._window_from
        if elapsed >= RATE_WINDOW_S and (self._window_count or elapsed * self._rate > 3.0):
            rate = max(self._window_count, 0.5) / elapsed
            self._rate = rate if not self._rate else self._rate + RATE_WEIGHT * (rate - self._rate)
            self._window_from = now
            self._window_count = 0

    def _is_too_long(self, now: float) -> bool:
        limit = self.max_queue_wait_s
        return limit is not None and self.estimated_wait_s(now) > limit

    def check_invariants(self) -> None:
        alive = [w for w in self._queue if not w.is_over]
        assert len(alive) == self.queued
        assert [w.turn for w in alive] == sorted(w.turn for w in alive)
        for replica in self.replicas.values():
            assert replica.sent >= 0
            assert replica.is_rationed or not replica.credits
            assert replica.is_usable == (replica in self._near or replica in self._far)


def _models_and_load(replica: Replica) -> tuple[int, int]:
    return len(replica.models) + len(replica.loading) + len(replica.expected), replica.load


def _mixed(key: int, seed: int) -> int:
    """Both, well stirred: each session has its own order of the replicas (rendezvous hashing)."""
    mixed = (key ^ seed) * 0x9E3779B1 & 0xFFFFFFFF
    return (mixed ^ mixed >> 15) * 0x85EBCA77 & 0xFFFFFFFF


def _others(replica: Replica) -> int:
    return replica.others
