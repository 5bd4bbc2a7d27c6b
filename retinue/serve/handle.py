"""Handles of deployments: how Python code calls them.

A call goes through the router of its deployment in this process. Code on the routers' own loop (in replicas)
starts it there, without a thread between; all other code hands it over to that loop.

Lives here: DeploymentHandle and what its calls give. Does not: which replica (`routing`), bytes (`payload`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Generic, NoReturn, Self, TypeVar

from retinue import ObjectRef
from retinue.serve.context import find_replica_context, request_context
from retinue.serve.exceptions import (
    RequestCancelledError,
    RetinueServeException,
)
from retinue.serve.messages import CallHead
from retinue.serve.payload import Forwarded, dump_call, loads
from retinue.serve.routing.names import DeploymentID
from retinue.serve.routing.process import RouterSet, routers
from retinue.serve.routing.router import RequestMeta, Router
from retinue.serve.routing.streams import RoutedStream

T = TypeVar("T")
R = TypeVar("R")

_SERIALIZATIONS = ("cloudpickle", "pickle")
_ON_LOOP = (
    "this is an asyncio event loop, which a blocking wait would stop; `await` the response instead (or "
    "iterate over a streamed one with `async for`)"
)
_request_ids = count()
_request_prefix = ""


def new_request_id() -> str:
    """Unique: a prefix of this process and a number (0.3 us; a uuid4 takes 3)."""
    global _request_prefix
    if not _request_prefix:
        _request_prefix = os.urandom(6).hex()
    return f"{_request_prefix}{next(_request_ids):08x}"


def _forget_prefix() -> None:
    global _request_prefix
    _request_prefix = ""


os.register_at_fork(after_in_child=_forget_prefix)


@dataclass(frozen=True, slots=True)
class _Options:
    method_name: str = "__call__"
    multiplexed_model_id: str = ""
    session_id: str = ""
    stream: bool = False


def _is_on_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


# --- calls under way


class _Call:
    """A call, running as a task of the routers' loop.

    `run` makes the coroutine whose result is the call's. Started on that loop it is a task at once; from
    other threads a concurrent future stands for it.
    """

    __slots__ = ("_future", "_routers", "_task", "is_cancelled", "is_local", "request_id")

    def __init__(
        self, routers: RouterSet, request_id: str, run: Callable[[], Coroutine[Any, Any, Any]]
    ) -> None:
        self.request_id = request_id
        self.is_cancelled = False
        self._routers = routers
        self._task: asyncio.Task[Any] | None = None
        self._future: concurrent.futures.Future[Any] | None = None
        self.is_local = _running_loop() is routers.loop
        if self.is_local:
            self._task = routers.loop.create_task(run())
            self._task.add_done_callback(_retrieve)
        else:
            self._future = concurrent.futures.Future()
            routers.loop.call_soon_threadsafe(self._start, run)

    def _start(self, run: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        future = self._future
        assert future is not None
        if not future.set_running_or_notify_cancel():
            return
        if self.is_cancelled:
            future.set_exception(RequestCancelledError(self.request_id))
            return
        self._task = self._routers.loop.create_task(run())
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        future = self._future
        assert future is not None
        if task.cancelled():
            future.set_exception(RequestCancelledError(self.request_id))
        elif (error := task.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(task.result())

    def cancel(self) -> None:
        self.is_cancelled = True
        if self.is_local and _running_loop() is self._routers.loop:
            assert self._task is not None
            self._task.cancel()
        elif not self._routers.loop.is_closed():
            self._routers.loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def outcome(self) -> Any:
        """The result, if it is there; for the routers' loop."""
        task = self._task
        if task is None or not task.done() or task.cancelled() or task.exception() is not None:
            return None
        return task.result()

    def __await__(self) -> Generator[Any, None, Any]:
        """The result. Cancelling whoever awaits it cancels the call."""
        if self.is_local and _running_loop() is self._routers.loop:
            assert self._task is not None
            return self._await_task(self._task).__await__()
        return self._await_elsewhere().__await__()

    async def _await_task(self, task: asyncio.Task[Any]) -> Any:
        try:
            return await task
        except asyncio.CancelledError:
            if self.is_cancelled:
                raise RequestCancelledError(self.request_id) from None
            raise

    async def _await_elsewhere(self) -> Any:
        future = self._future
        if future is None:  # begun on the routers' loop, awaited on another one
            future = asyncio.run_coroutine_threadsafe(
                self._await_task(_not_none(self._task)), self._routers.loop
            )
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            if not self.is_cancelled:
                self.cancel()
                raise
            raise RequestCancelledError(self.request_id) from None

    def wait(self, timeout_s: float | None) -> Any:
        """The result, for a thread. Raises TimeoutError; the call goes on then."""
        future = self._future
        if future is None:
            future = asyncio.run_coroutine_threadsafe(
                self._await_task(_not_none(self._task)), self._routers.loop
            )
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            if future.done():
                raise  # it is what the call raised
            raise TimeoutError(f"no answer to request {self.request_id} within {timeout_s} s") from None
        except concurrent.futures.CancelledError:
            raise RequestCancelledError(self.request_id) from None


