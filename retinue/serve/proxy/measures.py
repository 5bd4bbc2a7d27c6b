"""Counts and times of requests at the proxy, as Prometheus metrics.

Measured: 0.4 us a request. Lives here: the metrics' names and tags. Does not: adding processes up (the node
agent and the admin server).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from retinue.serve.measures import Timings, add_source, counter, gauge, remove_source
from retinue.util.metrics import Sample

_TAGS = ("route", "method", "application", "status_code")


class Measured(Protocol):
    """A request, as far as it is counted."""

    route: str
    method: str
    app_name: str


class RequestMeasures:
    """What one proxy counts of one protocol ("http" or "grpc"), from now until `close`."""

    def __init__(self, protocol: str = "http") -> None:
        self._protocol = protocol
        self._latency = Timings(
            f"serve_{protocol}_request_latency_seconds",
            f"From a {protocol} request's arrival to the last byte of its answer",
            _TAGS,
        )
        self._first_chunk = Timings(
            f"serve_{protocol}_time_to_first_chunk_seconds",
            f"From a {protocol} request's arrival to the first chunk of its streamed answer",
            ("route", "method", "application"),
        )
        self.ongoing: Callable[[], int] | None = None
        self.open_connections: Callable[[], int] | None = None
        add_source(self._samples)

    def finished(self, passage: Measured, status: int | str, seconds: float) -> None:
        """`status`: of HTTP, or the name of gRPC's."""
        self._latency.add((passage.route, passage.method, passage.app_name, status), seconds)

    def first_chunk(self, passage: Measured, seconds: float) -> None:
        """A streamed answer has begun, `seconds` after the request came."""
        self._first_chunk.add((passage.route, passage.method, passage.app_name), seconds)

    def close(self) -> None:
        remove_source(self._samples)

    def _samples(self) -> list[Sample]:
        protocol = self._protocol
        found = [*self._latency.samples(), *self._first_chunk.samples()]
        for key, count in self._latency.counts().items():
            tags = dict(zip(_TAGS, map(str, key), strict=True))
            name = f"serve_num_{protocol}_requests"
            found.append(counter(name, f"{protocol} requests answered, by status code", count, tags))
            if _is_error(key[-1]):
                name = f"serve_num_{protocol}_error_requests"
                text = f"{protocol} requests answered with an error of the client's or the server's"
                found.append(counter(name, text, count, tags))
        if self.ongoing is not None:
            name = f"serve_num_ongoing_{protocol}_requests"
            text = f"{protocol} requests that the proxy is answering"
            found.append(gauge(name, text, self.ongoing(), {}))
        if self.open_connections is not None:
            name = f"serve_num_open_{protocol}_connections"
            found.append(gauge(name, "Connections of clients", self.open_connections(), {}))
        return found


def _is_error(status: int | str) -> bool:
    return status not in ("OK", "") if isinstance(status, str) else status >= 400
