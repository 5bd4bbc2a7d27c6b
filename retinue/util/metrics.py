"""Count, gauge and time what an application does; say it all in Prometheus' text form.

Lives here: the metric classes that applications use, and `snapshot`, `merge` and `render_prometheus`, with
which whoever serves a metrics page puts the processes' values together. The values themselves are in
`metric_store`, the text form in `metric_text`.
Does not: send, scrape, or serve anything.
"""

from __future__ import annotations

import re
import warnings
from typing import Any, ClassVar

from retinue.util.metric_store import REGISTRY, Kind, Sample, Series
from retinue.util.metric_text import merge, render_prometheus

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
        self._series: Series | None = self._new_series() if _is_valid_name(name) else None
        self._tags_by_given: dict[tuple[Any, ...], tuple[tuple[str, str], ...]] = {}

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
        self._tags_by_given.clear()
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._definition(), self._default_tags)

    def _definition(self) -> tuple[Any, ...]:
        return (self._name, self._description, self._tag_keys)

    def _new_series(self) -> Series:
        return REGISTRY.series(self._name, self._kind, self._description)

    def _tags(self, tags: Tags | None) -> tuple[tuple[str, str], ...]:
        """Return the complete tags as the key of a series. Checked once for each combination."""
        given = tuple(tags.items()) if tags else ()
        try:
            return self._tags_by_given[given]
        except (KeyError, TypeError):  # unseen, or a value that is not even hashable
            return self._check_tags(given)

    def _check_tags(self, given: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        for key, value in given:
            _check_tag_value(key, value)
        tags = {**self._default_tags, **dict(given)}
        if missing := [key for key in self._tag_keys if key not in tags]:
            raise ValueError(f"metric {self._name} needs a value for the tag keys {', '.join(missing)}")
        complete = tuple(sorted(tags.items()))
        if self._series is not None and len(self._tags_by_given) < self._series.limit:
            self._tags_by_given[given] = complete
        return complete


class Counter(_Metric):
    """A number that only grows: requests answered, bytes sent. Exported with the suffix `_total`."""

    _kind = "counter"

    def inc(self, value: float = 1.0, tags: Tags | None = None) -> None:
        """Add `value`, which must be a positive number (else TypeError or ValueError)."""
        if not isinstance(value, (int, float)):
            raise TypeError(f"value must be int or float, not {type(value).__name__}")
        if value <= 0:
            raise ValueError(f"a counter only grows: value must be positive, not {value}")
        key = self._tags(tags)
        if self._series is not None:
            self._series.add(key, value)


class Gauge(_Metric):
    """A number that goes up and down, of which the latest value counts: queue length, temperature."""

    _kind = "gauge"

    def set(self, value: float | None, tags: Tags | None = None) -> None:
        """Replace the value; None changes nothing. Raises TypeError for what is no number."""
        if value is None:
            return
        if not isinstance(value, (int, float)):
            raise TypeError(f"value must be int or float, not {type(value).__name__}")
        key = self._tags(tags)
        if self._series is not None:
            self._series.set(key, value)


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
        key = self._tags(tags)
        if self._series is not None:
            self._series.observe(key, value)

    def _definition(self) -> tuple[Any, ...]:
        return (self._name, self._description, self.boundaries, self._tag_keys)

    def _new_series(self) -> Series:
        boundaries = tuple(sorted(set(self.boundaries)))
        return REGISTRY.series(self._name, self._kind, self._description, boundaries)


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
