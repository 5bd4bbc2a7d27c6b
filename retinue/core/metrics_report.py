"""Tell the node agent this process's metrics, if user code has any.

Lives here: when, and what. Does not: the metrics (`retinue.util.metrics`, which core never imports: it looks
whether user code has), or putting processes together (`core.admin.metrics`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from retinue.core.wire.messages import MetricsReport

if TYPE_CHECKING:
    from retinue.core.client.runtime import Runtime

METRICS_MODULE = "retinue.util.metrics"
INTERVAL_S = 2.0
# An agent keeps the last report of each of its processes: no more than a frame for each.
MAX_REPORT_BYTES = 256 * 1024


class MetricsReporter:
    """`tick` it from the process's I/O thread: `runtime.tickers.append(MetricsReporter.of(runtime).tick)`."""

    def __init__(self, send: Callable[[MetricsReport, bytes], None]) -> None:
        self._send = send
        self._next = 0.0
        self._last = b""

    @classmethod
    def of(cls, runtime: Runtime) -> MetricsReporter:
        def send(message: MetricsReport, payload: bytes) -> None:
            if runtime.agent is not None:
                runtime.agent.send(message, payload)

        return cls(send)

    def tick(self, now: float) -> float:
        """Report what has changed, at most every 2 s. Returns when to call again."""
        if METRICS_MODULE not in sys.modules:
            return INTERVAL_S
        if now >= self._next:
            self._next = now + INTERVAL_S
            self.report()
        return self._next - now

    def report(self) -> None:
        """Report now (also at the end of a process)."""
        module = sys.modules.get(METRICS_MODULE)
        snapshot = getattr(module, "snapshot", None)
        if snapshot is None:
            return  # never imported, or being imported just now
        payload = encode(snapshot())
        if payload != self._last:
            self._last = payload
            self._send(MetricsReport(), payload)


def encode(samples: list[dict[str, object]]) -> bytes:
    """The samples, or as many as fit into one report."""
    payload = msgspec.msgpack.encode(samples)
    while len(payload) > MAX_REPORT_BYTES:
        samples = samples[: len(samples) // 2]
        payload = msgspec.msgpack.encode(samples)
    return payload
