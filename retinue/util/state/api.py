"""The functions of `retinue.util.state`, with Ray's signatures.

Lives here: arguments and defaults. Does not: asking (`retinue.core.admin`).

`filters` are (column, "=" or "!=", value), all of which must match; text is compared without regard to case.
`limit` is at most 10,000. `timeout` (seconds) is for the whole question. `detail` fills the columns of the
details. With `raise_on_missing_output` a node or process that does not answer raises, else it warns.
`_explain` warns where the limit left rows out.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from typing import Any

from retinue.core.admin import log_reader
from retinue.core.admin.ask import Asker, find_target
from retinue.core.admin.filters import DEFAULT_LIMIT, Filter
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
from retinue.core.admin.state import StateReader
from retinue.core.errors import UnsupportedError
from retinue.util.state.options import (
    DEFAULT_RPC_TIMEOUT,
    GetApiOptions,
    ListApiOptions,
    StateResource,
    SummaryApiOptions,
    SummaryResource,
)

Filters = Sequence[Filter] | None


class StateApiClient:
    """Asks one cluster, as often as it likes: what the functions below do, without finding it each time.

    Raises ConnectionError if there is none at `address`.
    """

    def __init__(self, address: str | None = None) -> None:
        self._target = find_target(address)

    def _reader(self, timeout: float) -> StateReader:
        return StateReader(Asker(self._target, timeout_s=timeout))

    def list(
        self,
        resource: StateResource,
        options: ListApiOptions,
        raise_on_missing_output: bool = True,
        _explain: bool = False,
    ) -> Any:
        """The rows that all filters match, as a list. Raises RetinueStateApiException."""
        listing = self._reader(options.timeout).listing(
            resource.value,
            filters=options.filters,
            limit=options.limit,
            detail=options.detail,
            raise_on_missing_output=raise_on_missing_output,
        )
        if _explain:
            for note in listing.notes:
                warnings.warn(note, UserWarning, stacklevel=2)
        return listing.states

    def get(
        self, resource: StateResource, id: str, options: GetApiOptions | None = None, _explain: bool = False
    ) -> Any:
        """The row of that id or None; of objects a list, of a task with several attempts as well."""
        timeout = (options or GetApiOptions()).timeout
        found = self._reader(timeout).get(resource.value, id)
        if resource is StateResource.OBJECTS:
            return found
        if len(found) > 1:
            return found
        return found[0] if found else None

    def summary(
        self,
        resource: SummaryResource,
        *,
        options: SummaryApiOptions | None = None,
        raise_on_missing_output: bool = True,
        _explain: bool = False,
    ) -> dict[str, Any]:
        """Counts, below the key "cluster"."""
        timeout = (options or SummaryApiOptions()).timeout
        return self._reader(timeout).summarize(
            resource.value, raise_on_missing_output=raise_on_missing_output
        )


def get_actor(
    id: str, address: str | None = None, timeout: float = DEFAULT_RPC_TIMEOUT, _explain: bool = False
) -> ActorState | None:
    """An actor by its id (hex). None if it is not known."""
    found: ActorState | None = StateApiClient(address).get(
        StateResource.ACTORS, id, GetApiOptions(timeout), _explain
    )
    return found


def get_job(
    id: str, address: str | None = None, timeout: float = DEFAULT_RPC_TIMEOUT, _explain: bool = False
) -> JobState | None:
    """A job by its job id (jobs have no submission id yet). None if it is not known."""
    found: JobState | None = StateApiClient(address).get(
        StateResource.JOBS, id, GetApiOptions(timeout), _explain
    )
    return found


def get_placement_group(
    id: str, address: str | None = None, timeout: float = DEFAULT_RPC_TIMEOUT, _explain: bool = False
) -> PlacementGroupState | None:
    """A placement group by its id: none, for there are none yet. None if it is not known."""
    found: PlacementGroupState | None = StateApiClient(address).get(
        StateResource.PLACEMENT_GROUPS, id, GetApiOptions(timeout), _explain
    )
    return found


def get_node(
    id: str, address: str | None = None, timeout: float = DEFAULT_RPC_TIMEOUT, _explain: bool = False
) -> NodeState | None:
    """A node by its id. None if it is not known."""
    found: NodeState | None = StateApiClient(address).get(
        StateResource.NODES, id, GetApiOptions(timeout), _explain
    )
    return found


def get_worker(
    id: str, address: str | None = None, timeout: float = DEFAULT_RPC_TIMEOUT, _explain: bool = False
) -> WorkerState | None:
    """A worker or driver by its id. None if it is not known."""
    found: WorkerState | None = StateApiClient(address).get(
        StateResource.WORKERS, id, GetApiOptions(timeout), _explain
    )
    return found


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


def list_actors(
    address: str | None = None,
    filters: Filters = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[ActorState]:
    """The actors, living ones first."""
    options = ListApiOptions(limit, timeout, detail, filters)
    found: list[ActorState] = StateApiClient(address).list(
        StateResource.ACTORS, options, raise_on_missing_output, _explain
    )
    return found


def list_placement_groups(
    address: str | None = None,
    filters: Filters = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[PlacementGroupState]:
    """The placement groups: none, for there are none yet."""
    options = ListApiOptions(limit, timeout, detail, filters)
    found: list[PlacementGroupState] = StateApiClient(address).list(
        StateResource.PLACEMENT_GROUPS, options, raise_on_missing_output, _explain
    )
    return found


def list_nodes(
    address: str | None = None,
    filters: Filters = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[NodeState]:
    """The nodes that the cluster has seen, living ones first."""
    options = ListApiOptions(limit, timeout, detail, filters)
    found: list[NodeState] = StateApiClient(address).list(
        StateResource.NODES, options, raise_on_missing_output, _explain
    )
    return found


def list_jobs(
    address: str | None = None,
    filters: Filters = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[JobState]:
    """The jobs, running ones first."""
    options = ListApiOptions(limit, timeout, detail, filters)
    found: list[JobState] = StateApiClient(address).list(
        StateResource.JOBS, options, raise_on_missing_output, _explain
    )
    return found


def list_workers(
    address: str | None = None,
    filters: Filters = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[WorkerState]:
    """Workers and drivers, living ones first."""
    options = ListApiOptions(limit, timeout, detail, filters)
    found: list[WorkerState] = StateApiClient(address).list(
        StateResource.WORKERS, options, raise_on_missing_output, _explain
    )
    return found


def list_tasks(
    address: str | None = None,
    filters: Filters = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[TaskState]:
    """Running, waiting, and the latest finished tasks and actor calls, in this order.

    Each node keeps a bounded number of finished ones. An actor's constructor is one of type
    ACTOR_CREATION_TASK, an attempt for each time that the actor was started.
    """
    options = ListApiOptions(limit, timeout, detail, filters)
    found: list[TaskState] = StateApiClient(address).list(
        StateResource.TASKS, options, raise_on_missing_output, _explain
    )
    return found


def list_objects(
    address: str | None = None,
    filters: Filters = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[ObjectState]:
    """The objects as their holders tell, the largest first: a row for each object and process."""
    options = ListApiOptions(limit, timeout, detail, filters)
    found: list[ObjectState] = StateApiClient(address).list(
        StateResource.OBJECTS, options, raise_on_missing_output, _explain
    )
    return found


def list_runtime_envs(
    address: str | None = None,
    filters: Filters = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[RuntimeEnvState]:
    """The runtime environments that living workers have, by node."""
    options = ListApiOptions(limit, timeout, detail, filters)
    found: list[RuntimeEnvState] = StateApiClient(address).list(
        StateResource.RUNTIME_ENVS, options, raise_on_missing_output, _explain
    )
    return found


def list_cluster_events(
    address: str | None = None,
    filters: Filters = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[ClusterEventState]:
    """What happened to nodes, actors and jobs since the head started, the latest first."""
    options = ListApiOptions(limit, timeout, detail, filters)
    found: list[ClusterEventState] = StateApiClient(address).list(
        StateResource.CLUSTER_EVENTS, options, raise_on_missing_output, _explain
    )
    return found


def summarize_tasks(
    address: str | None = None,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> dict[str, Any]:
    """How many tasks there are by function and state."""
    return StateApiClient(address).summary(
        SummaryResource.TASKS,
        options=SummaryApiOptions(timeout),
        raise_on_missing_output=raise_on_missing_output,
        _explain=_explain,
    )


def summarize_actors(
    address: str | None = None,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> dict[str, Any]:
    """How many actors there are by class and state."""
    return StateApiClient(address).summary(
        SummaryResource.ACTORS,
        options=SummaryApiOptions(timeout),
        raise_on_missing_output=raise_on_missing_output,
        _explain=_explain,
    )


def summarize_objects(
    address: str | None = None,
    timeout: float = DEFAULT_RPC_TIMEOUT,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> dict[str, Any]:
    """How many objects, and bytes, there are by call site, and who refers to them."""
    return StateApiClient(address).summary(
        SummaryResource.OBJECTS,
        options=SummaryApiOptions(timeout),
        raise_on_missing_output=raise_on_missing_output,
        _explain=_explain,
    )


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
