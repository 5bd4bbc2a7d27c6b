"""The functions of `retinue.util.state`, with Ray's signatures.

Lives here: the functions. Does not: their signatures (`signatures` has one for each kind), asking
(`retinue.core.admin`).

`filters` are (column, "=" or "!=", value), all of which must match; text is compared without regard to case.
`limit` is at most 10,000. `timeout` (seconds) is for the whole question. `detail` fills the columns of the
details. With `raise_on_missing_output` a node or process that does not answer raises, else it warns.
`_explain` warns where the limit left rows out.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from retinue.core.admin import log_reader
from retinue.core.admin.ask import Asker, find_target
from retinue.core.admin.schemas import (
    ActorState,
    ClusterEventState,
    JobState,
    NodeState,
    ObjectState,
    PlacementGroupState,
    RuntimeEnvState,
    TaskState,
    WorkerState,
)
from retinue.core.errors import UnsupportedError
from retinue.util.state.client import StateApiClient
from retinue.util.state.options import DEFAULT_RPC_TIMEOUT, GetApiOptions, StateResource, SummaryResource
from retinue.util.state.signatures import gets, lists, summarizes


@gets(StateResource.ACTORS, ActorState)
def get_actor() -> None:
    """An actor by its id (hex). None if it is not known."""


@gets(StateResource.JOBS, JobState)
def get_job() -> None:
    """A job by its job id (jobs have no submission id yet). None if it is not known."""


@gets(StateResource.PLACEMENT_GROUPS, PlacementGroupState)
def get_placement_group() -> None:
    """A placement group by its id: none, for there are none yet. None if it is not known."""


@gets(StateResource.NODES, NodeState)
def get_node() -> None:
    """A node by its id. None if it is not known."""


@gets(StateResource.WORKERS, WorkerState)
def get_worker() -> None:
    """A worker or driver by its id. None if it is not known."""


def get_task(
    id: str, address: str | None = None, timeout: float = DEFAULT_RPC_TIMEOUT, _explain: bool = False
) -> TaskState | list[TaskState] | None:
    """A task by its id; a list if it ran more than once. None if it is not known."""
    found: TaskState | list[TaskState] | None = StateApiClient(address).get(
        StateResource.TASKS, id, GetApiOptions(timeout), _explain
    )
    return found


def get_objects(
    id: str, address: str | None = None, timeout: float = DEFAULT_RPC_TIMEOUT, _explain: bool = False
) -> list[ObjectState]:
    """What each process that knows the object says of it; empty if none does."""
    found: list[ObjectState] = StateApiClient(address).get(
        StateResource.OBJECTS, id, GetApiOptions(timeout), _explain
    )
    return found


@lists(StateResource.ACTORS, ActorState)
def list_actors() -> None:
    """The actors, living ones first."""


@lists(StateResource.PLACEMENT_GROUPS, PlacementGroupState)
def list_placement_groups() -> None:
    """The placement groups: none, for there are none yet."""


@lists(StateResource.NODES, NodeState)
def list_nodes() -> None:
    """The nodes that the cluster has seen, living ones first."""


@lists(StateResource.JOBS, JobState)
def list_jobs() -> None:
    """The jobs, running ones first."""


@lists(StateResource.WORKERS, WorkerState)
def list_workers() -> None:
    """Workers and drivers, living ones first."""


@lists(StateResource.TASKS, TaskState)
def list_tasks() -> None:
    """Running, waiting, and the latest finished tasks and actor calls, in this order.

    Each node keeps a bounded number of finished ones. An actor's constructor is one of type
    ACTOR_CREATION_TASK, an attempt for each time that the actor was started.
    """


@lists(StateResource.OBJECTS, ObjectState)
def list_objects() -> None:
    """The objects as their holders tell, the largest first: a row for each object and process."""


@lists(StateResource.RUNTIME_ENVS, RuntimeEnvState)
def list_runtime_envs() -> None:
    """The runtime environments that living workers have, by node."""


@lists(StateResource.CLUSTER_EVENTS, ClusterEventState)
def list_cluster_events() -> None:
    """What happened to nodes, actors and jobs since the head started, the latest first."""


@summarizes(SummaryResource.TASKS)
def summarize_tasks() -> None:
    """How many tasks there are by function and state."""


@summarizes(SummaryResource.ACTORS)
def summarize_actors() -> None:
    """How many actors there are by class and state."""


@summarizes(SummaryResource.OBJECTS)
def summarize_objects() -> None:
    """How many objects, and bytes, there are by call site, and who refers to them."""


def list_logs(
    address: str | None = None,
    node_id: str | None = None,
    node_ip: str | None = None,
    glob_filter: str | None = None,
    timeout: float = DEFAULT_RPC_TIMEOUT,
) -> dict[str, list[str]]:
    """The names of a node's log files by kind: head, agent, worker_out, worker_err, ...

    Raises ValueError if no node is named, RetinueStateApiException if there is no such node.
    """
    if node_id is None and node_ip is None:
        raise ValueError("list_logs() needs node_id or node_ip")
    asker = Asker(find_target(address), timeout_s=timeout)
    return log_reader.list_files(asker, _node(asker, node_id, node_ip), glob_filter or "*")


def get_log(
    address: str | None = None,
    node_id: str | None = None,
    node_ip: str | None = None,
    filename: str | None = None,
    actor_id: str | None = None,
    task_id: str | None = None,
    pid: int | None = None,
    follow: bool = False,
    tail: int = -1,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    suffix: str = "out",
    encoding: str | None = "utf-8",
    errors: str | None = "strict",
    submission_id: str | None = None,
    attempt_number: int = 0,
    _interval: float | None = None,
    filter_ansi_code: bool = False,
) -> Generator[Any, None, None]:
    """A log file in parts: by its name, or by the actor, task or process (pid) whose output it holds.

    `suffix`: "out" or "err". `tail`: only the last lines; -1 for all. `follow`: go on with what is added,
    looking every `_interval` seconds, until the generator is closed. `encoding=None` gives bytes. The log of
    a task is that of the worker that ran it, other tasks' lines included. `timeout` (seconds) bounds finding
    the file, and each single read.

    Raises ValueError for arguments that name no file, RetinueStateApiException if there is none.
    """
    if submission_id is not None:
        raise UnsupportedError("get_log(submission_id=) is not supported: there are no submitted jobs yet")
    if suffix not in ("out", "err"):
        raise ValueError(f"suffix is 'out' or 'err', got {suffix!r}")
    if node_id is not None and node_ip is not None:
        raise ValueError("name the node by node_id or node_ip, not by both")
    asker = Asker(find_target(address), timeout_s=timeout)
    file = _log_file(asker, node_id, node_ip, filename, actor_id, task_id, pid, suffix, attempt_number)
    return log_reader.read_file(
        asker,
        file,
        tail=tail,
        follow=follow,
        interval_s=_interval,
        encoding=encoding,
        errors=errors or "strict",
        drop_ansi=filter_ansi_code,
        timeout_s=timeout,
    )


def _log_file(
    asker: Asker,
    node_id: str | None,
    node_ip: str | None,
    filename: str | None,
    actor_id: str | None,
    task_id: str | None,
    pid: int | None,
    suffix: str,
    attempt_number: int,
) -> log_reader.LogFile:
    if actor_id is not None:
        return log_reader.file_of_actor(asker, actor_id, suffix)
    if task_id is not None:
        return log_reader.file_of_task(asker, task_id, attempt_number, suffix)
    if filename is None and pid is None:
        raise ValueError("name the log by filename, actor_id, task_id or pid")
    if node_id is None and node_ip is None:
        raise ValueError("a log by its filename or pid also needs node_id or node_ip")
    node = _node(asker, node_id, node_ip)
    if filename is not None:
        return log_reader.LogFile(node, {"file": filename})
    assert pid is not None
    return log_reader.file_of_pid(asker, int(pid), suffix, node)


def _node(asker: Asker, node_id: str | None, node_ip: str | None) -> Any:
    return log_reader.choose_node(asker, node_id, node_ip)
