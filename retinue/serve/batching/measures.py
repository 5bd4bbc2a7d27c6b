"""Metrics of `@serve.batch` functions: 1 us a batch, nothing for its items.

Lives here: names and tags. Does not: batches (`running`).
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from retinue.serve.context import replica_tags
from retinue.serve.measures import Timings, add_source, counter, gauge
from retinue.util.metrics import Sample

if TYPE_CHECKING:
    from retinue.serve.batching.running import BatchRunner

_TAGS = ("function_name",)
SIZE_BOUNDARIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class BatchMeasures:
    """Of all batched functions of this process."""

    def __init__(self) -> None:
        self._size = Timings("serve_actual_batch_size", "Items of a batch", _TAGS, SIZE_BOUNDARIES)
        self._wait = Timings(
            "serve_batch_wait_time_seconds", "How long a batch's oldest item waited for it", _TAGS
        )
        self._execution = Timings("serve_batch_execution_time_seconds", "How long a batch ran", _TAGS)
        self._runners: weakref.WeakSet[BatchRunner] = weakref.WeakSet()

    def add(self, runner: BatchRunner) -> None:
        self._runners.add(runner)
        add_source(self._samples)

    def ran(self, key: tuple[str], size: int, wait_s: float, execution_s: float) -> None:
        """A batch is over. `key`: the function's name."""
        self._size.add(key, size)
        self._wait.add(key, wait_s)
        self._execution.add(key, execution_s)

    def _samples(self) -> list[Sample]:
        tags = replica_tags()
        found = [
            sample for each in (self._size, self._wait, self._execution) for sample in each.samples(tags)
        ]
        for (name,), count in self._size.counts().items():
            own = {**tags, "function_name": name}
            found.append(counter("serve_batches_processed", "Batches that have run", count, own))
        waiting: dict[str, int] = {}
        for runner in list(self._runners):
            waiting[runner.name] = waiting.get(runner.name, 0) + len(runner.batcher)
        for name, count in waiting.items():
            own = {**tags, "function_name": name}
            found.append(gauge("serve_batch_queue_length", "Items that wait for a batch", count, own))
        return found


measures = BatchMeasures()
