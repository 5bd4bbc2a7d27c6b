"""The decorator `@serve.batch`.

Lives here: what users write and call, arguments turned into lists. Does not: running batches (`running`).
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

from retinue.serve.batching.batcher import Batcher
from retinue.serve.batching.running import BatchRunner

# The loop of the replica, for batched functions that are called in its threads.
home_loop: asyncio.AbstractEventLoop | None = None


def set_home_loop(loop: asyncio.AbstractEventLoop | None) -> None:
    global home_loop
    home_loop = loop


def batch(
    _func: Callable[..., Any] | None = None,
    /,
    max_batch_size: int = 10,
    batch_wait_timeout_s: float = 0.01,
    max_concurrent_batches: int = 1,
    batch_size_fn: Callable[[list[Any]], int] | None = None,
) -> Callable[..., Any]:
    """Compute calls that come one by one together: the function gets lists, each caller its own result.

    For functions and methods, `async def` (run on the loop) or `def` (run in a thread). It returns a list as
    long as what it got, in which an exception instance fails its own caller; or it is an async generator of
    such lists, where StopIteration ends one caller's stream. A batch begins at once when none runs; while one
    runs, the next one grows.

    max_batch_size: of a batch, in items, or in what `batch_size_fn` returns for a list of items.
    batch_wait_timeout_s: how long a batch that could begin may wait to grow, in seconds.
    max_concurrent_batches: how many run at once.

    The decorated function has `set_max_batch_size`, `set_batch_wait_timeout_s`, `set_max_concurrent_batches`,
    and `get_...` for each. Calls whose caller has left, or whose deadline has passed, are in no batch. Raises
    TypeError and ValueError for options that make no sense.
    """
    settings = Settings(max_batch_size, batch_wait_timeout_s, max_concurrent_batches, batch_size_fn)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        return _wrap(function, settings)

    if _func is None:
        return decorate
    if not callable(_func):
        raise TypeError(f"@serve.batch decorates a function or method, not {_func!r}")
    return decorate(_func)


class Settings:
    """The options of one decorated function, and the batchers that follow them."""

    def __init__(
        self,
        max_batch_size: int,
        batch_wait_timeout_s: float,
        max_concurrent_batches: int,
        batch_size_fn: Callable[[list[Any]], int] | None,
    ) -> None:
        self.max_batch_size = _positive("max_batch_size", max_batch_size)
        self.batch_wait_timeout_s = _seconds(batch_wait_timeout_s)
        self.max_concurrent_batches = _positive("max_concurrent_batches", max_concurrent_batches)
        if batch_size_fn is not None and not callable(batch_size_fn):
            raise TypeError(f"batch_size_fn is a function or None, not {type(batch_size_fn).__name__}")
        self.batch_size_fn = batch_size_fn
        self._batchers: weakref.WeakSet[Batcher] = weakref.WeakSet()

    def __getstate__(self) -> tuple[Any, ...]:
        return self.max_batch_size, self.batch_wait_timeout_s, self.max_concurrent_batches, self.batch_size_fn

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def new_batcher(self) -> Batcher:
        size_of = self.batch_size_fn
        if size_of is not None:
            # Items are (args, kwargs) of calls; users count what they pass.
            count, size_of = size_of, lambda calls: count([_only(call) for call in calls])
        made = Batcher(self.max_batch_size, self.batch_wait_timeout_s, self.max_concurrent_batches, size_of)
        self._batchers.add(made)
        return made

    def set_max_batch_size(self, new_max_batch_size: int) -> None:
        self.max_batch_size = _positive("max_batch_size", new_max_batch_size)
        for each in self._batchers:
            each.max_batch_size = self.max_batch_size

    def set_batch_wait_timeout_s(self, new_batch_wait_timeout_s: float) -> None:
        self.batch_wait_timeout_s = _seconds(new_batch_wait_timeout_s)
        for each in self._batchers:
            each.wait_timeout_s = self.batch_wait_timeout_s

    def set_max_concurrent_batches(self, new_max_concurrent_batches: int) -> None:
        self.max_concurrent_batches = _positive("max_concurrent_batches", new_max_concurrent_batches)
        for each in self._batchers:
            each.max_concurrent_batches = self.max_concurrent_batches

    def get_max_batch_size(self) -> int:
        return self.max_batch_size

    def get_batch_wait_timeout_s(self) -> float:
        return self.batch_wait_timeout_s

    def get_max_concurrent_batches(self) -> int:
        return self.max_concurrent_batches


def _positive(name: str, value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is an integer, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} is at least 1, not {value}")
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"batch_wait_timeout_s is a number of seconds, not {value!r}")
    if not value >= 0:
        raise ValueError(f"batch_wait_timeout_s is at least 0, not {value}")
    return float(value)


def _only(call: Any) -> Any:
    """The one argument of a call, for batch_size_fn."""
    return call.args[0] if type(call) is Arguments and call.args else call


class Arguments:
    """A call's arguments, for functions of more than one."""

    __slots__ = ("args", "kwargs")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs


