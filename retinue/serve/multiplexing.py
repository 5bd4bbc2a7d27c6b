"""`@serve.multiplexed`: many models in one replica, a few at a time, the least recently used one leaves.

Lives here: the decorator, the models of this process, and telling the routers which are here or on their way.
Does not: choosing a replica that holds the model (`routing`).
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from retinue.serve.context import find_replica_context, get_multiplexed_model_id, replica_tags
from retinue.serve.measures import Timings, add_source, counter, gauge
from retinue.util.metrics import Sample

logger = logging.getLogger("retinue.serve")

DEFAULT_MAX_MODELS = 3


class Registry:
    """All multiplexers of this process. `listener` hears (loaded, loading) at each change."""

    def __init__(self) -> None:
        self._multiplexers: weakref.WeakSet[Multiplexer] = weakref.WeakSet()
        self.gets = Timings(
            "serve_multiplexed_get_model_latency_seconds", "How long requests waited for their model", ()
        )
        self.loads = Timings(
            "serve_multiplexed_model_load_latency_seconds", "How long loading a model took", ()
        )
        self.unloads = Timings(
            "serve_multiplexed_model_unload_latency_seconds", "How long ending a model took", ()
        )
        self.listener: Callable[[Sequence[str], Sequence[str]], None] | None = None

    def add(self, multiplexer: Multiplexer) -> None:
        self._multiplexers.add(multiplexer)
        add_source(self._samples)

    def loaded(self) -> list[str]:
        return sorted({model_id for each in self._multiplexers for model_id in each.models})

    def loading(self) -> list[str]:
        return sorted({model_id for each in self._multiplexers for model_id in each.loading})

    def changed(self) -> None:
        if self.listener is not None:
            self.listener(self.loaded(), self.loading())

    def _samples(self) -> list[Sample]:
        tags = replica_tags()
        loaded = [model_id for each in list(self._multiplexers) for model_id in list(each.models)]
        found = [gauge("serve_num_multiplexed_models", "Models that are loaded", len(loaded), tags)]
        for model_id in loaded:
            name = "serve_registered_multiplexed_model_id"
            found.append(gauge(name, "1: the model is loaded", 1, {**tags, "model_id": model_id}))
        for name, text, times in (
            ("serve_multiplexed_get_model_requests_counter", "Requests for a model", self.gets),
            ("serve_multiplexed_models_load_counter", "Models loaded", self.loads),
            ("serve_multiplexed_models_unload_counter", "Models that left", self.unloads),
        ):
            found.append(counter(name, text, times.counts().get((), 0), tags))
            found += times.samples(tags)
        return found

    async def unload_all(self) -> None:
        """At the replica's end."""
        for multiplexer in list(self._multiplexers):
            await multiplexer.unload_all()


registry = Registry()