def _not_none(value: T | None) -> T:
    assert value is not None
    return value


def _running_loop() -> asyncio.AbstractEventLoop | None:
    return asyncio._get_running_loop()


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Nobody need ask for the outcome."""
    if not task.cancelled():
        task.exception()


class _ResponseBase(Generic[R]):
    def __init__(self, call: _Call) -> None:
        self._call = call

    @property
    def request_id(self) -> str:
        return self._call.request_id

    @property
    def by_reference(self) -> bool:
        """Always False: answers come directly, never as ObjectRefs."""
        return False

    def cancel(self) -> None:
        """Give the request up: it leaves the queue, or its replica is told. Waiting for it then raises
        RequestCancelledError."""
        self._call.cancel()

    def cancelled(self) -> bool:
        """Whether `cancel` was called; the request may have been finished all the same."""
        return self._call.is_cancelled

    def __reduce__(self) -> NoReturn:
        raise RetinueServeException(
            f"a {type(self).__name__} cannot be pickled: pass it to another handle's call as an argument of "
            "its own (not inside a list or dict), or await it first"
        )


_MISSING: Any = object()


class DeploymentResponse(_ResponseBase[R]):
    """The answer to come of a call. `await` it (as often as needed), take its `result()` in threads, or pass
    it on to another handle's call, which then waits for it where it is not in your way."""

    def __init__(self, call: _Call) -> None:
        super().__init__(call)
        self._value: Any = _MISSING

    def __await__(self) -> Generator[Any, None, R]:
        if self._value is _MISSING:
            self._value = loads((yield from self._call.__await__()))
        return self._value  # type: ignore[no-any-return]

    def result(self, *, timeout_s: float | None = None, _skip_asyncio_check: bool = False) -> R:
        """Wait for the answer. Raises TimeoutError after `timeout_s` (the request goes on), RuntimeError on
        an event loop, and what the call raised."""
        if self._value is _MISSING:
            if not _skip_asyncio_check and _is_on_loop():
                raise RuntimeError(_ON_LOOP)
            self._value = loads(self._call.wait(timeout_s))
        return self._value  # type: ignore[no-any-return]

    def _payload(self) -> Awaitable[bytes]:
        """The answer as it came, for another call's arguments."""
        return self._call


class DeploymentResponseGenerator(_ResponseBase[R]):
    """The items of a streamed answer: `async for`, or `for` in threads. One reader."""

    def __init__(self, call: _Call, routers: RouterSet) -> None:
        super().__init__(call)
        self._routers = routers
        self._items: deque[bytes] = deque()
        self._stream: RoutedStream | None = None

    def __await__(self) -> NoReturn:
        raise TypeError("a streamed answer cannot be awaited: iterate over it with `async for`")

    def result(self, *, timeout_s: float | None = None, _skip_asyncio_check: bool = False) -> NoReturn:
        raise TypeError("a streamed answer has no one result: iterate over it")

    def __aiter__(self) -> AsyncIterator[R]:
        return self

    async def __anext__(self) -> R:
        if not self._items:
            if _running_loop() is self._routers.loop:
                await self._read()
            else:
                reading = asyncio.run_coroutine_threadsafe(self._read(), self._routers.loop)
                try:
                    await asyncio.wrap_future(reading)
                except asyncio.CancelledError:
                    self.cancel()
                    raise
        if not self._items:
            raise StopAsyncIteration
        return loads(self._items.popleft())  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        if not self._items:
            if _is_on_loop():
                raise RuntimeError(_ON_LOOP)
            asyncio.run_coroutine_threadsafe(self._read(), self._routers.loop).result()
        if not self._items:
            raise StopIteration
        return loads(self._items.popleft())  # type: ignore[no-any-return]

    async def _read(self) -> None:
        """All items that are there; none: the end."""
        if self._stream is None:
            self._stream = await self._call
        if self._call.is_cancelled:
            raise RequestCancelledError(self.request_id)
        try:
            self._items.extend(await self._stream.read())
        except asyncio.CancelledError:
            if self._call.is_cancelled:
                raise RequestCancelledError(self.request_id) from None
            raise

    def cancel(self) -> None:
        super().cancel()
        if not self._routers.loop.is_closed():
            self._routers.loop.call_soon_threadsafe(self._close_stream)

    def _close_stream(self) -> None:
        if self._stream is None:
            self._stream = self._call.outcome()  # begun, and never read
        if self._stream is not None:
            self._closing = self._routers.loop.create_task(self._stream.aclose())

    async def aclose(self) -> None:
        """Leave it: what is left is cancelled at the replica."""
        self.cancel()


