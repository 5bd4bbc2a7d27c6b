"""The rows that `retinue list` and `retinue.util.state` give: a class for each kind, with Ray's field names.

Lives here: fields, which of them can be filtered or belong to the details, how they read for people. Pure.
Does not: where the values come from (`rows`).
"""

# ruff: noqa: RUF009 - `column` makes a dataclass field, as `dataclasses.field` does.
from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, ClassVar


def column(
    *, filterable: bool = False, detail: bool = False, format_fn: Callable[[Any], Any] | None = None
) -> Any:
    """A field. Those of the details are None where they were not asked for."""
    metadata = {"filterable": filterable, "detail": detail, "format_fn": format_fn}
    return field(default=None if detail else MISSING, metadata=metadata)


def timestamp(milliseconds: float) -> str:
    """Wall-clock time for people; "" for a time that is not known."""
    if milliseconds <= 0:
        return ""
    moment = dt.datetime.fromtimestamp(milliseconds / 1000).astimezone()
    return moment.isoformat(" ", "milliseconds")


def memory(size_bytes: float) -> str:
    """
    >>> memory(3 * 2**20)
    '3.000 MiB'
    """
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.3f} {name}"
    return f"{size_bytes:.0f} B"


def duration(milliseconds: float) -> str:
    return str(dt.timedelta(milliseconds=milliseconds))


def node_resources(resources: dict[str, float]) -> dict[str, Any]:
    """Amounts of memory with their units."""
    return {name: memory(amount) if "memory" in name else amount for name, amount in resources.items()}


def _events(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**event, "created_ms": timestamp(event["created_ms"])} for event in events]


class StateSchema:
    """Base of the rows: attributes, and the same by key, as in a dict."""

    id_column: ClassVar[str] = ""

    @classmethod
    def list_columns(cls, detail: bool = True) -> list[str]:
        """The columns in their order; without `detail` only those of the short form."""
        return [f.name for f in fields(cls) if detail or not f.metadata["detail"]]  # type: ignore[arg-type]

    @classmethod
    def columns(cls) -> set[str]:
        return set(cls.list_columns())

    @classmethod
    def base_columns(cls) -> set[str]:
        return set(cls.list_columns(detail=False))

    @classmethod
    def detail_columns(cls) -> set[str]:
        return set(cls.list_columns(detail=True))

    @classmethod
    def filterable_columns(cls) -> set[str]:
        return {f.name for f in fields(cls) if f.metadata["filterable"]}  # type: ignore[arg-type]

    @classmethod
    def humanify(cls, state: dict[str, Any]) -> dict[str, Any]:
        """The row with times, sizes and amounts as people read them."""
        formats = {f.name: f.metadata["format_fn"] for f in fields(cls)}  # type: ignore[arg-type]
        return {
            name: formats[name](value) if formats.get(name) is not None and value is not None else value
            for name, value in state.items()
        }

    def asdict(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    def __getitem__(self, key: str) -> Any:
        try:
            return getattr(self, key)
        except AttributeError:
            raise KeyError(key) from None

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self, key, value)

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key, default)


@dataclass
class ActorState(StateSchema):
    """An actor: PENDING_CREATION, ALIVE, RESTARTING or DEAD."""

    id_column: ClassVar[str] = "actor_id"

    actor_id: str = column(filterable=True)
    class_name: str = column(filterable=True)
    state: str = column(filterable=True)
    job_id: str = column(filterable=True)
    name: str | None = column(filterable=True)
    node_id: str | None = column(filterable=True)
    pid: int | None = column(filterable=True)
    ray_namespace: str | None = column(filterable=True)
    serialized_runtime_env: str | None = column(detail=True)
    required_resources: dict[str, float] | None = column(detail=True)
    death_cause: dict[str, Any] | None = column(detail=True)
    is_detached: bool | None = column(detail=True)
    placement_group_id: str | None = column(filterable=True, detail=True)
    repr_name: str | None = column(filterable=True, detail=True)
    num_restarts: int | None = column(detail=True)
    num_restarts_due_to_lineage_reconstruction: int | None = column(detail=True)
    num_restarts_due_to_node_preemption: int | None = column(detail=True)
    call_site: str | None = column(detail=True)
    label_selector: dict[str, str] | None = column(detail=True)
    fallback_strategy: dict[str, Any] | None = column(detail=True)


@dataclass
class PlacementGroupState(StateSchema):
    """A placement group."""

    id_column: ClassVar[str] = "placement_group_id"

    placement_group_id: str = column(filterable=True)
    name: str = column(filterable=True)
    creator_job_id: str = column(filterable=True)
    state: str = column(filterable=True)
    bundles: list[dict[str, Any]] | None = column(detail=True)
    is_detached: bool | None = column(filterable=True, detail=True)
    stats: dict[str, Any] | None = column(detail=True)
    topology_strategy: dict[str, Any] | None = column(detail=True)
    topology_assignments: dict[str, Any] | None = column(detail=True)


@dataclass
class NodeState(StateSchema):
    """A node: ALIVE or DEAD."""

    id_column: ClassVar[str] = "node_id"

    node_id: str = column(filterable=True)
    node_ip: str = column(filterable=True)
    is_head_node: bool = column(filterable=True)
    state: str = column(filterable=True)
    state_message: str | None = column()
    node_name: str = column(filterable=True)
    resources_total: dict[str, float] = column(format_fn=node_resources)
    labels: dict[str, str] = column()
    start_time_ms: int | None = column(detail=True, format_fn=timestamp)
    end_time_ms: int | None = column(detail=True, format_fn=timestamp)


