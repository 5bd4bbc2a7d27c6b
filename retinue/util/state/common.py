"""The classes of the rows that `retinue.util.state` gives, and its limits."""

from retinue.core.admin.filters import DEFAULT_LIMIT
from retinue.core.admin.filters import MAX_LIMIT as RETINUE_MAX_LIMIT_FROM_API_SERVER
from retinue.core.admin.schemas import (
    ActorState,
    ClusterEventState,
    DriverInfo,
    JobState,
    NodeState,
    ObjectState,
    PlacementGroupState,
    RuntimeEnvState,
    StateSchema,
    TaskState,
    WorkerState,
)
from retinue.util.state.options import (
    DEFAULT_RPC_TIMEOUT,
    GetApiOptions,
    ListApiOptions,
    StateResource,
    SummaryApiOptions,
    SummaryResource,
)

__all__ = [
    "DEFAULT_LIMIT",
    "DEFAULT_RPC_TIMEOUT",
    "RETINUE_MAX_LIMIT_FROM_API_SERVER",
    "ActorState",
    "ClusterEventState",
    "DriverInfo",
    "GetApiOptions",
    "JobState",
    "ListApiOptions",
    "NodeState",
    "ObjectState",
    "PlacementGroupState",
    "RuntimeEnvState",
    "StateResource",
    "StateSchema",
    "SummaryApiOptions",
    "SummaryResource",
    "TaskState",
    "WorkerState",
]
