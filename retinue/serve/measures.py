"""What serve's own metrics are made of: counts and times that the hot path adds to, and a scrape reads.

A metric of `retinue.util.metrics` checks its tags at every call: 0.5 us for a counter, 0.8 for a histogram.
These know theirs, and count requests by the times that they keep: 0.2 us for both. One thread writes, any
thread reads.

Lives here: that, and samples of plain values. Does not: which metrics there are (`replica.measures`,
`proxy.measures`, `routing.measures`, `controller.measures`, `batching.measures`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from retinue.util.metric_store import REGISTRY
from retinue.util.metrics import Sample

LATENCY_BOUNDARIES_S = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0,
)  # fmt: skip
MAX_KEYS = 10_000

add_source = REGISTRY.add_source
remove_source = REGISTRY.remove_source


class Timings:
    """How often values fell into each of some ranges, for each key: the values of `tag_keys`, in order.

    Keys that come once there are 10,000 are counted under empty tags.
    """

    __slots__ = ("_boundaries", "_cells", "_description", "_name", "_tag_keys")

    def __init__(
        self,
        name: str,
        description: str,
        tag_keys: Sequence[str],
        boundaries: Sequence[float] = LATENCY_BOUNDARIES_S,
    ) -> None:
        self._name = name
        self._description = description
        self._tag_keys = tag_keys
        self._boundaries = boundaries
        self._cells: dict[tuple[Any, ...], list[float]] = {}

    def add(self, key: tuple[Any, ...], value: float) -> None:
        """0.2 us."""
        try:
            cell = self._cells[key]
        except KeyError:
            cell = self._new_cell(key)
        cell[bisect_left(self._boundaries, value)] += 1
        cell[-1] += value

    def _new_cell(self, key: tuple[Any, ...]) -> list[float]:
        if len(self._cells) >= MAX_KEYS:
            key = ("",) * len(self._tag_keys)
        return self._cells.setdefault(key, [0.0] * (len(self._boundaries) + 2))

    def counts(self) -> dict[tuple[Any, ...], int]:
        """How many values each key has."""
        return {key: int(sum(cell[:-1])) for key, cell in self._cells.copy().items()}

    def samples(self, tags: dict[str, str] | None = None) -> list[Sample]:
        """`tags` are added to each."""
        found: list[Sample] = []
        for key, cell in self._cells.copy().items():
            values = cell.copy()
            sample: Sample = {
                "name": self._name,
                "kind": "histogram",
                "description": self._description,
                "tags": {**(tags or {}), **dict(zip(self._tag_keys, map(str, key), strict=True))},
                "boundaries": list(self._boundaries),
                "counts": [int(count) for count in values[:-1]],
                "sum": values[-1],
            }
            found.append(sample)
        return found


class Tally:
    """Counts by key, for what is rare: 0.1 us."""

    __slots__ = ("_description", "_name", "_tag_keys", "values")

    def __init__(self, name: str, description: str, tag_keys: Sequence[str] = ()) -> None:
        self._name = name
        self._description = description
        self._tag_keys = tag_keys
        self.values: dict[tuple[Any, ...], int] = {}

    def add(self, key: tuple[Any, ...] = (), count: int = 1) -> None:
        self.values[key] = self.values.get(key, 0) + count

    def samples(self, tags: dict[str, str] | None = None) -> list[Sample]:
        return [
            counter(
                self._name,
                self._description,
                count,
                {**(tags or {}), **dict(zip(self._tag_keys, map(str, key), strict=True))},
            )
            for key, count in self.values.copy().items()
        ]


def counter(name: str, description: str, value: float, tags: dict[str, str]) -> Sample:
    return _sample(name, "counter", description, value, tags)


def gauge(name: str, description: str, value: float, tags: dict[str, str]) -> Sample:
    return _sample(name, "gauge", description, value, tags)


def _sample(name: str, kind: str, description: str, value: float, tags: dict[str, str]) -> Sample:
    return {"name": name, "kind": kind, "description": description, "tags": tags, "value": float(value)}
