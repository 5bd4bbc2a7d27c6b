"""Metrics of users' deployments: those of `retinue.util.metrics`, which say where they were recorded.

Within a replica each series has the tags `application`, `deployment` and `replica`, and `route` while a
request of HTTP or gRPC is being answered; outside of replicas none of them.

Lives here: those tags. Does not: values and their export (`retinue.util.metrics`).
"""

from __future__ import annotations

from typing import Any

from retinue.serve.context import find_replica_context, request_context
from retinue.util import metrics

__all__ = ["Counter", "Gauge", "Histogram"]

Tags = dict[str, str]

REPLICA_TAGS = ("application", "deployment", "replica", "route")


class _InReplica(metrics._Metric):
    """What the three classes share: the tags of the replica, and of the running request's route."""

    _has_replica = False

    def _add_replica_tags(self) -> None:
        if find_replica_context() is not None:
            self._has_replica = True
            self._tag_keys = (*self._tag_keys, *(t for t in REPLICA_TAGS if t not in self._tag_keys))
        self.set_default_tags({})

    def set_default_tags(self, default_tags: Tags) -> Any:
        """Use these tags wherever a record does not give its own; return the metric itself.

        The replica's tags stay. Raises ValueError for a key that is not among `tag_keys`, TypeError for a
        value that is no str.
        """
        replica = find_replica_context()
        if not self._has_replica or replica is None:
            return super().set_default_tags(default_tags)
        own = {
            "application": replica.app_name,
            "deployment": replica.deployment,
            "replica": replica.replica_tag,
            "route": "",
        }
        return super().set_default_tags({**own, **default_tags})

    def _here(self, tags: Tags | None) -> Tags | None:
        if self._has_replica and (route := request_context.get().route):
            return {"route": route, **(tags or {})}
        return tags

    def __reduce__(self) -> tuple[Any, ...]:
        if not self._has_replica:
            return super().__reduce__()
        *others, tag_keys = self._definition()
        given = tuple(t for t in tag_keys if t not in REPLICA_TAGS)
        defaults = {k: v for k, v in self._default_tags.items() if k in given}
        return _rebuild, (type(self), (*others, given), defaults)


def _rebuild(cls: type[_InReplica], definition: tuple[Any, ...], default_tags: Tags) -> _InReplica:
    metric = cls(*definition)
    metric.set_default_tags(default_tags)
    return metric


class Counter(_InReplica, metrics.Counter):
    """A number that only grows. Exported with the suffix `_total`."""

    def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] | None = None) -> None:
        super().__init__(name, description, tag_keys)
        self._add_replica_tags()

    def inc(self, value: float = 1.0, tags: Tags | None = None) -> None:
        """Add `value`, which must be a positive number (else TypeError or ValueError)."""
        super().inc(value, self._here(tags))


class Gauge(_InReplica, metrics.Gauge):
    """A number that goes up and down, of which the latest value counts."""

    def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] | None = None) -> None:
        super().__init__(name, description, tag_keys)
        self._add_replica_tags()

    def set(self, value: float | None, tags: Tags | None = None) -> None:
        """Replace the value; None changes nothing. Raises TypeError for what is no number."""
        super().set(value, self._here(tags))


class Histogram(_InReplica, metrics.Histogram):
    """How often values fell into each of some ranges, and their sum. `boundaries`: inclusive upper limits."""

    def __init__(
        self,
        name: str,
        description: str = "",
        boundaries: list[float] | None = None,
        tag_keys: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(name, description, boundaries, tag_keys)
        self._add_replica_tags()

    def observe(self, value: float, tags: Tags | None = None) -> None:
        """Count `value` in its range. Raises TypeError for what is no number."""
        super().observe(value, self._here(tags))
