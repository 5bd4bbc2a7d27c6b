"""Make the rows of `schemas` from what head, agents and processes answer. Pure.

Times come in as wall-clock seconds and go out as wall-clock milliseconds, which Ray's fields hold.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from retinue.core.admin.filters import Row
from retinue.core.admin.schemas import DriverInfo, timestamp
from retinue.core.ids import JOB_ID_SIZE
from retinue.core.wire.messages import ActorInfo, JobInfo, NodeInfo

LOOPBACK = "127.0.0.1"
CALL_SITES_UNKNOWN = "disabled"

_ACTOR_STATES = {"PENDING": "PENDING_CREATION"}
# Ray's words for where a task is; what a process says otherwise is passed on.
_RUNNING, _FINISHED, _FAILED = "RUNNING", "FINISHED", "FAILED"
_NOTHING: dict[str, list[Any]] = {"objects": []}
_SIZED = ("INLINE", "STORED", "ERROR")


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """What the agent of one node said to one question (see `node.queries` for the documents)."""

    node_id: str
    node_ip: str
    document: Any


def to_ms(seconds: float | None) -> int | None:
    return round(seconds * 1000) if seconds else None


# --- from the head ------------------------------------------------------------------------------------


def actor_rows(actors: Iterable[ActorInfo]) -> list[Row]:
    """Living ones first, in the head's order."""
    rows = [_actor_row(info) for info in actors]
    return sorted(rows, key=lambda row: row["state"] == "DEAD")


def _actor_row(info: ActorInfo) -> Row:
    spec = info.spec
    row: Row = {
        "actor_id": info.actor_id.hex(),
        "class_name": spec.class_name if spec else "",
        "state": _ACTOR_STATES.get(info.state, info.state),
        "job_id": info.actor_id[-JOB_ID_SIZE:].hex(),
        "name": spec.name if spec else "",
        "node_id": info.node_id.hex() or None,
        "pid": info.pid,
        "ray_namespace": spec.namespace if spec else "",
        "num_restarts": info.num_restarts,
        "num_restarts_due_to_lineage_reconstruction": 0,
        "num_restarts_due_to_node_preemption": 0,
        "repr_name": "",
    }
    if spec is not None:
        row["job_id"] = spec.job_id.hex()
        row["serialized_runtime_env"] = spec.shape.env.runtime_env
        row["required_resources"] = dict(spec.shape.resources)
        row["is_detached"] = spec.detached
    if info.death is not None or info.death_cause:
        row["death_cause"] = _death_cause(info)
    return row


def _death_cause(info: ActorInfo) -> dict[str, Any]:
    cause: dict[str, Any] = {
        "error_message": info.death_cause,
        "error_type": info.error_kind or "ActorDiedError",
    }
    if info.death is not None:
        cause |= {
            "pid": info.death.pid,
            "exit_code": info.death.exit_code,
            "signal": info.death.signal,
            "log_tail": info.death.log_tail,
        }
    return cause


def node_rows(nodes: Iterable[NodeInfo]) -> list[Row]:
    """Living ones first."""
    rows = [
        {
            "node_id": info.node_id.hex(),
            "node_ip": info.address.host or LOOPBACK,
            "is_head_node": info.is_head,
            "state": "ALIVE" if info.alive else "DEAD",
            "state_message": info.death_reason or ("draining" if info.draining else None),
            "node_name": info.hostname,
            "resources_total": dict(info.total),
            "labels": dict(info.labels),
            "start_time_ms": to_ms(info.start_time),
            "end_time_ms": to_ms(info.end_time),
        }
        for info in nodes
    ]
    return sorted(rows, key=lambda row: row["state"] == "DEAD")


