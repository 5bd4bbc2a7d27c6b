"""Remote functions: what `@remote` makes of a function.

Lives here: options, exporting the definition, making a call. Does not: choosing a worker (`client`).
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, ParamSpec, TypeVar

import msgspec

from retinue.core import options as option_rules
from retinue.core.calls import make_call
from retinue.core.client.runtime import Runtime
from retinue.core.client.tasks import FunctionDef
from retinue.core.current import get_runtime
from retinue.core.errors import UnsupportedError
from retinue.core.runtime_env import extend, validated
from retinue.core.serialization import dump_definition
from retinue.core.wire.messages import CallOptions, Shape

logger = logging.getLogger(__name__)

DEFAULT_MAX_RETRIES = 3
DEFINITION_WARN_BYTES = 10 * 1024 * 1024
DEFINITION_LIMIT_BYTES = 256 * 1024 * 1024

P = ParamSpec("P")
R = TypeVar("R")


class Signature:
    """Checks arguments where the call is made, as Python would where it runs. Plain calls cost 0.1 us."""

    __slots__ = ("_is_simple", "_maximum", "_minimum", "_signature")

    def __init__(self, function: Callable[..., Any], *, skip_first: bool = False) -> None:
        self._signature: inspect.Signature | None = None
        self._minimum, self._maximum, self._is_simple = 0, 1 << 30, False
        try:
            signature = inspect.signature(function)
        except (ValueError, TypeError):
            return  # builtins without a signature: the worker finds out
        parameters = list(signature.parameters.values())[1 if skip_first else 0 :]
        self._signature = signature.replace(parameters=parameters)
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self._minimum = sum(p.default is p.empty for p in positional)
        if not any(p.kind is p.VAR_POSITIONAL for p in parameters):
            self._maximum = len(positional)
        self._is_simple = not any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters)

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raises TypeError, as calling the function with these arguments would."""
        if not kwargs and self._is_simple and self._minimum <= len(args) <= self._maximum:
            return
        if self._signature is not None:
            self._signature.bind(*args, **kwargs)


class _Template:
    """What the calls of one function with one set of options have in common, for one runtime."""

    __slots__ = (
        "call_options",
        "definition",
        "num_returns",
        "pool",
        "retries",
        "retry_exceptions",
        "runtime",
    )

    def __init__(self, runtime: Runtime, definition: FunctionDef, pool: Any) -> None:
        self.runtime = runtime
        self.definition = definition
        self.pool = pool
        self.num_returns: int = 1
        self.retries = DEFAULT_MAX_RETRIES
        self.retry_exceptions: Any = None
        self.call_options: CallOptions | None = None