class Multiplexer:
    """The models that one loader function has made. On one event loop.

    Different models load at the same time, as far as there is room: a model that is being loaded takes a
    place of `max_models` (-1: no limit), and an old one leaves before it is loaded. Several requests for a
    model that is being loaded wait for that one load.
    """

    def __init__(self, load: Callable[[str], Any], max_models: int) -> None:
        self._load = load
        self._max_models = max_models
        self.models: OrderedDict[str, Any] = OrderedDict()  # the least recently used first
        self.loading: dict[str, asyncio.Task[Any]] = {}
        self._room = asyncio.Condition()
        registry.add(self)

    async def get(self, model_id: str) -> Any:
        """The model, loaded if it is not here. Raises what loading it raises: then the next request tries."""
        if not isinstance(model_id, str):
            raise TypeError(f"a model id is a string, not {type(model_id).__name__}")
        if not model_id:
            raise ValueError(
                "the request names no model: send the header serve_multiplexed_model_id, or use "
                "handle.options(multiplexed_model_id=...)"
            )
        if model_id in self.models:
            self.models.move_to_end(model_id)
            registry.gets.add((), 0.0)
            return self.models[model_id]
        began = time.monotonic()
        task = self.loading.get(model_id)
        if task is None:
            # A task of its own: the request that asked first may leave, and others wait for it too.
            task = self.loading[model_id] = asyncio.create_task(self._load_one(model_id))
            task.add_done_callback(_retrieve)
            registry.changed()
        model = await asyncio.shield(task)
        registry.gets.add((), time.monotonic() - began)
        return model

    async def _load_one(self, model_id: str) -> Any:
        try:
            async with self._room:
                await self._room.wait_for(lambda: self._is_first_to_load(model_id))
            while self.models and len(self.models) + self._loading_now() > self._max_models > 0:
                await self._unload_oldest()
            began = time.monotonic()
            model = await self._load(model_id)
            registry.loads.add((), time.monotonic() - began)
            self.models[model_id] = model
            return model
        finally:
            del self.loading[model_id]
            registry.changed()
            async with self._room:
                self._room.notify_all()

    def _is_first_to_load(self, model_id: str) -> bool:
        """No more models are loaded at once than there are places."""
        return self._max_models <= 0 or model_id in list(self.loading)[: self._max_models]

    def _loading_now(self) -> int:
        return min(len(self.loading), self._max_models)

    async def _unload_oldest(self) -> None:
        model_id, model = self.models.popitem(last=False)
        registry.changed()
        began = time.monotonic()
        await _end(model_id, model)
        registry.unloads.add((), time.monotonic() - began)

    async def unload_all(self) -> None:
        while self.models:
            await self._unload_oldest()


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Its error is for those who wait; if nobody does, nobody needs to hear of it."""
    if not task.cancelled():
        task.exception()


async def _end(model_id: str, model: Any) -> None:
    """Run the model's `__del__` now, and not again when the object goes."""
    destructor = getattr(type(model), "__del__", None)
    if destructor is None:
        return
    try:
        if inspect.iscoroutinefunction(destructor):
            await destructor(model)
        else:
            await asyncio.to_thread(destructor, model)
    except Exception:
        logger.exception("unloading model %r failed", model_id)
    # Python would call it a second time at the end of the object: an empty class takes its place.
    try:
        model.__class__ = type(type(model).__name__, (type(model),), {"__del__": _nothing, "__slots__": ()})
    except TypeError:
        logger.debug("the destructor of model %r will be called again", model_id)


def _nothing(_: object) -> None:
    pass


def multiplexed(
    func: Callable[..., Any] | None = None, max_num_models_per_replica: int = DEFAULT_MAX_MODELS
) -> Callable[..., Any]:
    """Make an `async def` that loads the model of an id one that keeps the models it has loaded.

    For a method `(self, model_id)` or a function `(model_id)`. Each replica holds at most
    `max_num_models_per_replica` models (-1: any number); the least recently used one makes room, and its
    `__del__` (also `async`) is run. Called without an id, it takes that of the request
    (`get_multiplexed_model_id`). Raises TypeError for what is not such a function, ValueError for a number
    that is 0 or less than -1.
    """
    if isinstance(max_num_models_per_replica, bool) or not isinstance(max_num_models_per_replica, int):
        raise TypeError(
            f"max_num_models_per_replica is an int, not {type(max_num_models_per_replica).__name__}"
        )
    if max_num_models_per_replica != -1 and max_num_models_per_replica < 1:
        raise ValueError(f"max_num_models_per_replica is positive, or -1; not {max_num_models_per_replica}")

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        return _wrap(function, max_num_models_per_replica)

    return decorate if func is None else decorate(func)


def _wrap(function: Callable[..., Any], max_models: int) -> Callable[..., Any]:
    if not callable(function):
        raise TypeError(f"@serve.multiplexed decorates a function or method, not {function!r}")
    if not inspect.iscoroutinefunction(function):
        raise TypeError("@serve.multiplexed decorates `async def` functions and methods")
    parameters = list(inspect.signature(function).parameters)
    if not 1 <= len(parameters) <= 2:
        raise TypeError("@serve.multiplexed decorates functions of one argument, the model id")
    is_method = len(parameters) == 2
    name = f"__retinue_multiplexer_{function.__qualname__}__"

    @functools.wraps(function)
    async def get_model(*args: Any, **kwargs: Any) -> Any:
        owner, args = (args[0], args[1:]) if is_method else (get_model, args)
        given = kwargs.pop(parameters[-1], None) if kwargs else None
        if len(args) + bool(kwargs) > 1 or (args and given is not None):
            raise TypeError(f"{function.__name__}() takes one argument, the model id")
        model_id = args[0] if args else given
        multiplexer = owner.__dict__.get(name)
        if multiplexer is None:
            if find_replica_context() is None:
                logger.debug("%s is used outside of a replica", function.__name__)
            load = functools.partial(function, owner) if is_method else function
            multiplexer = owner.__dict__[name] = Multiplexer(load, max_models)
        return await multiplexer.get(get_multiplexed_model_id() if model_id is None else model_id)

    return get_model
