"""Helpers for applications, over the public names of `retinue` only.

Here: pools of actors, queues, completion in order of readiness, progress bars, metrics, serializers, and
drop-ins for `multiprocessing.Pool` and joblib. Not here: anything that the core needs itself.
"""

from typing import Any

import retinue.core.api

from retinue.exceptions import UnsupportedError
from retinue.util.actor_pool import ActorPool
from retinue.util.check_serialize import inspect_serializability
from retinue.util.debug import disable_log_once_globally, enable_periodic_logging, log_once
from retinue.util.helpers import as_completed, map_unordered
from retinue.util.net import get_node_ip_address
from retinue.util.progress_bar import progress
from retinue.util.serialization import deregister_serializer, register_serializer

__all__ = [
    "ActorPool",
    "as_completed",
    "deregister_serializer",
    "disable_log_once_globally",
    "enable_periodic_logging",
    "get_node_ip_address",
    "inspect_serializability",
    "list_named_actors",
    "log_once",
    "map_unordered",
    "progress",
    "register_serializer",
]

_UNSUPPORTED = {
    "accelerators": "resource names such as 'GPU' and accelerator_type= on tasks and actors",
    "collective": "torch.distributed inside actors",
    "connect": "retinue.init(address=...)",
    "disconnect": "retinue.shutdown()",
    "get_node_instance_id": "retinue.get_runtime_context().get_node_id()",
    "iter": "retinue.util.map_unordered",
    "pdb": "the logs, `retinue stack`, or pdb in a driver with the function called directly",
    "ray_debugpy": "the logs, `retinue stack`, or pdb in a driver with the function called directly",
}


class UnsupportedNameError(UnsupportedError, ImportError):
    """Ray has this name here, and we do not.

    Not an AttributeError: `from retinue.util import name` would show its own message instead of ours.
    """


def list_named_actors(all_namespaces: bool = False) -> list[str] | list[dict[str, str]]:
    """Return the names of the named actors that are alive, detached or not.

    Of this driver's namespace as plain names; with `all_namespaces` those of the whole cluster, each as
    `{"namespace": ..., "name": ...}`.
    """
    names: list[str] | list[dict[str, str]] = retinue.core.api.list_named_actors(all_namespaces)
    return names


def __getattr__(name: str) -> Any:
    if name in _UNSUPPORTED:
        raise UnsupportedNameError(f"retinue.util.{name} is not supported; use {_UNSUPPORTED[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
