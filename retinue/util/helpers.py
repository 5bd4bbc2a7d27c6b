"""Take the results of many references as they become ready.

Lives here: `as_completed` over references that exist, `map_unordered` that also submits, with
back-pressure. Both are loops over `wait` and `get` in the caller's thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import retinue

DEFAULT_CHUNK_SIZE = 10
DEFAULT_BACKPRESSURE_SIZE = 100


def as_completed(
    refs: Sequence[Any],
    *,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    yield_obj_refs: bool = False,
    **kwargs: Any,
) -> Iterator[Any]:
    """Yield the values of `refs` as they become ready, waiting for up to `chunk_size` of them at a time.

    Within one chunk the order is that of `refs`. `yield_obj_refs` yields the ready references instead of
    their values. Further keywords (`timeout`, `fetch_local`) go to `retinue.wait`; a `timeout` in seconds
    bounds each wait, and what is not ready by then is simply waited for again. Raises ValueError for a
    `chunk_size` below one, and for `num_returns`, which `chunk_size` replaces.
    """
    _check(chunk_size, kwargs)
    waiting = list(refs)
    while waiting:
        chunk, waiting = _next_chunk(waiting, chunk_size, yield_obj_refs, kwargs)
        yield from chunk


def map_unordered(
    fn: Any,
    items: Iterable[Any],
    *,
    backpressure_size: int | None = DEFAULT_BACKPRESSURE_SIZE,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    yield_obj_refs: bool = False,
    **kwargs: Any,
) -> Iterator[Any]:
    """Call the remote function `fn` on each item and yield the results as they become ready.

    `items` is consumed lazily: while `backpressure_size` calls are in flight (None: without bound) the
    next item is taken only after a chunk of results came back. The other arguments are those of
    `as_completed`. Raises ValueError for sizes below one.
    """
    if backpressure_size is not None and backpressure_size <= 0:
        raise ValueError(f"backpressure_size must be positive or None, not {backpressure_size}")
    _check(chunk_size, kwargs)
    in_flight: list[Any] = []
    for item in items:
        in_flight.append(fn.remote(item))
        if backpressure_size is not None and len(in_flight) >= backpressure_size:
            chunk, in_flight = _next_chunk(in_flight, chunk_size, yield_obj_refs, kwargs)
            yield from chunk
    yield from as_completed(in_flight, chunk_size=chunk_size, yield_obj_refs=yield_obj_refs, **kwargs)


def _check(chunk_size: int, wait_kwargs: dict[str, Any]) -> None:
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
    if "num_returns" in wait_kwargs:
        raise ValueError("num_returns is not accepted here: give chunk_size instead")


def _next_chunk(
    refs: list[Any], chunk_size: int, yield_obj_refs: bool, wait_kwargs: dict[str, Any]
) -> tuple[list[Any], list[Any]]:
    ready, waiting = retinue.wait(refs, num_returns=min(chunk_size, len(refs)), **wait_kwargs)
    return (ready if yield_obj_refs else retinue.get(ready)), waiting
