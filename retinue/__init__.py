"""Retinue: tasks, actors, objects, and model serving on them.

The names here are imported when they are first used, so that `import retinue` costs almost nothing.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "retinue.core.driver": ("init", "shutdown", "is_initialized"),
    "retinue.core.api": (
        "available_resources",
        "cancel",
        "cluster_resources",
        "get",
        "get_actor",
        "get_gpu_ids",
        "kill",
        "nodes",
        "put",
        "remote",
        "timeline",
        "wait",
    ),
    "retinue.core.actor": ("method",),
    "retinue.core.runtime_context": ("get_runtime_context",),
    "retinue.core.references": ("ObjectRef",),
    "retinue.core.client.streams": ("ObjectRefGenerator",),
    "retinue.core.logging_config": ("LoggingConfig",),
    "retinue.core.ids": (
        "ActorClassID",
        "ActorID",
        "JobID",
        "NodeID",
        "ObjectID",
        "PlacementGroupID",
        "TaskID",
        "WorkerID",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = (
    "actor",
    "cloudpickle",
    "cluster_utils",
    "exceptions",
    "experimental",
    "remote_function",
    "runtime_context",
    "runtime_env",
    "types",
    "util",
)
# Names that Ray has or had; using one says what to use instead.
_ABSENT = {
    "data": "Retinue has no data library; iterate over files in tasks",
    "train": "Retinue has no training library; train in tasks and actors",
    "tune": "Retinue has no tuning library; see examples/hyperparameter_sweep.py",
    "rllib": "Retinue has no reinforcement learning library",
    "workflow": "removed by Ray as well; keep the state in actors",
    "client": "connect with init(address=...)",
    "cross_language": "Retinue runs Python",
    "java_function": "Retinue runs Python",
    "java_actor_class": "Retinue runs Python",
    "cpp_function": "Retinue runs Python",
    "dag": "pass ObjectRefs from call to call",
    "show_in_dashboard": "use logging, or the metrics of retinue.util.metrics",
    "DynamicObjectRefGenerator": "use num_returns='streaming', which gives an ObjectRefGenerator",
    "air": "Retinue has no training library; train in tasks and actors",
    "job_config": "give namespace, runtime_env and logging_config to init()",
    "job_submission": "start the script on the cluster, with RETINUE_ADDRESS set",
    "widgets": "use the `retinue` command to look at a cluster",
}

if TYPE_CHECKING:
    from retinue.core.actor import method as method
    from retinue.core.api import available_resources as available_resources
    from retinue.core.api import cancel as cancel
    from retinue.core.api import cluster_resources as cluster_resources
    from retinue.core.api import get as get
    from retinue.core.api import get_actor as get_actor
    from retinue.core.api import get_gpu_ids as get_gpu_ids
    from retinue.core.api import kill as kill
    from retinue.core.api import nodes as nodes
    from retinue.core.api import put as put
    from retinue.core.api import remote as remote
    from retinue.core.api import timeline as timeline
    from retinue.core.api import wait as wait
    from retinue.core.client.streams import ObjectRefGenerator as ObjectRefGenerator
    from retinue.core.driver import init as init
    from retinue.core.driver import is_initialized as is_initialized
    from retinue.core.driver import shutdown as shutdown
    from retinue.core.ids import ActorClassID as ActorClassID
    from retinue.core.ids import ActorID as ActorID
    from retinue.core.ids import JobID as JobID
    from retinue.core.ids import NodeID as NodeID
    from retinue.core.ids import ObjectID as ObjectID
    from retinue.core.ids import PlacementGroupID as PlacementGroupID
    from retinue.core.ids import TaskID as TaskID
    from retinue.core.ids import WorkerID as WorkerID
    from retinue.core.logging_config import LoggingConfig as LoggingConfig
    from retinue.core.references import ObjectRef as ObjectRef
    from retinue.core.runtime_context import get_runtime_context as get_runtime_context


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is not None:
        value = getattr(importlib.import_module(home), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"retinue.{name}")
    if name in _ABSENT:
        from retinue.core.errors import AbsentNameError

        raise AbsentNameError(f"retinue.{name} does not exist: {_ABSENT[name]}")
    raise AttributeError(f"module 'retinue' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*_HOME_OF, *_MODULES, "__version__"})


class _AbsentModules:
    """Asked for a module last, when there is none: importing a name of `_ABSENT` says what to use instead."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        parent, _, last = name.rpartition(".")
        if parent in ("retinue", "retinue.util"):
            instead: dict[str, str] = vars(sys.modules[parent])["_ABSENT"]
            if last in instead:
                # Without the module's name in `name`: `from retinue import x` would drop the text.
                raise ModuleNotFoundError(f"{name} does not exist: {instead[last]}")


sys.meta_path.append(_AbsentModules)

__all__ = sorted(_HOME_OF)
