"""The bar that user code holds: a counter that tells the driver's manager how far it is.

In the driver it tells the manager directly; in a worker it prints a line that the driver's log printer
recognises (`wire`). Nothing here draws.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import retinue
from retinue.util.bars import manager, wire
from retinue.util.net import get_node_ip_address

DRIVER_INTERVAL_S = 0.1
WORKER_INTERVAL_S = 1.0


class tqdm:
    """A progress bar for use in the driver, in tasks and in actors; the driver draws all of them.

    Takes the most common arguments of `tqdm.tqdm`. States within `flush_interval_s` of the last one sent
    are left out (a second in workers, a tenth in the driver), except for the one that closes the bar.
    """

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        desc: str | None = None,
        total: float | None = None,
        unit: str | None = None,
        position: int | None = None,
        flush_interval_s: float | None = None,
    ) -> None:
        self.total = _length(iterable) if total is None else total
        self.n: float = 0
        self._iterable = iterable
        self._desc = desc or ""
        self._unit = unit or "it"
        self._position = position or 0
        self._uuid = uuid.uuid4().hex
        self._ip = get_node_ip_address()
        self._is_worker = _is_worker()
        default_s = WORKER_INTERVAL_S if self._is_worker else DRIVER_INTERVAL_S
        self._interval_s = default_s if flush_interval_s is None else flush_interval_s
        self._last_sent_s = float("-inf")
        self._is_closed = False

    def set_description(self, desc: str) -> None:
        """Replace the text before the bar."""
        self._desc = desc
        self.refresh()

    def update(self, n: float = 1) -> None:
        """Move the bar on by `n`."""
        self.n += n
        self.refresh()

    def refresh(self) -> None:
        """Send the state, unless the last one was sent just now."""
        if time.monotonic() - self._last_sent_s >= self._interval_s:
            self._send()

    def close(self) -> None:
        """Send the last state and end the bar. A second close does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._send()

    def __iter__(self) -> Iterator[Any]:
        """Yield the items of the iterable, count them, and close the bar at the end."""
        if self._iterable is None:
            raise ValueError("this bar was made without an iterable")
        with self:
            for item in self._iterable:
                yield item
                self.update(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self) -> None:
        self._last_sent_s = time.monotonic()
        if self._is_worker:
            # In one write, so that the line is not torn by what other threads print.
            sys.stdout.write(wire.encode(self._state()))
            sys.stdout.flush()
        else:
            manager.instance().draw(self._state())

    def _state(self) -> wire.BarState:
        return wire.BarState(
            uuid=self._uuid,
            ip=self._ip,
            pid=os.getpid(),
            pos=self._position,
            desc=self._desc,
            x=self.n,
            total=self.total,
            unit=self._unit,
            closed=self._is_closed,
        )


def _length(iterable: Any) -> float | None:
    try:
        return len(iterable)
    except TypeError:
        return None


def _is_worker() -> bool:
    if not retinue.is_initialized():
        return False
    context = retinue.get_runtime_context()
    return context.get_actor_id() is not None or context.get_task_id() is not None
