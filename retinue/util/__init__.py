"""Helpers for applications, over the public names of `retinue` only.

Here: pools of actors, queues, completion in order of readiness, progress bars, metrics, serializers, and
drop-ins for `multiprocessing.Pool` and joblib. Not here: anything that the core needs itself.

As in `retinue` itself, names are imported when they are first used: a worker that only counts something
(`retinue.util.metrics`) loads nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retinue.util.actor_pool import ActorPool
    from retinue.util.check_serialize import inspect_serializability
    from retinue.util.debug import disable_log_once_globally, enable_periodic_logging, log_once
    from retinue.util.helpers import as_completed, map_unordered
    from retinue.util.named_actors import list_named_actors
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

_HOME_OF = {
    "ActorPool": "actor_pool",
    "as_completed": "helpers",
    "deregister_serializer": "serialization",
    "disable_log_once_globally": "debug",
    "enable_periodic_logging": "debug",
    "get_node_ip_address": "net",
    "inspect_serializability": "check_serialize",
    "list_named_actors": "named_actors",
    "log_once": "debug",
    "map_unordered": "helpers",
    "progress": "progress_bar",
    "register_serializer": "serialization",
}

# Names that Ray has; using one says what to use instead.
_ABSENT = {
    "accelerators": "give resource names such as 'GPU', or accelerator_type=, to tasks and actors",
    "annotations": "it marks Ray's own names",
    "client": "use retinue.init(address=...)",
    "collective": "use torch.distributed inside actors",
    "connect": "use retinue.init(address=...)",
    "disconnect": "use retinue.shutdown()",
    "dask": "Retinue has no scheduler for Dask",
    "debugpy": "look at the logs or `retinue stack`, or debug the function in the driver",
    "get_current_placement_group": "there are no placement groups yet",
    "get_node_instance_id": "use retinue.get_runtime_context().get_node_id()",
    "iter": "use retinue.util.map_unordered",
    "pdb": "look at the logs or `retinue stack`, or debug the function in the driver",
    "placement_group": "there are no placement groups yet; use resources=, or scheduling_strategy='SPREAD'",
    "placement_group_table": "there are no placement groups yet",
    "ray_debugpy": "look at the logs or `retinue stack`, or debug the function in the driver",
    "remove_placement_group": "there are no placement groups yet",
    "rpdb": "look at the logs or `retinue stack`, or debug the function in the driver",
    "scheduling_strategies": "there are 'DEFAULT' and 'SPREAD' so far; use resources= to name nodes",
    "spark": "Retinue runs Python",
}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(importlib.import_module(f"retinue.util.{_HOME_OF[name]}"), name)
        globals()[name] = value
        return value
    if name in _ABSENT:
        from retinue.core.errors import AbsentNameError

        raise AbsentNameError(f"retinue.util.{name} does not exist: {_ABSENT[name]}")
    raise AttributeError(f"module 'retinue.util' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