def _call_with_lists(function: Callable[..., Any], calls: list[Any]) -> Any:
    rows: list[Arguments] = calls
    first = rows[0]
    if any(len(row.args) != len(first.args) or row.kwargs.keys() != first.kwargs.keys() for row in rows):
        raise TypeError("calls in one batch were given different arguments")
    args = [[row.args[n] for row in rows] for n in range(len(first.args))]
    kwargs = {name: [row.kwargs[name] for row in rows] for name in first.kwargs}
    return function(*args, **kwargs)


def _is_method(function: Callable[..., Any]) -> bool:
    """Whether it is defined in the body of a class."""
    outer = getattr(function, "__qualname__", "").rpartition(".")[0]
    return bool(outer) and not outer.endswith("<locals>")


def _wrap(function: Callable[..., Any], settings: Settings) -> Callable[..., Any]:
    if inspect.isgeneratorfunction(function):
        raise TypeError("a batched function that generates is an async generator (`async def` with `yield`)")
    is_method = _is_method(function)
    is_plain = not (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function))
    name = f"__retinue_batch_{function.__qualname__}__"

    is_generator = inspect.isasyncgenfunction(function)
    has_one = len(inspect.signature(function).parameters) == 1 + is_method
    get_loop = asyncio.get_running_loop

    def new_runner(owner: Any) -> BatchRunner:
        target = functools.partial(function, owner) if is_method else function
        if is_plain:
            target = functools.partial(_in_thread, target)
        call = target if has_one else functools.partial(_call_with_lists, target)
        runner = BatchRunner(call, settings.new_batcher(), function.__qualname__, is_generator=is_generator)
        owner.__dict__[name] = runner
        return runner

    def split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[BatchRunner, Any]:
        owner: Any = wrapped
        if is_method:
            owner, args = args[0], args[1:]
        if has_one:
            if len(args) + len(kwargs) != 1:
                raise TypeError(f"{function.__qualname__}() takes one argument when it is called")
            item = args[0] if args else next(iter(kwargs.values()))
        else:
            item = Arguments(args, kwargs)
        runner = owner.__dict__.get(name)
        if runner is None or runner.loop is not get_loop():
            runner = new_runner(owner)
        return runner, item

    wrapped: Any
    if is_generator:

        @functools.wraps(function)
        async def call_stream(*args: Any, **kwargs: Any) -> Any:
            runner, item = split(args, kwargs)
            results = runner.results(item)
            try:
                async for result in results:
                    yield result
            finally:
                await results.aclose()  # type: ignore[attr-defined]

        wrapped = call_stream
    else:

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            runner, item = split(args, kwargs)
            entry = runner.add(item)
            try:
                return await entry.future
            except asyncio.CancelledError:
                runner.leave(entry)
                raise

        wrapped = _callable_anywhere(call, function) if is_plain else call
    for setting in ("max_batch_size", "batch_wait_timeout_s", "max_concurrent_batches"):
        for verb in ("set", "get"):
            setattr(wrapped, f"{verb}_{setting}", getattr(settings, f"{verb}_{setting}"))
    return wrapped  # type: ignore[no-any-return]


async def _in_thread(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Cancelled, it waits all the same: the batch is over, and the next may begin, when the code returns."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            try:
                await asyncio.wait({running})
            except asyncio.CancelledError:
                continue
        if not running.cancelled():
            running.exception()  # nobody is there to hear of it
        raise


def _callable_anywhere(call: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function stays callable from plain code, which blocks its thread; on a loop it is awaited."""

    @functools.wraps(function)
    def call_or_block(*args: Any, **kwargs: Any) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            if home_loop is None:
                raise RuntimeError(
                    f"{function.__qualname__} is batched: call it in a replica, or on a loop"
                ) from None
            return asyncio.run_coroutine_threadsafe(call(*args, **kwargs), home_loop).result()
        return call(*args, **kwargs)

    return call_or_block
