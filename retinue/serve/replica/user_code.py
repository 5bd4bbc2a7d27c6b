"""The user's class or function: making it, finding its methods, calling them the way each wants.

`async def` runs on the loop, plain `def` in a thread, generators of both kinds become async iterators.

Lives here: that. Does not: requests and answers (`http`, `asgi`, `calls`).
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

from retinue.serve.ingress import MARK as INGRESS_MARK
from retinue.serve.messages import DeploymentSpec
from retinue.serve.payload import loads
from retinue.serve.replica.threads import ThreadIterator, ThreadPool

ASYNC, ASYNC_GENERATOR, SYNC, SYNC_GENERATOR = range(4)


class Method:
    """A method that requests may name: what to call, and how."""

    __slots__ = ("function", "kind", "name", "takes_arguments")

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self.function = function
        self.kind = kind_of(function)
        self.takes_arguments = _takes_arguments(function)


def kind_of(function: Callable[..., Any]) -> int:
    """How it is to be called. Objects with `__call__` are judged by that."""
    while isinstance(function, functools.partial):
        function = function.func
    candidates = [function]
    if not inspect.isroutine(function):
        candidates.append(type(function).__call__)
    for candidate in candidates:
        if inspect.iscoroutinefunction(candidate):
            return ASYNC
        if inspect.isasyncgenfunction(candidate):
            return ASYNC_GENERATOR
        if inspect.isgeneratorfunction(candidate):
            return SYNC_GENERATOR
    return SYNC


def _takes_arguments(function: Callable[..., Any]) -> bool:
    try:
        return bool(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return True  # written in C


class UserCode:
    """One instance of the user's class, or its function."""

    def __init__(self, spec: DeploymentSpec, pool: ThreadPool) -> None:
        self.spec = spec
        self.pool = pool
        self.instance: Any = None
        self._methods: dict[str, Method] = {}
        self._is_ended = False

    async def construct(self) -> None:
        """Load the definition and run its constructor, here on the loop. Raises whatever that raises."""
        for path in reversed(self.spec.sys_path):
            if path not in sys.path:
                sys.path.insert(0, path)
        definition = loads(self.spec.definition)
        args, kwargs = loads(self.spec.init_args) if self.spec.init_args else ((), {})
        if not inspect.isclass(definition):
            self.instance = definition
            return
        if inspect.iscoroutinefunction(definition.__init__):
            # As `type.__call__` does it, but for the await: `__init__` may not return a coroutine there.
            instance = definition.__new__(definition, *args, **kwargs)
            await definition.__init__(instance, *args, **kwargs)
        else:
            instance = definition(*args, **kwargs)
        self.instance = instance

    def method(self, name: str) -> Method:
        """Raises AttributeError, naming those that there are."""
        method = self._methods.get(name)
        if method is None:
            method = self._methods[name] = self._find(name)
        return method

    def _find(self, name: str) -> Method:
        instance = self.instance
        if inspect.isroutine(instance) and name == "__call__":
            return Method(getattr(instance, "__name__", name), instance)
        function = getattr(instance, name, None)
        if not callable(function):
            there = [n for n, f in inspect.getmembers(type(instance), callable) if not n.startswith("_")]
            if callable(instance):
                there.insert(0, "__call__")
            raise AttributeError(
                f"deployment {self.spec.name!r} has no method {name!r} (it has: {', '.join(there) or 'none'})"
            )
        return Method(name, function)

    def hook(self, name: str) -> Method | None:
        """A method that the user may have written for serve to call, such as `check_health`."""
        if inspect.isroutine(self.instance) or not callable(getattr(self.instance, name, None)):
            return None
        return self.method(name)

    def make_app(self) -> Any:
        """The ASGI application of an ingress class; None of others."""
        ingress = getattr(self.instance, INGRESS_MARK, None)
        return None if ingress is None else ingress.make(self.instance)

    async def run(
        self,
        method: Method,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        pool: ThreadPool | None = None,
    ) -> Any:
        """Call it, in a thread of `pool` if it is plain. What generates comes back as an async iterator."""
        function = method.function
        if method.kind == ASYNC:
            return self.adapt(await function(*args, **(kwargs or {})))
        if method.kind == ASYNC_GENERATOR:
            return function(*args, **(kwargs or {}))
        call = functools.partial(function, *args, **(kwargs or {}))
        if method.kind == SYNC_GENERATOR:
            return ThreadIterator(self.pool, call)
        result = await (pool or self.pool).run(call)
        if inspect.isawaitable(result):
            result = await result
        return self.adapt(result)

    def adapt(self, result: Any) -> Any:
        """A plain generator that was returned runs in a thread, like one that is called."""
        return ThreadIterator(self.pool, lambda: result) if inspect.isgenerator(result) else result

    async def end(self) -> None:
        """Run the user's `__del__`, once; it may be `async def`."""
        if self._is_ended or self.instance is None:
            return
        self._is_ended = True
        destructor = getattr(type(self.instance), "__del__", None)
        if destructor is None:
            return
        try:
            result = destructor(self.instance)
            if inspect.isawaitable(result):
                await result
        finally:
            # Else it would be run again when the instance goes.
            try:
                type(self.instance).__del__ = lambda _: None
            except (AttributeError, TypeError):
                pass  # a class written in C: it minds itself


def is_stream(result: Any) -> bool:
    """Whether user code answered with items."""
    return isinstance(result, ThreadIterator) or inspect.isasyncgen(result)


async def close(items: AsyncIterator[Any]) -> None:
    """Close what may be a generator."""
    aclose = getattr(items, "aclose", None)
    if aclose is not None:
        await aclose()
