"""Count, gauge and time what an application does; say it all in Prometheus' text form.

Lives here: the metric classes that applications use, and `snapshot`, `merge` and `render_prometheus`, with
which whoever serves a metrics page puts the processes' values together. The values themselves are in
`metric_store`, the text form in `core.metric_text`.
Does not: send, scrape, or serve anything.
"""

from __future__ import annotations

import re
import warnings
from bisect import bisect_left
from threading import get_ident
from typing import Any, ClassVar

from retinue.core.metric_text import Sample, merge, render_prometheus
from retinue.util.metric_store import REGISTRY, Key, Kind, Registry, Series

__all__ = ["Counter", "Gauge", "Histogram", "Sample", "merge", "render_prometheus", "snapshot"]

Tags = dict[str, str]

_VALID_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


def snapshot() -> list[Sample]:
    """Return the present value of every series of this process, as plain values that msgpack can carry.

    Counters and histograms count from the start of the process; they are not reset.
    """
    return REGISTRY.snapshot()


class _Metric:
    """What the metric classes share: name, tags, and the way from tags to the place of a value.

    Two metrics of one name and class in one process are the same metric. A name that is no valid Prometheus
    name warns, and the values are dropped. Pickling carries the definition, never the values: what a task
    records belongs to the process that runs it.
    """

    _kind: ClassVar[Kind]

    def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] | None = None) -> None:
        self._name = name
        self._description = description
        self._tag_keys = _checked_tag_keys(tag_keys)
        self._default_tags: Tags = {}
        # Values under an invalid name go where no snapshot looks.
        self._series = self._new_series(REGISTRY if _is_valid_name(name) else Registry())
        self._cells: dict[Any, list[float]] = {}  # by thread and tags as given, checked already

    @property
    def info(self) -> dict[str, Any]:
        """The definition: name, description, tag_keys, default_tags."""
        return {
            "name": self._name,
            "description": self._description,
            "tag_keys": self._tag_keys,
            "default_tags": self._default_tags,
        }

    def set_default_tags(self, default_tags: Tags) -> Any:
        """Use these tags wherever a record does not give its own; return the metric itself.

        Raises ValueError for a key that is not among `tag_keys`, TypeError for a value that is no str.
        """
        for key, value in default_tags.items():
            if key not in self._tag_keys:
                raise ValueError(f"{key!r} is not a tag key of metric {self._name}: {self._tag_keys}")
            _check_tag_value(key, value)
        self._default_tags = default_tags
        self._cells.clear()
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._definition(), self._default_tags)

    def _definition(self) -> tuple[Any, ...]:
        return (self._name, self._description, self._tag_keys)

    def _new_series(self, registry: Registry) -> Series:
        return registry.series(self._name, self._kind, self._description)

    def _cell(self, tags: Tags | None) -> list[float]:
        """Return this thread's cell for the tags, which are checked when they are new. 0.2 us."""
        given = (get_ident(), *tags.items()) if tags else get_ident()
        try:
            return self._cells[given]
        except (KeyError, TypeError):  # new, or a value that is not even hashable
            cell, is_kept = self._series.cell(self._key(tags))
            if is_kept:
                self._cells[given] = cell
            return cell

    def _key(self, tags: Tags | None) -> Key:
        """Check the tags, and return them with the default ones as the key of a series."""
        for key, value in (tags or {}).items():
            _check_tag_value(key, value)
        complete = {**self._default_tags, **(tags or {})}
        if missing := [key for key in self._tag_keys if key not in complete]:
            raise ValueError(f"metric {self._name} needs a value for the tag keys {', '.join(missing)}")
        return tuple(sorted(complete.items()))


class Counter(_Metric):
    """A number that only grows: requests answered, bytes sent. Exported with the suffix `_total`."""

    _kind = "counter"

    def inc(self, value: float = 1.0, tags: Tags | None = None) -> None:
        """Add `value`, which must be a positive number (else TypeError or ValueError)."""
        if not isinstance(value, (int, float)):
            raise TypeError(f"value must be int or float, not {type(value).__name__}")
        if value <= 0:
            raise ValueError(f"a counter only grows: value must be positive, not {value}")
        self._cell(tags)[0] += value


class Gauge(_Metric):
    """A number that goes up and down, of which the latest value counts: queue length, temperature."""

    _kind = "gauge"

    def set(self, value: float | None, tags: Tags | None = None) -> None:
        """Replace the value; None changes nothing. Raises TypeError for what is no number."""
        if value is None:
            return
        if not isinstance(value, (int, float)):
            raise TypeError(f"value must be int or float, not {type(value).__name__}")
        self._cell(tags)[:] = value, 1.0


class Histogram(_Metric):
    """How often values fell into each of some ranges, and their sum: latencies, sizes.

    `boundaries` are the inclusive upper limits of the ranges, all positive; one range without limit comes
    on top.
    """

    _kind = "histogram"

    def __init__(
        self,
        name: str,
        description: str = "",
        boundaries: list[float] | None = None,
        tag_keys: tuple[str, ...] | None = None,
    ) -> None:
        if not boundaries:
            raise ValueError(f"histogram {name} needs boundaries, for example boundaries=[0.1, 1.0, 10.0]")
        if wrong := [boundary for boundary in boundaries if boundary <= 0]:
            raise ValueError(f"the boundaries of histogram {name} must be positive, not {wrong}")
        self.boundaries = boundaries
        super().__init__(name, description, tag_keys)

    @property
    def info(self) -> dict[str, Any]:
        """The definition: name, description, tag_keys, default_tags, boundaries."""
        return {**super().info, "boundaries": self.boundaries}

    def observe(self, value: float, tags: Tags | None = None) -> None:
        """Count `value` in its range. Raises TypeError for what is no number."""
        if not isinstance(value, (int, float)):
            raise TypeError(f"value must be int or float, not {type(value).__name__}")
        cell = self._cell(tags)
        cell[bisect_left(self._series.boundaries, value)] += 1
        cell[-1] += value

    def _definition(self) -> tuple[Any, ...]:
        return (self._name, self._description, self.boundaries, self._tag_keys)

    def _new_series(self, registry: Registry) -> Series:
        boundaries = tuple(sorted(set(self.boundaries)))
        return registry.series(self._name, self._kind, self._description, boundaries)


def _rebuild(cls: type[_Metric], definition: tuple[Any, ...], default_tags: Tags) -> _Metric:
    metric = cls(*definition)
    metric.set_default_tags(default_tags)
    return metric


def _is_valid_name(name: str) -> bool:
    if not name:
        raise ValueError("a metric needs a name")
    if not _VALID_NAME.fullmatch(name):
        warnings.warn(
            f"{name!r} is no valid metric name and its values are dropped: "
            "use letters, digits and underscores, and no digit first",
            UserWarning,
            stacklevel=4,
        )
        return False
    if ":" in name:
        warnings.warn(f"metric name {name!r}: colons are going to be refused", FutureWarning, stacklevel=4)
    return True


def _checked_tag_keys(tag_keys: tuple[str, ...] | None) -> tuple[str, ...]:
    if not tag_keys:
        return ()
    if not isinstance(tag_keys, tuple):
        raise TypeError(f"tag_keys must be a tuple of str, not {type(tag_keys).__name__}")
    for key in tag_keys:
        if not isinstance(key, str):
            raise TypeError(f"tag keys must be str, not {type(key).__name__}")
    return tag_keys


def _check_tag_value(key: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"the value of tag {key!r} must be str, not {type(value).__name__}")
