"""Counts and times of requests at the proxy, as Prometheus metrics.

Lives here: the metrics' names and tags. Does not: adding processes up (the node agent and the admin server).
"""

from __future__ import annotations

from retinue.serve.proxy.requests import Passage
from retinue.util.metrics import Counter, Histogram

LATENCY_BOUNDARIES_S = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 600,
]  # fmt: skip
_TAGS = ("route", "method", "application", "status_code")


class RequestMeasures:
    """What one proxy counts of one protocol ("http" or "grpc"). 1 us a request."""

    def __init__(self, protocol: str = "http") -> None:
        self._requests = Counter(
            f"serve_num_{protocol}_requests", f"{protocol} requests answered, by status code", tag_keys=_TAGS
        )
        self._errors = Counter(
            f"serve_num_{protocol}_error_requests",
            f"{protocol} requests answered with an error of the client's or the server's",
            tag_keys=_TAGS,
        )
        self._latency = Histogram(
            f"serve_{protocol}_request_latency_seconds",
            f"from a {protocol} request's arrival to the last byte of its answer",
            boundaries=LATENCY_BOUNDARIES_S,
            tag_keys=_TAGS,
        )
        self._tags: dict[tuple[str, str, str, int], dict[str, str]] = {}

    def finished(self, passage: Passage, status: int, seconds: float) -> None:
        key = (passage.route, passage.method, passage.app_name, status)
        tags = self._tags.get(key)
        if tags is None:
            if len(self._tags) > 10_000:  # methods are the client's words
                self._tags.clear()
            tags = self._tags[key] = dict(zip(_TAGS, map(str, key), strict=True))
        self._requests.inc(1, tags)
        self._latency.observe(seconds, tags)
        if status >= 400:
            self._errors.inc(1, tags)
