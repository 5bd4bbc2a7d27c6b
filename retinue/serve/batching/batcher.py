"""When a batch begins, and with which items. Pure: events and clock readings in, batches out.

An idle model begins at once, so that a lone item never waits for a timer. A busy one lets the next batch
grow:

- all `max_concurrent_batches` run: items wait;
- some run: a batch begins when it is full, or its oldest item has waited `wait_timeout_s`;
- none runs: it begins, unless one has just ended. Its callers are likely to come again (a closed loop of n
  clients would else run batches of 1 and n - 1 in turn), so the next one waits until it is as large as the
  last was, for a quarter of the time that one took and `wait_timeout_s` at most.

Items of different keys (model ids) are never in one batch. Items that were removed (cancelled) or whose
deadline has passed are in none.

Lives here: that. Does not: loops, timers, results (`running`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import islice
from typing import Any

# Of the time that the last batch took, while which its callers are waited for.
GROW_SHARE = 0.25
_NEVER = float("inf")


class Waiting:
    """An item that waits. `deadline` 0: none. Shells subclass it for what they need."""

    __slots__ = ("arrived", "deadline", "item", "key")

    def __init__(self, item: Any, *, key: Hashable = "", deadline: float = 0.0) -> None:
        self.item = item
        self.key = key
        self.deadline = deadline
        self.arrived = 0.0


class Batcher:
    """The waiting items of one function. `size_of` gives the size of a list of items; None: their number."""

    def __init__(
        self,
        max_batch_size: int,
        wait_timeout_s: float,
        max_concurrent_batches: int = 1,
        size_of: Callable[[list[Any]], int] | None = None,
    ) -> None:
        self.max_batch_size = max_batch_size
        self.wait_timeout_s = wait_timeout_s
        self.max_concurrent_batches = max_concurrent_batches
        self.running = 0
        self._size_of = size_of
        self._waiting: dict[Waiting, None] = {}  # oldest first
        self._keys: dict[Hashable, int] = {}  # waiting items of each
        self._deadlines = 0  # waiting items that have one
        self._last_size = 0
        self._grow_until = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, waiting: Waiting, now: float) -> None:
        waiting.arrived = now
        self._waiting[waiting] = None
        self._keys[waiting.key] = self._keys.get(waiting.key, 0) + 1
        if waiting.deadline:
            self._deadlines += 1

    def remove(self, waiting: Waiting) -> bool:
        """It was cancelled. False if it is in a batch already."""
        if waiting not in self._waiting:
            return False
        self._drop(waiting)
        return True

    def _drop(self, waiting: Waiting) -> None:
        del self._waiting[waiting]
        left = self._keys[waiting.key] - 1
        if left:
            self._keys[waiting.key] = left
        else:
            del self._keys[waiting.key]
        if waiting.deadline:
            self._deadlines -= 1

    def take_late(self, now: float) -> Sequence[Waiting]:
        """Items whose deadline has passed; they are in no batch. To be called before `begin`."""
        if not self._deadlines:
            return ()
        late = [waiting for waiting in self._waiting if waiting.deadline and waiting.deadline <= now]
        for waiting in late:
            self._drop(waiting)
        return late

    def take_oversized(self) -> Waiting | None:
        """The oldest item, if it alone is larger than a batch may be. To be called before `begin`."""
        if self._size_of is None or not self._waiting:
            return None
        oldest = next(iter(self._waiting))
        if self._fits([oldest.item]):
            return None
        self._drop(oldest)
        return oldest

    def _fits(self, items: list[Any]) -> bool:
        """An item whose size cannot be told fits nowhere, and must not cost others theirs."""
        assert self._size_of is not None
        try:
            return self._size_of(items) <= self.max_batch_size
        except Exception:  # noqa: BLE001 - user code: `why_unfit` tells
            return False

    def why_unfit(self, waiting: Waiting, name: str) -> Exception:
        """What the caller of an item that `take_oversized` gave is told."""
        assert self._size_of is not None
        try:
            self._size_of([waiting.item])
        except Exception as error:  # noqa: BLE001 - user code: it belongs to the caller
            return error
        return RuntimeError(f"an item is larger than a batch of {name} may be ({self.max_batch_size})")

    def begin(self, now: float) -> Sequence[Waiting]:
        """The batch that begins now; empty: none does. Call it until it is."""
        if not self._waiting or self.running >= self.max_concurrent_batches:
            return ()
        if now < self._starts_at():
            batch, is_full = self._candidate()
            if not is_full and (self.running or len(batch) < self._last_size):
                return ()
        else:
            batch, _ = self._candidate()
        if len(batch) == len(self._waiting):
            self._waiting.clear()
            self._keys.clear()
            self._deadlines = 0
        else:
            for waiting in batch:
                self._drop(waiting)
        self.running += 1
        return batch

    def _starts_at(self) -> float:
        """When a batch begins that does not become large enough before."""
        if self.running:
            return next(iter(self._waiting)).arrived + self.wait_timeout_s
        return self._grow_until

    def _candidate(self) -> tuple[list[Waiting], bool]:
        """The batch as it would be now, and whether another item has no room in it."""
        found: Iterable[Waiting] = self._waiting
        if len(self._keys) > 1:
            key = next(iter(found)).key
            found = (each for each in found if each.key == key)
        if self._size_of is None:
            batch = list(islice(found, self.max_batch_size))
            return batch, len(batch) == self.max_batch_size
        waiting = list(found)
        items = [waiting[0].item]
        for position in range(1, len(waiting)):
            items.append(waiting[position].item)
            if not self._fits(items):
                return waiting[:position], True
        return waiting, self._size_of(items) >= self.max_batch_size

    def ended(self, size: int, *, began: float, now: float) -> None:
        """A batch of `size` items is over."""
        self.running -= 1
        self._last_size = min(size, self.max_batch_size)
        self._grow_until = now + min(self.wait_timeout_s, GROW_SHARE * (now - began))

    @property
    def next_tick(self) -> float:
        """When `begin` may have a batch, or `take_late` an item, though nothing has happened; inf: never."""
        if not self._waiting:
            return _NEVER
        tick = _NEVER
        if self.running < self.max_concurrent_batches:
            tick = self._starts_at()
        if self._deadlines:
            tick = min(tick, *(waiting.deadline for waiting in self._waiting if waiting.deadline))
        return tick

    def check_invariants(self) -> None:
        assert self.running >= 0
        counts: dict[Hashable, int] = {}
        for waiting in self._waiting:
            counts[waiting.key] = counts.get(waiting.key, 0) + 1
        assert counts == self._keys
        assert self._deadlines == sum(1 for waiting in self._waiting if waiting.deadline)