@dataclass
class DriverInfo:
    """Where a job's driver runs."""

    id: str
    node_ip_address: str
    pid: str


@dataclass
class JobState(StateSchema):
    """A job: a driver's, from `init()` to its end."""

    id_column: ClassVar[str] = "job_id"

    type: str = column(filterable=True)
    job_id: str | None = column(filterable=True)
    submission_id: str | None = column(filterable=True)
    driver_info: DriverInfo | None = column()
    status: str = column(filterable=True)
    entrypoint: str = column()
    message: str | None = column()
    error_type: str | None = column()
    start_time: int | None = column(detail=True, format_fn=timestamp)
    end_time: int | None = column(detail=True, format_fn=timestamp)
    metadata: dict[str, str] | None = column(detail=True)
    runtime_env: dict[str, Any] | None = column(detail=True)
    driver_agent_http_address: str | None = column(detail=True)
    driver_node_id: str | None = column(detail=True)
    driver_exit_code: int | None = column(detail=True)


@dataclass
class WorkerState(StateSchema):
    """A worker process or a driver."""

    id_column: ClassVar[str] = "worker_id"

    worker_id: str = column(filterable=True)
    is_alive: bool = column(filterable=True)
    worker_type: str = column(filterable=True)
    exit_type: str | None = column(filterable=True)
    node_id: str = column(filterable=True)
    ip: str = column(filterable=True)
    pid: int = column(filterable=True)
    exit_detail: str | None = column(detail=True)
    worker_launch_time_ms: int | None = column(detail=True, format_fn=timestamp)
    worker_launched_time_ms: int | None = column(detail=True, format_fn=timestamp)
    start_time_ms: int | None = column(detail=True, format_fn=timestamp)
    end_time_ms: int | None = column(detail=True, format_fn=timestamp)
    debugger_port: int | None = column(filterable=True, detail=True)
    num_paused_threads: int | None = column(filterable=True, detail=True)


@dataclass
class ClusterEventState(StateSchema):
    """Something that happened to the cluster: a node or an actor died, a job ended."""

    id_column: ClassVar[str] = "event_id"

    severity: str = column(filterable=True)
    time: str = column()
    source_type: str = column(filterable=True)
    message: str = column()
    event_id: str = column(filterable=True)
    custom_fields: dict[str, Any] | None = column(detail=True)


@dataclass
class TaskState(StateSchema):
    """A task, an actor's constructor (ACTOR_CREATION_TASK) or a call of its methods (ACTOR_TASK)."""

    id_column: ClassVar[str] = "task_id"

    task_id: str = column(filterable=True)
    attempt_number: int = column(filterable=True)
    name: str = column(filterable=True)
    state: str = column(filterable=True)
    job_id: str = column(filterable=True)
    actor_id: str | None = column(filterable=True)
    type: str = column(filterable=True)
    func_or_class_name: str = column(filterable=True)
    parent_task_id: str = column(filterable=True)
    node_id: str | None = column(filterable=True)
    worker_id: str | None = column(filterable=True)
    worker_pid: int | None = column(filterable=True)
    error_type: str | None = column(filterable=True)
    language: str | None = column(filterable=True, detail=True)
    required_resources: dict[str, float] | None = column(detail=True)
    runtime_env_info: dict[str, Any] | None = column(detail=True)
    placement_group_id: str | None = column(filterable=True, detail=True)
    events: list[dict[str, Any]] | None = column(detail=True, format_fn=_events)
    profiling_data: dict[str, Any] | None = column(detail=True)
    creation_time_ms: int | None = column(detail=True, format_fn=timestamp)
    start_time_ms: int | None = column(detail=True, format_fn=timestamp)
    end_time_ms: int | None = column(detail=True, format_fn=timestamp)
    task_log_info: dict[str, Any] | None = column(detail=True)
    error_message: str | None = column(detail=True)
    is_debugger_paused: bool | None = column(filterable=True, detail=True)
    call_site: str | None = column(detail=True)
    label_selector: dict[str, str] | None = column(detail=True)
    fallback_strategy: dict[str, Any] | None = column(detail=True)


@dataclass
class ObjectState(StateSchema):
    """An object as one process knows it: what each holder of a reference says gives a row of its own."""

    id_column: ClassVar[str] = "object_id"

    object_id: str = column(filterable=True)
    object_size: int = column(filterable=True, format_fn=memory)
    task_status: str = column(filterable=True)
    attempt_number: int = column(filterable=True)
    reference_type: str = column(filterable=True)
    call_site: str = column(filterable=True)
    type: str = column(filterable=True)
    pid: int = column(filterable=True)
    ip: str = column(filterable=True)


@dataclass
class RuntimeEnvState(StateSchema):
    """A runtime environment that living workers of a node have."""

    runtime_env: dict[str, Any] = column(filterable=True)
    success: bool = column(filterable=True)
    creation_time_ms: float | None = column(format_fn=duration)
    node_id: str = column(filterable=True)
    ref_cnt: int | None = column(detail=True)
    error: str | None = column(filterable=True, detail=True)


SCHEMAS: dict[str, type[StateSchema]] = {
    "actors": ActorState,
    "jobs": JobState,
    "placement_groups": PlacementGroupState,
    "nodes": NodeState,
    "workers": WorkerState,
    "tasks": TaskState,
    "objects": ObjectState,
    "runtime_envs": RuntimeEnvState,
    "cluster_events": ClusterEventState,
}