class DeploymentBroadcastResponse:
    """The answers of all replicas that there were when the call was made, in no particular order."""

    def __init__(self, call: _Call) -> None:
        self._call = call

    def results(self, *, timeout_s: float | None = None, return_exceptions: bool = False) -> list[Any]:
        """Wait for all. With `return_exceptions` what a replica raised is in its place; else the first is
        raised.

        Raises TimeoutError; RuntimeError on an event loop.
        """
        if _is_on_loop():
            raise RuntimeError(_ON_LOOP)
        _check_timeout(timeout_s)
        return _broadcast_results(self._call.wait(timeout_s), return_exceptions)

    async def results_async(
        self, *, timeout_s: float | None = None, return_exceptions: bool = False
    ) -> list[Any]:
        """As `results`, to be awaited."""
        _check_timeout(timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                answers = await self._call
        except TimeoutError:
            raise TimeoutError(f"not all replicas had answered within {timeout_s} s") from None
        return _broadcast_results(answers, return_exceptions)

    def __repr__(self) -> str:
        return "DeploymentBroadcastResponse()"


def _check_timeout(timeout_s: float | None) -> None:
    if timeout_s is not None and timeout_s < 0:
        raise ValueError(f"timeout_s is None or at least 0, not {timeout_s}")


def _broadcast_results(answers: list[bytes | BaseException], return_exceptions: bool) -> list[Any]:
    results: list[Any] = []
    for answer in answers:
        if not isinstance(answer, BaseException):
            results.append(loads(answer))
        elif return_exceptions:
            results.append(answer)
        else:
            raise answer
    return results


# --- handles


class ReplicaSelection:
    """A replica that `choose_replica` chose. `node_ip` is empty on one machine."""

    def __init__(
        self,
        replica_id: str,
        node_ip: str,
        port: int | None,
        node_id: str,
        *,
        deployment_id: DeploymentID,
        routed: tuple[Any, ...],
    ) -> None:
        self.replica_id = replica_id
        self.node_ip = node_ip
        self.port = port
        self.node_id = node_id
        self.availability_zone: str | None = None
        self.replica_metadata: dict[str, Any] = {}
        self.deployment_id = deployment_id
        self.routed = routed
        self.is_dispatched = False
        self.is_over = False

    @property
    def address(self) -> str:
        """host:port of its process."""
        return f"{self.node_ip}:{self.port}" if self.port else self.node_ip

    def to_dict(self) -> dict[str, Any]:
        names = ("replica_id", "node_ip", "port", "node_id", "availability_zone", "replica_metadata")
        return {name: getattr(self, name) for name in names}


async def _get(routers: RouterSet, key: tuple[str, str]) -> Router:
    return routers.get(*key)


class DeploymentHandle(Generic[T]):
    """Calls the methods of a deployment: `handle.remote(...)`, `handle.method.remote(...)`.

    It can be pickled and used anywhere in the cluster: in drivers, tasks, actors and deployments. Inside a
    request its calls carry the request's id, trace and deadline on.
    """

    def __init__(
        self, deployment_name: str, app_name: str = "default", *, _options: _Options | None = None
    ) -> None:
        self.deployment_id = DeploymentID(deployment_name, app_name)
        self._options = _options or _Options()

    @property
    def deployment_name(self) -> str:
        return self.deployment_id.name

    @property
    def app_name(self) -> str:
        return self.deployment_id.app_name

    @property
    def is_initialized(self) -> bool:
        """Whether this process can route its calls (they may be made before)."""
        return self.running_replicas_populated()

    def running_replicas_populated(self) -> bool:
        """Whether this process knows a replica that takes calls."""
        return bool(self._routers().get_soon(*self._key()).scheduler.usable_replicas())

    def options(
        self,
        *,
        method_name: str | None = None,
        multiplexed_model_id: str | None = None,
        session_id: str | None = None,
        stream: bool | None = None,
        _prefer_local_routing: bool | None = None,
        _by_reference: bool | None = None,
        request_serialization: str | None = None,
        response_serialization: str | None = None,
    ) -> Self:
        """A handle of the same deployment with other options; what is not given stays.

        `multiplexed_model_id`: the model that the request needs. `session_id`: requests of one session go to
        one replica while it has room. `stream`: the method is a generator; `remote` gives its items.
        """
        for serialization in (request_serialization, response_serialization):
            if serialization is not None and serialization not in _SERIALIZATIONS:
                raise ValueError(f"values are sent by one of {_SERIALIZATIONS}, not {serialization!r}")
        if _by_reference:
            raise ValueError("answers come directly; there are no ObjectRefs of them")
        was = self._options
        options = _Options(
            was.method_name if method_name is None else method_name,
            was.multiplexed_model_id if multiplexed_model_id is None else multiplexed_model_id,
            was.session_id if session_id is None else session_id,
            was.stream if stream is None else stream,
        )
        return type(self)(self.deployment_name, self.app_name, _options=options)

    def __getattr__(self, name: str) -> Self:
        if name.startswith("__") or name == "_options":
            raise AttributeError(name)
        method = self.options(method_name=name)
        # `handle.method` is asked for with every call.
        self.__dict__[name] = method
        return method

    def remote(self, *args: Any, **kwargs: Any) -> DeploymentResponse[Any] | DeploymentResponseGenerator[Any]:
        """Call it. Returns at once, with the answer to come.

        Top-level arguments that are ObjectRefs or other calls' responses arrive as their values. What goes
        wrong is raised where the response is waited for: BackPressureError (too many wait already),
        DeploymentUnavailableError, ReplicaUnavailableError, TimeoutError (the request's deadline), and what
        the method raised.
        """
        options = self._options
        found = self._routers()
        meta, head = self._meta_and_head()
        meta.args = args
        meta.kwargs = kwargs
        key = self._key()
        if options.stream:

            async def stream() -> RoutedStream:
                body = await _body(head, args, kwargs)
                return await found.get(*key).stream("handle", body, meta)

            return DeploymentResponseGenerator(_Call(found, meta.request_id, stream), found)
        if any(type(a) in _RESOLVED for a in args) or any(type(a) in _RESOLVED for a in kwargs.values()):

            async def call() -> bytes:
                body = await _body(head, args, kwargs)
                return await found.get(*key).call("handle", body, meta)

            return DeploymentResponse(_Call(found, meta.request_id, call))
        # Arguments are taken as they are now, in the caller's thread.
        body = dump_call(head, args, kwargs, [])
        return DeploymentResponse(
            _Call(found, meta.request_id, lambda: found.get(*key).call("handle", body, meta))
        )

    @asynccontextmanager
    async def choose_replica(self, *args: Any, **kwargs: Any) -> AsyncIterator[ReplicaSelection]:
        """Choose a replica as `remote` would, to call it with `dispatch`; it counts as busy until the end of
        the `async with`. The arguments are for users' own request routers."""
        found = self._routers()
        meta, head = self._meta_and_head()
        meta.args, meta.kwargs = args, kwargs
        router = await _Call(found, meta.request_id, lambda: _get(found, self._key()))
        link = await _Call(found, meta.request_id, lambda: router.reserve(meta))
        selection = ReplicaSelection(
            link.info.replica_id,
            link.info.address.host,
            link.info.address.port or None,
            link.info.node_id,
            deployment_id=self.deployment_id,
            routed=(router, link, meta, head, self._options.stream),
        )
        try:
            yield selection
        finally:
            selection.is_over = True
            if not (selection.is_dispatched and self._options.stream):
                found.loop.call_soon_threadsafe(router.over, link)

    def dispatch(
        self, selection: ReplicaSelection, *args: Any, **kwargs: Any
    ) -> DeploymentResponse[Any] | DeploymentResponseGenerator[Any]:
        """Call the replica of a `choose_replica`, once, within its `async with`; await the answer there.

        Raises ValueError for a selection of another deployment, RuntimeError for a used one.
        """
        if selection.deployment_id != self.deployment_id:
            raise ValueError(
                f"{selection.replica_id} was chosen for another deployment than {self.deployment_id}"
            )
        if selection.is_dispatched or selection.is_over:
            raise RuntimeError(f"the choice of {selection.replica_id} has been used already")
        selection.is_dispatched = True
        router, link, meta, head, is_stream = selection.routed
        found = self._routers()

        async def run() -> Any:
            body = await _body(head, args, kwargs)
            return await (router.stream_at if is_stream else router.call_at)(link, "handle", body, meta)

        call = _Call(found, meta.request_id, run)
        return DeploymentResponseGenerator(call, found) if is_stream else DeploymentResponse(call)

    def broadcast(self, method_name: str, *args: Any, **kwargs: Any) -> DeploymentBroadcastResponse:
        """Call a method of every replica, beside their queues; for control, such as clearing a cache."""
        found = self._routers()
        meta, head = self._meta_and_head()
        head.method = method_name
        key = self._key()

        async def call() -> list[bytes | BaseException]:
            body = await _body(head, args, kwargs)
            return await found.get(*key).broadcast("handle", body, meta)

        return DeploymentBroadcastResponse(_Call(found, meta.request_id, call))

    def _routers(self) -> RouterSet:
        """Whose routers take its calls: this process's. Local testing has others."""
        return routers()

    def _key(self) -> tuple[str, str]:
        return self.deployment_id.app_name, self.deployment_id.name

    def _meta_and_head(self) -> tuple[RequestMeta, CallHead]:
        options = self._options
        context = request_context.get()
        replica = find_replica_context()
        meta = RequestMeta(
            context.request_id or new_request_id(),
            context.trace,
            context.deadline,
            options.multiplexed_model_id,
            options.session_id,
        )
        meta.method = options.method_name
        head = CallHead(
            options.method_name,
            options.multiplexed_model_id,
            options.session_id,
            context.route,
            replica.app_name if replica is not None else "",
        )
        return meta, head

    def shutdown(self) -> None:
        """Nothing to do: routers belong to the process."""

    async def shutdown_async(self) -> None:
        """Nothing to do: routers belong to the process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.deployment_name, self.app_name, self._options)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, DeploymentHandle)
            and self.deployment_id == other.deployment_id
            and self._options == other._options
        )

    def __hash__(self) -> int:
        return hash((self.deployment_id, self._options))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(deployment={self.deployment_name!r}, app={self.app_name!r})"


def _restore(kind: type[DeploymentHandle[Any]], name: str, app_name: str, options: _Options) -> Any:
    return kind(name, app_name, _options=options)


_RESOLVED = frozenset({ObjectRef, DeploymentResponse, DeploymentResponseGenerator})


async def _body(head: CallHead, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The body of a call whose arguments may have to be waited for: all of them at once."""
    blobs: list[bytes] = []
    waited: list[Awaitable[Any]] = []
    places: list[tuple[int | str, bool]] = []  # position or name, and whether it is passed on as it came
    named: dict[int | str, Any] = dict(enumerate(args))
    named.update(kwargs)
    for place, value in named.items():
        if isinstance(value, DeploymentResponse):
            waited.append(value._payload())
            places.append((place, True))
        elif isinstance(value, DeploymentResponseGenerator):
            raise TypeError("a streamed answer cannot be an argument; read it first")
        elif type(value) is ObjectRef:
            waited.append(value)
            places.append((place, False))
    for (place, is_forwarded), result in zip(places, await _all(waited), strict=True):
        if is_forwarded:
            named[place] = Forwarded(len(blobs))
            blobs.append(result)
        else:
            named[place] = result
    resolved = tuple(named[position] for position in range(len(args)))
    return dump_call(head, resolved, {name: named[name] for name in kwargs}, blobs)


async def _all(waited: list[Awaitable[Any]]) -> list[Any]:
    if len(waited) == 1:
        return [await waited[0]]
    return list(await asyncio.gather(*(_wait(one) for one in waited)))


async def _wait(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def deadline_of(timeout_s: float | None) -> float:
    """A deadline as requests carry it."""
    return 0.0 if timeout_s is None else time.monotonic() + timeout_s