class RemoteFunction(Generic[P, R]):
    """A function whose calls run as tasks: `f.remote(...)` returns an ObjectRef at once."""

    def __init__(self, function: Callable[P, R], options: Mapping[str, Any] | None = None) -> None:
        if inspect.iscoroutinefunction(function):
            raise ValueError(
                "a coroutine function cannot be a task; call asyncio.run() in a def, or use an async actor"
            )
        self._function = function
        self._options = dict(options or {})
        option_rules.check(self._options, option_rules.TASK, "tasks")
        self._is_generator = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        self._name = getattr(function, "__qualname__", repr(function)).replace("<locals>.", "")
        self._signature = Signature(function)
        self._template: _Template | None = None
        self._definitions: dict[int, FunctionDef] = {}
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{self._name} is a remote function: call it with {self._name}.remote(...)")

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call it as a task. Returns one ObjectRef, a list of them, None, or an ObjectRefGenerator."""
        template = self._template
        if template is None or template.runtime is not get_runtime():
            template = self._make_template(self._options)
            self._template = template
        return self._submit(template, args, kwargs)

    def options(self, **options: Any) -> OptionedFunction:
        """The same function with other options for the calls made through what this returns."""
        option_rules.check(options, option_rules.TASK, "tasks")
        return OptionedFunction(self, {**self._options, **options})

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        raise UnsupportedError("task graphs (bind) are not supported; pass ObjectRefs from call to call")

    # --- calls

    def _submit(self, template: _Template, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        self._signature.check(args, kwargs)
        runtime = template.runtime
        submit = runtime.tasks.submit
        return make_call(runtime, template, template.definition, "", template.pool, submit, args, kwargs)

    def _make_template(self, options: Mapping[str, Any]) -> _Template:
        runtime = get_runtime()
        env = runtime.worker_env
        if options.get("runtime_env"):
            env = extend(env, validated(options["runtime_env"]))
        shape = Shape(
            option_rules.resources_of(options, default_cpus=1), env, option_rules.strategy_of(options)
        )
        pool = runtime.leases.pool_for(shape, msgspec.msgpack.encode(shape))
        template = _Template(runtime, self._export(runtime), pool)
        num_returns: Any = options.get("num_returns")
        if num_returns is None:
            num_returns = "streaming" if self._is_generator else 1
        streaming = num_returns == "streaming"
        template.num_returns = 1 if streaming else num_returns
        retries = options.get("max_retries")
        template.retries = DEFAULT_MAX_RETRIES if retries is None else retries
        template.retry_exceptions = _retryable(options.get("retry_exceptions"))
        max_calls = options.get("max_calls")
        if max_calls is None:
            # A GPU's memory is only given back by the process's end.
            max_calls = 1 if options.get("num_gpus") else 0
        name = options.get("name") or ""
        backpressure = options.get("_generator_backpressure_num_objects")
        events = options.get("enable_task_events") is not False
        if name or streaming or max_calls or not events:
            template.call_options = CallOptions(
                events=events,
                name=name,
                streaming=streaming,
                stream_backpressure=-1 if backpressure is None else backpressure,
                max_calls=max_calls,
            )
        return template

    def _export(self, runtime: Runtime) -> FunctionDef:
        """The definition for this runtime's job, pickled at its first call as Ray does."""
        definition = self._definitions.get(id(runtime))
        if definition is None:
            blob, found = dump_definition(self._function)
            check_definition_size(self._name, blob)
            key = hashlib.blake2b(blob, digest_size=16).digest()
            definition = FunctionDef(key, blob, self._name, found)
            hold_captured(runtime, found)
            self._definitions = {id(runtime): definition}
        return definition

    def __getstate__(self) -> dict[str, Any]:
        # Captured by another function: travels as function and options, and is exported anew there.
        return {"function": self._function, "options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["function"], state["options"])  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"RemoteFunction({self._name})"


class OptionedFunction:
    """A remote function with options of its own."""

    def __init__(self, function: RemoteFunction[Any, Any], options: Mapping[str, Any]) -> None:
        self._function = function
        self._options = options
        self._template: _Template | None = None

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """As RemoteFunction.remote."""
        template = self._template
        if template is None or template.runtime is not get_runtime():
            template = self._template = self._function._make_template(self._options)
        return self._function._submit(template, args, kwargs)

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        return self._function.bind(*args, **kwargs)


def _retryable(wanted: Any) -> Any:
    return tuple(wanted) if isinstance(wanted, list | tuple) else (wanted or None)


def check_definition_size(name: str, blob: bytes) -> None:
    """Raises ValueError for a definition that has swallowed data which belongs into `put`."""
    size = len(blob)
    if size > DEFINITION_LIMIT_BYTES:
        raise ValueError(
            f"the definition of {name} has {size >> 20} MiB, more than {DEFINITION_LIMIT_BYTES >> 20}: it "
            "captures large data; put that with retinue.put() and pass the reference"
        )
    if size > DEFINITION_WARN_BYTES:
        logger.warning(
            "the definition of %s has %d MiB: does it capture large data? put() that", name, size >> 20
        )


def hold_captured(runtime: Runtime, found: Sequence[tuple[bytes, Any]]) -> None:
    """Objects captured by a definition live as long as the job: it may be called at any time."""
    with runtime.lock:
        for object_id, owner in found:
            runtime.table.use(object_id, owner)
