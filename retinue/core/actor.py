"""Actors: what `@remote` makes of a class, and the handles by which actors are called.

Lives here: options, exporting the class, handles as counted references, making a call. Does not: following
an actor's life (`client.actor_calls`), hosting it (`worker`).
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NoReturn, TypeVar

from retinue.core import options as option_rules
from retinue.core import references
from retinue.core.calls import make_call
from retinue.core.client.runtime import Runtime
from retinue.core.current import get_runtime, runtime_or_none
from retinue.core.errors import ActorHandleNotFoundError, UnsupportedError
from retinue.core.ids import ActorID
from retinue.core.references import collector
from retinue.core.remote_function import Signature, check_definition_size, hold_captured
from retinue.core.runtime_env import extend, validated
from retinue.core.serialization import dump_definition
from retinue.core.wire.messages import ActorInfo, ActorSpec, Address, CallOptions, Shape

T = TypeVar("T")
METHOD_OPTIONS = "__retinue_method_options__"
_EVERY_ACTOR = ("ready", "call", "terminate")


def method(*args: Any, **options: Any) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Give an actor's method options: num_returns, concurrency_group, max_task_retries, retry_exceptions."""
    if args or not options:
        raise ValueError("use @retinue.method with options, e.g. @retinue.method(num_returns=2)")
    option_rules.check(options, option_rules.METHOD, "methods")

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        setattr(function, METHOD_OPTIONS, options)
        return function

    return decorate


class MethodInfo:
    """A method as a handle knows it: its name, options, and whether it streams."""

    __slots__ = ("call_options", "name", "num_returns", "options", "retries", "retry_exceptions", "signature")

    def __init__(
        self, name: str, options: Mapping[str, Any], signature: Signature | None, retries: int
    ) -> None:
        self.name = name
        self.options = dict(options)
        self.signature = signature
        num_returns = options.get("num_returns", 1)
        streaming = num_returns == "streaming"
        self.num_returns: int = 1 if streaming or num_returns is None else num_returns
        own_retries = options.get("max_task_retries")
        self.retries: int = retries if own_retries is None else own_retries
        retry = options.get("retry_exceptions")
        self.retry_exceptions: Any = tuple(retry) if isinstance(retry, list | tuple) else (retry or None)
        group = options.get("concurrency_group") or ""
        task_name = options.get("name") or ""
        backpressure = options.get("_generator_backpressure_num_objects")
        self.call_options: CallOptions | None = None
        events = options.get("enable_task_events") is not False
        if streaming or group or task_name or not events:
            self.call_options = CallOptions(
                events=events,
                name=task_name,
                concurrency_group=group,
                streaming=streaming,
                stream_backpressure=-1 if backpressure is None else backpressure,
            )

    def with_options(self, options: Mapping[str, Any], retries: int) -> MethodInfo:
        return MethodInfo(self.name, {**self.options, **options}, self.signature, retries)


