"""Where a process keeps the values of its metrics: plain dicts, written without a lock.

A value is written by one thread only: each thread has a cell of its own for each series, and a snapshot
adds the cells up. So an increment cannot be lost between threads, costs no lock, and is safe in a finalizer
that runs inside another increment of the same thread (at worst, that one increment is overwritten). The
ident of a thread that ended is given to a later one, which goes on with its cells: their number is bounded
by how many threads lived at a time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from threading import Lock, get_ident
from typing import Any, Literal

from retinue.core.metric_text import Sample

logger = logging.getLogger(__name__)

Kind = Literal["counter", "gauge", "histogram"]
Key = tuple[tuple[str, str], ...]

# What a tag with unbounded values (a user id, say) may cost: about 200 B a series and thread.
MAX_SERIES_PER_METRIC = 10_000


class Series:
    """All series of one metric in this process, one for each combination of tags."""

    def __init__(
        self, name: str, kind: Kind, description: str, boundaries: tuple[float, ...] = (), *, limit: int
    ) -> None:
        self.name = name
        self.kind = kind
        self.description = description
        self.boundaries = boundaries
        self.limit = limit
        self._cells: dict[tuple[int, Key], list[float]] = {}
        self._keys: set[Key] = set()
        self._is_full = False

    def cell(self, key: Key) -> tuple[list[float], bool]:
        """Return the calling thread's cell for `key`, and whether what is written there is kept.

        A counter's cell is its value; a histogram's has a count for each range and the sum. Of a gauge
        there is one for all threads, in which the last value wins, with a one behind it once it was set.
        """
        place = (0 if self.kind == "gauge" else get_ident(), key)
        cell = self._cells.get(place)
        if cell is not None:
            return cell, True
        if not self._has_room(key):
            return self._new_cell(), False
        return self._cells.setdefault(place, self._new_cell()), True

    def samples(self) -> list[Sample]:
        """Return the series that hold anything, the cells of their threads added up."""
        totals: dict[Key, list[float]] = {}
        for (_, key), cell in self._cells.copy().items():
            total = totals.get(key)
            totals[key] = cell.copy() if total is None else [a + b for a, b in zip(total, cell, strict=True)]
        return [self._sample(key, self._values(total)) for key, total in totals.items() if any(total)]

    def reset(self) -> None:
        """Forget all values. The cells stay, because metrics hold on to them."""
        for cell in self._cells.values():
            cell[:] = [0.0] * len(cell)

    def _new_cell(self) -> list[float]:
        return [0.0] * {"counter": 1, "gauge": 2, "histogram": len(self.boundaries) + 2}[self.kind]

    def _values(self, total: list[float]) -> dict[str, Any]:
        if self.kind != "histogram":
            return {"value": float(total[0])}
        counts = [int(count) for count in total[:-1]]
        return {"boundaries": list(self.boundaries), "counts": counts, "sum": float(total[-1])}

    def _sample(self, key: Key, values: dict[str, Any]) -> Sample:
        return {
            "name": self.name,
            "kind": self.kind,
            "description": self.description,
            "tags": dict(key),
            **values,
        }

    def _has_room(self, key: Key) -> bool:
        if key in self._keys:
            return True
        if len(self._keys) < self.limit:
            self._keys.add(key)
            return True
        if not self._is_full:
            self._is_full = True
            logger.warning(
                "metric %s has %d combinations of tags, and further ones are dropped: a tag value that is "
                "different for each request belongs into a log",
                self.name,
                self.limit,
            )
        return False


class Registry:
    """The metrics of a process by name."""

    def __init__(self, *, limit: int = MAX_SERIES_PER_METRIC) -> None:
        self._limit = limit
        self._by_name: dict[str, Series] = {}
        self._sources: dict[Callable[[], list[Sample]], None] = {}
        self._lock = Lock()  # of definitions only

    def series(self, name: str, kind: Kind, description: str, boundaries: tuple[float, ...] = ()) -> Series:
        """Return the series of a metric, the same for each of its definitions.

        A histogram that is defined again with other boundaries starts anew; another kind under the same
        name raises ValueError.
        """
        with self._lock:
            known = self._by_name.get(name)
            if known is not None and known.kind != kind:
                raise ValueError(f"metric {name} is a {known.kind} in this process, not a {kind}")
            if known is None or known.boundaries != boundaries:
                known = Series(name, kind, description, boundaries, limit=self._limit)
                self._by_name[name] = known
            return known

    def add_source(self, source: Callable[[], list[Sample]]) -> None:
        """Have each snapshot ask `source` too, from any thread: for what a process counts for itself anyway,
        such as the length of a queue. It costs nothing until somebody looks."""
        self._sources[source] = None

    def remove_source(self, source: Callable[[], list[Sample]]) -> None:
        self._sources.pop(source, None)

    def snapshot(self) -> list[Sample]:
        """Return the samples of all metrics."""
        found = [sample for series in self._by_name.copy().values() for sample in series.samples()]
        for source in self._sources.copy():
            try:
                found += source()
            except Exception:
                logger.exception("a source of metrics failed, and its values are left out")
        return found

    def reset_after_fork(self) -> None:
        """Drop the values that the parent process recorded, and goes on reporting itself."""
        self._lock = Lock()
        self._sources.clear()
        for series in self._by_name.values():
            series.reset()


REGISTRY = Registry()
os.register_at_fork(after_in_child=REGISTRY.reset_after_fork)
