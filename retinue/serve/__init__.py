"""Serving: models as deployments, from a decorator to HTTP under load. `docs/guides` has the guides.

The names here are imported when they are first used, so that `import retinue.serve` costs almost nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

_HOMES = {
    "retinue.serve.api": (
        "RunTarget",
        "delete",
        "get_app_handle",
        "get_deployment_handle",
        "run",
        "run_many",
        "shutdown",
        "shutdown_async",
        "start",
        "status",
    ),
    "retinue.serve.batching": ("batch",),
    "retinue.serve.config": ("ControllerOptions", "HTTPOptions", "TracingConfig"),
    "retinue.serve.context": ("get_multiplexed_model_id", "get_replica_context", "get_trace_context"),
    "retinue.serve.deployment": ("Application", "Deployment", "deployment"),
    "retinue.serve.ingress": ("ingress",),
    "retinue.serve.multiplexing": ("multiplexed",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = (
    "autoscaling_policy",
    "build",
    "config",
    "context",
    "exceptions",
    "grpc_util",
    "handle",
    "metrics",
    "request_router",
    "schema",
)
# Names that Ray Serve has; using one says what to use instead.
_ABSENT = {
    "get_deployment_actor": "start a named actor in the deployment's constructor, and use retinue.get_actor",
    "get_deployment_actor_context": "deployment_actors are not supported; use named actors",
    "llm": "Retinue has no library of language models; see examples/token_stream",
    "task_consumer": "Retinue has no task queues; use retinue.util.queue and a deployment",
}

if TYPE_CHECKING:
    from retinue.serve.api import RunTarget as RunTarget
    from retinue.serve.api import delete as delete
    from retinue.serve.api import get_app_handle as get_app_handle
    from retinue.serve.api import get_deployment_handle as get_deployment_handle
    from retinue.serve.api import run as run
    from retinue.serve.api import run_many as run_many
    from retinue.serve.api import shutdown as shutdown
    from retinue.serve.api import shutdown_async as shutdown_async
    from retinue.serve.api import start as start
    from retinue.serve.api import status as status
    from retinue.serve.batching import batch as batch
    from retinue.serve.config import ControllerOptions as ControllerOptions
    from retinue.serve.config import HTTPOptions as HTTPOptions
    from retinue.serve.config import TracingConfig as TracingConfig
    from retinue.serve.context import get_multiplexed_model_id as get_multiplexed_model_id
    from retinue.serve.context import get_replica_context as get_replica_context
    from retinue.serve.context import get_trace_context as get_trace_context
    from retinue.serve.deployment import Application as Application
    from retinue.serve.deployment import Deployment as Deployment
    from retinue.serve.deployment import deployment as deployment
    from retinue.serve.ingress import ingress as ingress
    from retinue.serve.multiplexing import multiplexed as multiplexed


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        from retinue.serve.extras import advice

        text = advice(error)
        if text is None:
            raise
        raise ModuleNotFoundError(text, name=error.name) from error


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is not None:
        value = getattr(_import(home), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return _import(f"retinue.serve.{name}")
    if name in _ABSENT:
        from retinue.serve.unsupported import AbsentNameError

        raise AbsentNameError(f"retinue.serve.{name} does not exist: {_ABSENT[name]}")
    raise AttributeError(f"module 'retinue.serve' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*_HOME_OF, *_MODULES})


class _Package(ModuleType):
    """Importing the module `deployment` or `ingress` must not put it where the function of that name is."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOME_OF or not isinstance(value, ModuleType):
            super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """By name, as every module: user code that says `serve.` is pickled by value with its globals."""
        return importlib.import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Package

__all__ = sorted(_HOME_OF)