def describe_methods(cls: type) -> dict[str, dict[str, Any]]:
    """Public methods of an actor class with the options of their decorators, JSON-able.

    Generator methods stream unless they say otherwise.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, function in inspect.getmembers(cls, callable):
        if name.startswith("__") and name != "__call__":
            continue
        options = dict(getattr(function, METHOD_OPTIONS, {}))
        if "num_returns" not in options and (
            inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        ):
            options["num_returns"] = "streaming"
        found[name] = options
    return found


class ActorClass(Generic[T]):
    """A class whose instances are actors: `C.remote(...)` starts one and returns its handle."""

    def __init__(self, cls: type[T], options: Mapping[str, Any] | None = None) -> None:
        self._cls = cls
        self._options = dict(options or {})
        option_rules.check(self._options, option_rules.ACTOR, "actors")
        self._name = cls.__name__
        self._exported: tuple[int, bytes, bytes] | None = None
        self.__doc__ = cls.__doc__
        self.__name__ = cls.__name__
        self.__module__ = cls.__module__
        self.__qualname__ = cls.__qualname__

    # Looked up late: a class whose methods start actors of it is unpickled before it has any.

    @functools.cached_property
    def _described(self) -> dict[str, dict[str, Any]]:
        return describe_methods(self._cls)

    @functools.cached_property
    def _signatures(self) -> dict[str, Signature]:
        cls = self._cls
        return {
            name: Signature(getattr(cls, name), skip_first=not _is_static(cls, name))
            for name in self._described
        }

    @functools.cached_property
    def _init_signature(self) -> Signature:
        return Signature(self._cls.__init__, skip_first=True)

    @functools.cached_property
    def _is_async(self) -> bool:
        return any(
            inspect.iscoroutinefunction(m) or inspect.isasyncgenfunction(m)
            for _, m in inspect.getmembers(self._cls, inspect.isfunction)
        )

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"{self._name} is an actor class: make an actor with {self._name}.remote(...)")

    def __mro_entries__(self, bases: tuple[Any, ...]) -> NoReturn:
        raise TypeError(
            f"{self._name} is an actor class, which cannot be a base: inherit from the plain class, and make "
            "actors of each by @retinue.remote or retinue.remote(cls)"
        )

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle[T]:
        """Start an actor. Returns at once; calls made through the handle wait until it runs."""
        return self._start(self._options, args, kwargs)

    def options(self, **options: Any) -> OptionedActorClass[T]:
        """The same class with other options for the actors started through what this returns."""
        option_rules.check(options, option_rules.ACTOR, "actors")
        return OptionedActorClass(self, {**self._options, **options})

    def bind(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise UnsupportedError(
            "task graphs (bind) are not supported; call the actor's methods with ObjectRefs"
        )

    def _export(self, runtime: Runtime) -> tuple[bytes, bytes]:
        if self._exported is None or self._exported[0] != id(runtime):
            blob, found = dump_definition(self._cls)
            check_definition_size(self._name, blob)
            hold_captured(runtime, found)
            self._exported = (id(runtime), hashlib.blake2b(blob, digest_size=16).digest(), blob)
        return self._exported[1], self._exported[2]

    def _start(
        self, options: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> ActorHandle[T]:
        self._init_signature.check(args, kwargs)
        runtime = get_runtime()
        name = options.get("name") or ""
        detached = options.get("lifetime") == "detached"
        if options.get("get_if_exists") and not name:
            raise ValueError("get_if_exists needs a name")
        key, blob = self._export(runtime)
        prepared = runtime.arguments.prepare(args, kwargs, outlives=detached)
        env = runtime.worker_env
        if options.get("runtime_env"):
            env = extend(env, validated(options["runtime_env"]))
        shape = Shape(
            option_rules.resources_of(options, default_cpus=0), env, option_rules.strategy_of(options)
        )
        placement = option_rules.resources_of(options, default_cpus=1)
        actor_id = runtime.ids.actor_id()
        groups = options.get("concurrency_groups") or {}
        described = self._described
        if options.get("enable_task_events") is False:
            described = {name: {"enable_task_events": False, **own} for name, own in described.items()}
        spec = ActorSpec(
            actor_id=actor_id,
            job_id=runtime.job_id,
            owner=runtime.address,
            class_name=self._name,
            class_key=key,
            shape=shape,
            placement=placement,
            name=name,
            namespace=options.get("namespace") or runtime.worker_env.namespace,
            detached=detached,
            max_restarts=options.get("max_restarts") or 0,
            max_task_retries=options.get("max_task_retries") or 0,
            max_concurrency=options.get("max_concurrency") or 0,
            concurrency_groups=dict(groups),
            is_async=self._is_async,
            max_pending_calls=_or(options.get("max_pending_calls"), -1),
            allow_out_of_order=bool(options.get("allow_out_of_order_execution")),
            methods=json.dumps(described, default=lambda value: [repr(value)]),
            args_size=len(prepared.args),
            args_object=prepared.args_object,
        )
        runtime.actors.own_queue(
            actor_id,
            max_pending_calls=spec.max_pending_calls,
            out_of_order=spec.allow_out_of_order,
            class_name=self._name,
        )
        with runtime.lock:
            runtime.table.own_actor(actor_id, refs=1)
        handle: ActorHandle[T] = ActorHandle(
            actor_id,
            None,
            self._name,
            make_methods(described, spec.max_task_retries, self._signatures),
            runtime,
            is_counted=not detached,
            namespace=spec.namespace,
        )
        info = runtime.actors.create(spec, blob, prepared, get_if_exists=bool(options.get("get_if_exists")))
        if info is not None and info.actor_id != actor_id:
            return handle_of(runtime, info, self._signatures)
        return handle

    def __getstate__(self) -> dict[str, Any]:
        return {"cls": self._cls, "options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["cls"], state["options"])  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"ActorClass({self._name})"


class OptionedActorClass(Generic[T]):
    """An actor class with options of its own."""

    def __init__(self, actor_class: ActorClass[T], options: Mapping[str, Any]) -> None:
        self._actor_class = actor_class
        self._options = options

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle[T]:
        """As ActorClass.remote."""
        return self._actor_class._start(self._options, args, kwargs)

    def bind(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._actor_class.bind(*args, **kwargs)


def _is_static(cls: type, name: str) -> bool:
    return isinstance(inspect.getattr_static(cls, name), staticmethod)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def make_methods(
    described: Mapping[str, Mapping[str, Any]],
    retries: int,
    signatures: Mapping[str, Signature] | None = None,
) -> dict[str, MethodInfo]:
    methods = {
        name: MethodInfo(name, options, (signatures or {}).get(name), retries)
        for name, options in described.items()
    }
    for word in _EVERY_ACTOR:
        for prefix in ("ray", "retinue"):
            name = f"__{prefix}_{word}__"
            methods[name] = MethodInfo(name, {}, None, retries)
    return methods


class ActorHandle(Generic[T]):
    """Calls an actor: `handle.method.remote(...)`.

    Handles are counted: when the last one of an actor is gone, and its calls are answered, the actor
    ends (unless it is detached). Handles from `get_actor`, and an actor's own, do not count.
    """

    def __init__(
        self,
        actor_id: bytes,
        owner: Address | None,
        class_name: str,
        methods: dict[str, MethodInfo],
        runtime: Runtime,
        *,
        is_counted: bool,
        namespace: str = "",
    ) -> None:
        self._id = actor_id
        self._owner = owner
        self._class_name = class_name
        self._methods = methods
        self._runtime = runtime
        self._is_counted = is_counted
        self._namespace = namespace

    def __del__(self) -> None:
        if self.__dict__.get("_is_counted"):
            references.dropped.append(self._id)

    @property
    def _actor_id(self) -> ActorID:
        return ActorID(self._id)

    @property
    def _ray_actor_id(self) -> ActorID:
        return ActorID(self._id)

    def __getattr__(self, name: str) -> ActorMethod:
        methods = self.__dict__.get("_methods")
        if methods is not None:
            info = methods.get(name)
            if info is not None:
                return ActorMethod(self, info)
        raise AttributeError(f"actor {self.__dict__.get('_class_name', '')!r} has no method {name!r}")

    def __dir__(self) -> list[str]:
        return sorted(self._methods)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and other._id == self._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        return f"Actor({self._class_name}, {self._id.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        runtime = self._runtime
        owner = self._owner or runtime.address
        if self._is_counted:
            if collector.found is None:
                runtime.reference_escaped(self._id)
            else:
                collector.found.append((self._id, self._owner))
        described = {name: info.options for name, info in self._methods.items() if not name.startswith("__r")}
        retries = self._methods["__ray_ready__"].retries
        return _restore_handle, (self._id, owner, self._class_name, described, retries, self._is_counted)


def _restore_handle(
    actor_id: bytes, owner: Address, class_name: str, described: Any, retries: int, is_counted: bool
) -> ActorHandle[Any]:
    runtime = get_runtime()
    mine = owner.worker_id == runtime.address.worker_id
    if is_counted:
        # The counting is that of an ObjectRef; the reference itself is not kept, its count is.
        ref = runtime.add_reference(actor_id, owner)
        with runtime.lock:
            runtime.table.entries[actor_id].refs += 1
        del ref
    runtime.actors.queue(actor_id, class_name=class_name)
    methods = make_methods(described, retries)
    return ActorHandle(actor_id, None if mine else owner, class_name, methods, runtime, is_counted=is_counted)


def handle_of(
    runtime: Runtime, info: ActorInfo, signatures: Mapping[str, Signature] | None = None
) -> ActorHandle[Any]:
    """An uncounted handle of an actor that the head described."""
    spec = info.spec
    if spec is None:
        raise ActorHandleNotFoundError(f"the cluster knows no class of actor {info.actor_id.hex()}")
    runtime.actors.queue(
        info.actor_id,
        max_pending_calls=spec.max_pending_calls,
        out_of_order=spec.allow_out_of_order,
        class_name=spec.class_name,
    )
    methods = make_methods(json.loads(spec.methods), spec.max_task_retries, signatures)
    return ActorHandle(
        info.actor_id,
        spec.owner,
        spec.class_name,
        methods,
        runtime,
        is_counted=False,
        namespace=spec.namespace,
    )


class ActorMethod:
    """One method of one actor: `.remote(...)` calls it."""

    __slots__ = ("_handle", "_info")

    def __init__(self, handle: ActorHandle[Any], info: MethodInfo) -> None:
        self._handle = handle
        self._info = info

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        name = self._info.name
        raise TypeError(f"an actor's method is called with .remote: handle.{name}.remote(...)")

    def options(self, **options: Any) -> ActorMethod:
        """The same method with other options for the calls made through what this returns."""
        option_rules.check(options, option_rules.METHOD, "methods")
        return ActorMethod(self._handle, self._info.with_options(options, self._info.retries))

    def bind(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise UnsupportedError("task graphs (bind) are not supported; call the method with ObjectRefs")

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call it. Returns one ObjectRef, a list of them, None, or an ObjectRefGenerator.

        Raises PendingCallsLimitExceeded when `max_pending_calls` are unanswered.
        """
        info = self._info
        handle = self._handle
        runtime = handle._runtime
        if runtime.is_stopping:
            raise ActorHandleNotFoundError(
                f"the handle of actor {handle._class_name} belongs to a cluster that this process has left"
            )
        if info.signature is not None:
            info.signature.check(args, kwargs)
        queue = runtime.actors.queues.get(handle._id) or runtime.actors.queue(handle._id)
        if queue.max_pending_calls > 0:
            runtime.actors.check_room(queue)
        return make_call(runtime, info, None, info.name, queue, runtime.actors.submit, args, kwargs)


def exit_actor() -> NoReturn:
    """End the actor that runs this, in order: the calls that were not started are not answered.

    Raises TypeError outside an actor's method.
    """
    from retinue.core.worker import context
    from retinue.core.worker.running import ActorExit

    if runtime_or_none() is None or context.facts is None or context.facts.actor_spec is None:
        raise TypeError("exit_actor() is for the methods of actors")
    raise ActorExit("exit_actor() was called")