def job_rows(jobs: Iterable[JobInfo]) -> list[Row]:
    """Running ones first, then the latest."""
    rows = [
        {
            "type": "DRIVER",
            "job_id": job.job_id.hex(),
            "submission_id": None,
            "driver_info": DriverInfo(job.driver.worker_id.hex(), job.driver.host or LOOPBACK, str(job.pid)),
            "status": job.status,
            "entrypoint": job.entrypoint,
            "message": job.message or None,
            "error_type": None,
            "start_time": round(job.start_time * 1000),
            "end_time": round(job.end_time * 1000) or None,
            "metadata": {"namespace": job.namespace},
            "runtime_env": json.loads(job.runtime_env),
            "driver_node_id": job.driver.node_id.hex(),
        }
        for job in jobs
    ]
    return sorted(rows, key=lambda row: (row["status"] != "RUNNING", -row["start_time"]))


def event_rows(events: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The head's record of what has happened, the latest first."""
    rows = []
    for event in events:
        identity = f"{event['at']}{event['source']}{event['message']}"
        rows.append(
            {
                "severity": event["severity"],
                "time": timestamp(event["at"] * 1000),
                "source_type": event["source"],
                "message": event["message"],
                "event_id": hashlib.blake2b(identity.encode(), digest_size=16).hexdigest(),
                "custom_fields": dict(event.get("fields", {})),
            }
        )
    return rows[::-1]


# --- from the agents ----------------------------------------------------------------------------------


def worker_rows(answers: Iterable[NodeAnswer]) -> list[Row]:
    """Living ones first."""
    rows = [_worker_row(answer, worker) for answer in answers for worker in answer.document]
    return sorted(rows, key=lambda row: not row["is_alive"])


def _worker_row(answer: NodeAnswer, worker: Mapping[str, Any]) -> Row:
    started_ms = to_ms(worker.get("started_at"))
    return {
        "worker_id": worker["worker_id"],
        "is_alive": worker["is_alive"],
        "worker_type": worker["worker_type"],
        "exit_type": None if worker["is_alive"] else exit_type(worker),
        "node_id": answer.node_id,
        "ip": answer.node_ip,
        "pid": worker["pid"],
        "exit_detail": worker.get("exit_detail"),
        "worker_launch_time_ms": started_ms or -1,
        "worker_launched_time_ms": started_ms or -1,
        "start_time_ms": started_ms or 0,
        "end_time_ms": 0,
    }


def exit_type(worker: Mapping[str, Any]) -> str:
    """Ray's word for how a worker ended."""
    if worker.get("is_intended"):
        return "INTENDED_SYSTEM_EXIT"
    if worker.get("exit_code") == 0 and worker.get("signal") is None:
        return "INTENDED_USER_EXIT"
    return "SYSTEM_ERROR"


def runtime_env_rows(answers: Iterable[NodeAnswer]) -> list[Row]:
    """The environments that living workers have, by node; those without one are left out."""
    counts: Counter[tuple[str, str]] = Counter()
    for answer in answers:
        for worker in answer.document:
            text = worker.get("runtime_env") or "{}"
            if worker["is_alive"] and json.loads(text):
                counts[answer.node_id, text] += 1
    return [
        {"runtime_env": json.loads(text), "success": True, "node_id": node_id, "ref_cnt": count}
        for (node_id, text), count in counts.items()
    ]


def task_rows(answers: Iterable[NodeAnswer]) -> list[Row]:
    """One row for each attempt: running ones first, then waiting ones, then finished ones, the latest first.

    Beside the columns they have `start_time` and `end_time` in seconds. A running task is told by its
    worker and, as pending, by its caller; the worker knows better. So does the record of a finished one,
    which may come before its caller has read the answer.
    """
    unfinished: dict[str, Row] = {}
    finished: list[Row] = []
    for answer in answers:
        finished += [_finished_row(answer, task) for task in answer.document["finished"]]
        for task in answer.document["live"]:
            row = _unfinished_row(answer, task)
            known = unfinished.get(row["task_id"])
            unfinished[row["task_id"]] = row if known is None else _better(known, row)
    attempts: Counter[str] = Counter()
    finished.sort(key=lambda row: row["end_time"])
    for row in finished:
        row["attempt_number"] = attempts[row["task_id"]]
        attempts[row["task_id"]] += 1
    live = [row for row in unfinished.values() if row["attempt_number"] >= attempts[row["task_id"]]]
    live.sort(key=lambda row: row["state"] != _RUNNING)
    return live + finished[::-1]


def _better(one: Row, other: Row) -> Row:
    """What the worker that runs the task says, completed by what its caller knows."""
    first, second = (one, other) if one["state"] == _RUNNING else (other, one)
    return {key: value if value not in (None, "") else second.get(key) for key, value in first.items()}


def _unfinished_row(answer: NodeAnswer, task: Mapping[str, Any]) -> Row:
    is_running = task["state"] == _RUNNING
    actor_id = task.get("actor_id") or None
    return {
        "task_id": task["task_id"],
        "attempt_number": task.get("attempt_number", 0),
        "name": task["name"],
        "state": task["state"],
        "job_id": job_of_task(task["task_id"]),
        "actor_id": actor_id,
        "type": task.get("type", ""),
        "func_or_class_name": task.get("function") or task["name"],
        "parent_task_id": task.get("parent_task_id", ""),
        "node_id": answer.node_id if is_running else None,
        "worker_id": task.get("worker_id") if is_running else None,
        "worker_pid": task.get("pid") if is_running else None,
        "language": "PYTHON",
        "start_time": task.get("start_time"),
        "start_time_ms": to_ms(task.get("start_time")),
    }


def _finished_row(answer: NodeAnswer, task: Mapping[str, Any]) -> Row:
    start_ms, end_ms = to_ms(task["start_time"]), to_ms(task["end_time"])
    error = task["error_message"] or None
    return {
        "task_id": task["task_id"],
        "attempt_number": 0,
        "name": task["name"],
        "state": task["state"],
        "job_id": job_of_task(task["task_id"]),
        "actor_id": task["actor_id"] or None,
        "type": task["type"],
        "func_or_class_name": task["name"],
        "parent_task_id": "",
        "node_id": answer.node_id,
        "worker_id": task["worker_id"],
        "worker_pid": task["pid"],
        "error_type": error,
        "error_message": error,
        "language": "PYTHON",
        "start_time": task["start_time"],
        "end_time": task["end_time"],
        "start_time_ms": start_ms,
        "end_time_ms": end_ms,
        "events": [
            {"state": _RUNNING, "created_ms": start_ms},
            {"state": task["state"], "created_ms": end_ms},
        ],
    }


def job_of_task(task_id: str) -> str:
    """Every task's id ends with its job's."""
    return task_id[-2 * JOB_ID_SIZE :]


def object_rows(answers: Iterable[NodeAnswer]) -> list[Row]:
    """One row for each object and process that knows it, the largest first."""
    rows = [
        _object_row(answer, process, held)
        for answer in answers
        for process in answer.document
        for held in (process["answer"] or _NOTHING)["objects"]
    ]
    return sorted(rows, key=lambda row: -row["object_size"])


def _object_row(answer: NodeAnswer, process: Mapping[str, Any], held: Mapping[str, Any]) -> Row:
    return {
        "object_id": held["object_id"],
        "object_size": held["size"] if held["state"] in _SIZED else -1,
        "task_status": _task_status(held),
        "attempt_number": held.get("attempt_number", 0) + 1,
        "reference_type": reference_type(held),
        "call_site": held.get("call_site") or CALL_SITES_UNKNOWN,
        "type": process["kind"].upper(),
        "pid": process["pid"],
        "ip": answer.node_ip,
    }


def _task_status(held: Mapping[str, Any]) -> str:
    """Ray's word for how far the task is that makes the object; NIL where the process does not know."""
    if held["state"] == "PENDING":
        return "PENDING_NODE_ASSIGNMENT" if held["owned"] else "NIL"
    if held["state"] == "ACTOR":
        return "NIL"
    return _FAILED if held["state"] in ("ERROR", "LOST") else _FINISHED


def reference_type(held: Mapping[str, Any]) -> str:
    """Ray's word for why the process keeps the object."""
    if held["state"] == "ACTOR":
        return "ACTOR_HANDLE"
    if held.get("local_references"):
        return "LOCAL_REFERENCE"
    if held.get("uses"):
        return "USED_BY_PENDING_TASK"
    if held.get("borrowers"):
        return "CAPTURED_IN_OBJECT"
    return "UNKNOWN_STATUS"
