"""What gRPC methods a generated `add_..._to_server` function brings, and how their messages are coded.

The proxy serves the methods without looking into messages; the replica turns bytes into the user's classes
and back. Both ask the same generated function: it is called with a server that only notes what it is given.

Lives here: that. Does not: importing grpc (the generated module does).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple


class ServicerMethod(NamedTuple):
    """A method of a service. `full_name` is /package.Service/Method, `servicer` the function's path."""

    full_name: str
    servicer: str
    takes_stream: bool
    gives_stream: bool
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]

    @property
    def service(self) -> str:
        return self.full_name.split("/")[1]

    @property
    def name(self) -> str:
        return self.full_name.rpartition("/")[2]


def load(path: str) -> dict[str, ServicerMethod]:
    """The methods that the function at this import path registers, by their full names.

    Imports its module. Raises what that raises, AttributeError if the module has no such name, and TypeError
    for what is no such function.
    """
    module, _, name = path.rpartition(":" if ":" in path else ".")
    function: Any = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    if not callable(function):
        raise TypeError(f"{path!r} in grpc_servicer_functions is no function, but {function!r}")
    recorder = _Recorder()
    function(_AnyServicer(), recorder)
    if not recorder.handlers:
        raise TypeError(f"{path!r} in grpc_servicer_functions registers no methods")
    return {full_name: _method(full_name, path, handler) for full_name, handler in recorder.handlers.items()}


def _method(full_name: str, path: str, handler: Any) -> ServicerMethod:
    return ServicerMethod(
        full_name,
        path,
        handler.request_streaming,
        handler.response_streaming,
        handler.request_deserializer or bytes,
        handler.response_serializer or bytes,
    )


class _Recorder:
    """Stands where a grpc.Server would."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self.handlers.update({f"/{service}/{name}": handler for name, handler in handlers.items()})

    def add_generic_rpc_handlers(self, generic_handlers: Any) -> None:
        for generic in generic_handlers:
            # All that code generated before grpc 1.66 calls. A handler's methods cannot be listed otherwise.
            self.handlers.update(generic._method_handlers)


class _AnyServicer:
    """Has every method. None is called: replicas answer."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None
