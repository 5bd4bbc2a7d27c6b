"""What can be asked of `StateApiClient`, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from retinue.core.admin.filters import DEFAULT_LIMIT, Filter

DEFAULT_RPC_TIMEOUT = 30


class StateResource(Enum):
    """The kinds of rows."""

    ACTORS = "actors"
    JOBS = "jobs"
    PLACEMENT_GROUPS = "placement_groups"
    NODES = "nodes"
    WORKERS = "workers"
    TASKS = "tasks"
    OBJECTS = "objects"
    RUNTIME_ENVS = "runtime_envs"
    CLUSTER_EVENTS = "cluster_events"


class SummaryResource(Enum):
    """The kinds of rows that can be counted."""

    ACTORS = "actors"
    TASKS = "tasks"
    OBJECTS = "objects"


@dataclass
class ListApiOptions:
    """`timeout` (seconds) is for all that is asked; every filter must match."""

    limit: int = DEFAULT_LIMIT
    timeout: float = DEFAULT_RPC_TIMEOUT
    detail: bool = False
    filters: Sequence[Filter] | None = None


@dataclass
class GetApiOptions:
    timeout: float = DEFAULT_RPC_TIMEOUT


@dataclass
class SummaryApiOptions:
    timeout: float = DEFAULT_RPC_TIMEOUT
