"""Show how many of some references are ready while their results are used.

`progress` is on top of `wait` and of the bars in `bars`; it works in the driver, in tasks and in actors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import retinue
from retinue.util.bars.bar import tqdm


class progress(tqdm):
    """Iterate over results as they become ready, with a progress bar.

        for score in progress(refs, desc="trials"):             # the values, as they are ready
            ...
        for score in progress(as_completed(refs, chunk_size=1), total=len(refs)):    # any other iterable
            ...
        with progress(total=len(refs)) as bar:                  # a loop of one's own
            while refs:
                ready, refs = retinue.wait(refs)
                bar.update(len(ready))

    Given a list of ObjectRefs, it yields their values in the order in which they become ready (the
    references themselves with `yield_obj_refs`), and the bar counts what is ready, which may be ahead of
    what was yielded. An error that a value stands for is raised in its turn. Leaving the loop early closes
    the bar; what runs goes on.
    """

    def __init__(
        self,
        refs: Iterable[Any] | None = None,
        desc: str | None = None,
        total: float | None = None,
        unit: str | None = None,
        *,
        yield_obj_refs: bool = False,
        flush_interval_s: float | None = None,
    ) -> None:
        super().__init__(refs, desc, total, unit, flush_interval_s=flush_interval_s)
        self._yield_obj_refs = yield_obj_refs

    def __iter__(self) -> Iterator[Any]:
        """Yield the results, count them, and close the bar at the end."""
        refs = self._iterable
        if not isinstance(refs, (list, tuple)) or not all(isinstance(r, retinue.ObjectRef) for r in refs):
            return super().__iter__()
        return self._as_ready(list(refs))

    def _as_ready(self, waiting: list[Any]) -> Iterator[Any]:
        with self:
            self.refresh()
            while waiting:
                ready, waiting = _wait_for_all_that_are_ready(waiting)
                self.update(len(ready))
                for ref in ready:
                    yield ref if self._yield_obj_refs else retinue.get(ref)


def _wait_for_all_that_are_ready(refs: list[Any]) -> tuple[list[Any], list[Any]]:
    """Wait for one, then take all: a call for each would make a list of n cost n * n."""
    first, rest = retinue.wait(refs, num_returns=1)
    if not rest:
        return first, rest
    more, rest = retinue.wait(rest, num_returns=len(rest), timeout=0)
    return first + more, rest
