"""The interface of `multiprocessing.Pool`, on a crew of actors."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, NoReturn, Self

import retinue
from retinue.util.debug import log_once
from retinue.util.multiprocessing.crew import Chunk, Crew
from retinue.util.multiprocessing.results import (
    AsyncResult,
    Callback,
    Deliver,
    IMapIterator,
    OrderedIMapIterator,
    UnorderedIMapIterator,
)
from retinue.util.multiprocessing.worker import Call

logger = logging.getLogger(__name__)

# With as many chunks as this for each process, a slow chunk holds up a quarter of a process's share at most.
CHUNKS_PER_PROCESS = 4
# Of imap: one chunk that runs, and one at hand for when it is done, whatever the caller is doing then.
WINDOW_PER_PROCESS = 2

Function = Callable[..., Any]


class Pool:
    """A pool of worker processes, each an actor, to run functions in parallel. Drop-in for the standard one.

    `processes` defaults to the CPUs of the cluster, which must have that many. `initializer(*initargs)`
    runs in each process first. `maxtasksperchild` is the number of chunks of work after which a process is
    replaced by a fresh one. `context` is accepted and ignored. `ray_address` is where to connect if this
    process is not connected yet, `ray_remote_args` are options of the actors (which need no CPU unless they
    say so); both are also taken under the names `address` and `remote_args`.

    Leaving the pool's `with` block terminates it, as in the standard library.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Function | None = None,
        initargs: Iterable[Any] | None = None,
        maxtasksperchild: int | None = None,
        context: Any = None,
        ray_address: str | None = None,
        ray_remote_args: dict[str, Any] | None = None,
        *,
        address: str | None = None,
        remote_args: dict[str, Any] | None = None,
    ) -> None:
        if context is not None and log_once("retinue.util.multiprocessing: context"):
            logger.warning("Pool ignores context=: its processes are actors, set up by the cluster")
        self._processes = _connect(processes, ray_address or address)
        self._crew = Crew(
            processes=self._processes,
            chunks_per_worker=maxtasksperchild or None,
            initializer=initializer,
            initargs=initargs or (),
            actor_options={**(ray_remote_args or {}), **(remote_args or {})},
        )
        self._crew.start()

    def apply(
        self, func: Function, args: Iterable[Any] | None = None, kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func(*args, **kwargs)` in one of the processes and return its result."""
        return self.apply_async(func, args, kwargs).get()

    def apply_async(
        self,
        func: Function,
        args: Iterable[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> AsyncResult:
        """Do as `apply`, without waiting; `callback` gets the result, `error_callback` the exception."""
        self._check_running()
        result = AsyncResult(num_chunks=1, is_single=True, callback=callback, error_callback=error_callback)
        item = (tuple(args or ()), dict(kwargs or {}))
        self._submit(func, [item], Call.FULL, lambda outcomes: result.deliver(0, outcomes))
        return self._keep_for(result)

    def map(self, func: Function, iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """Return `[func(item) for item in iterable]`, run by all processes in chunks of `chunksize` items."""
        return list(self.map_async(func, iterable, chunksize).get())

    def map_async(
        self,
        func: Function,
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> AsyncResult:
        """Do as `map`, without waiting; `callback` gets the list, `error_callback` the first exception."""
        return self._map_async(func, iterable, Call.ONE, chunksize, callback, error_callback)

    def starmap(self, func: Function, iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """Return `[func(*item) for item in iterable]`, run as by `map`."""
        return list(self.starmap_async(func, iterable, chunksize=chunksize).get())

    def starmap_async(
        self,
        func: Function,
        iterable: Iterable[Any],
        callback: Callback | None = None,
        error_callback: Callback | None = None,
        *,
        chunksize: int | None = None,
    ) -> AsyncResult:
        """Do as `starmap`, without waiting; the callbacks are those of `map_async`."""
        return self._map_async(func, iterable, Call.STAR, chunksize, callback, error_callback)

    def imap(self, func: Function, iterable: Iterable[Any], chunksize: int | None = 1) -> Iterator[Any]:
        """Iterate over `func(item)` in order, reading `iterable` only as results are taken.

        Two chunks for each process are on their way at a time. `next(timeout)` of the iterator waits for so
        many seconds at most.
        """
        return self._imap(OrderedIMapIterator, func, iterable, chunksize)

    def imap_unordered(
        self, func: Function, iterable: Iterable[Any], chunksize: int | None = 1
    ) -> Iterator[Any]:
        """Do as `imap`, with the results in the order in which chunks finish."""
        return self._imap(UnorderedIMapIterator, func, iterable, chunksize)

    def close(self) -> None:
        """Accept no further work; the processes end when what was submitted is done."""
        self._crew.close()

    def terminate(self) -> None:
        """End the processes now; results that are not ready raise PoolTerminatedError."""
        self._crew.terminate()

    def join(self) -> None:
        """Wait until the processes have ended; `close` or `terminate` first, else ValueError."""
        if not self._crew.is_closed:
            raise ValueError("Pool is still running")
        self._crew.join()

    def __enter__(self) -> Self:
        self._check_running()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()

    def __del__(self) -> None:
        crew = getattr(self, "_crew", None)  # none, if the constructor raised
        if crew is not None and crew.is_started and not crew.is_closed:
            crew.abandon()
            warnings.warn(f"unclosed running pool {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __reduce__(self) -> NoReturn:
        raise NotImplementedError("a Pool cannot be sent to another process: make one there")

    def _check_running(self) -> None:
        if self._crew.is_closed:
            raise ValueError("Pool not running")

    def _map_async(
        self,
        func: Function,
        iterable: Iterable[Any],
        call: Call,
        chunksize: int | None,
        callback: Callback | None,
        error_callback: Callback | None,
    ) -> AsyncResult:
        self._check_running()
        items = list(iterable)
        size = _checked(chunksize) or self._chunksize(len(items))
        chunks = [items[start : start + size] for start in range(0, len(items), size)]
        result = AsyncResult(num_chunks=len(chunks), callback=callback, error_callback=error_callback)
        function = retinue.put(func) if len(chunks) > 1 else func
        for index, chunk in enumerate(chunks):
            self._submit(function, chunk, call, _deliver_to(result, index))
        return self._keep_for(result)

    def _imap(
        self, kind: type[IMapIterator], func: Function, iterable: Iterable[Any], chunksize: int | None
    ) -> IMapIterator:
        self._check_running()
        size = _checked(chunksize) or (self._chunksize(len(iterable)) if isinstance(iterable, Sized) else 1)
        function = retinue.put(func)

        def submit(chunk: list[Any], deliver: Deliver) -> None:
            self._submit(function, chunk, Call.ONE, deliver)

        return kind(submit, iterable, chunksize=size, window=WINDOW_PER_PROCESS * self._processes)

    def _submit(self, function: Any, items: list[Any], call: Call, deliver: Deliver) -> None:
        self._crew.submit(Chunk(function, items, call, deliver))

    def _chunksize(self, num_items: int) -> int:
        return max(1, -(-num_items // (self._processes * CHUNKS_PER_PROCESS)))

    def _keep_for(self, result: AsyncResult) -> AsyncResult:
        """Keep the pool while somebody may wait for the result: a pool that is let go of terminates."""
        result.pool = self
        return result


def _deliver_to(result: AsyncResult, index: int) -> Deliver:
    return lambda outcomes: result.deliver(index, outcomes)


def _checked(chunksize: int | None) -> int | None:
    if chunksize is not None and chunksize < 1:
        raise ValueError(f"chunksize must be at least 1, not {chunksize}")
    return chunksize


def _connect(processes: int | None, address: str | None) -> int:
    """Connect if need be, and return how many processes to start."""
    if processes is not None and processes <= 0:
        raise ValueError(f"a pool needs at least one process, not {processes}")
    if not retinue.is_initialized():
        _init(address or os.environ.get("RETINUE_ADDRESS") or "auto", processes)
    cpus = int(retinue.cluster_resources().get("CPU", 0))
    if processes is None:
        processes = max(cpus, 1)
    if processes > cpus:
        raise ValueError(f"a pool of {processes} processes was asked for, and the cluster has {cpus} CPUs")
    return processes


def _init(address: str, processes: int | None) -> None:
    """Connect to the cluster at `address`; a cluster of our own gets as many CPUs as processes are wanted."""
    if address == "auto":
        try:
            retinue.init(address="auto")
            return
        except ConnectionError:
            address = "local"
    if address == "local":
        retinue.init(address="local", num_cpus=processes)
    else:
        retinue.init(address=address)
