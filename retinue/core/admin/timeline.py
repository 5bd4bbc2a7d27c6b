"""The finished calls of a cluster as a Chrome trace: open it in chrome://tracing or ui.perfetto.dev.

Lives here: rows of tasks to trace events (pure), and asking for them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from retinue.core.admin.ask import Asker, Target
from retinue.core.admin.filters import Row
from retinue.core.admin.state import StateReader, check_complete

if TYPE_CHECKING:
    from retinue.core.client.runtime import Runtime

TIMEOUT_S = 30.0
_COLOURS = {"FAILED": "bad", "RUNNING": "good"}


def trace_events(tasks: Iterable[Row], *, now: float) -> list[dict[str, Any]]:
    """One complete event for each call that has begun, a process for each node, a thread for each worker.

    A call that still runs ends at `now` (wall-clock seconds).
    """
    begun = [task for task in tasks if task.get("start_time") and task.get("worker_pid")]
    nodes = {node_id: number for number, node_id in enumerate(dict.fromkeys(t["node_id"] for t in begun))}
    events = [_name("process_name", number, 0, f"node {node_id[:12]}") for node_id, number in nodes.items()]
    workers = dict.fromkeys((task["node_id"], task["worker_pid"], task["worker_id"]) for task in begun)
    for node_id, pid, worker_id in workers:
        events.append(_name("thread_name", nodes[node_id], pid, f"worker {pid} ({worker_id[:12]})"))
    return events + [_event(task, nodes[task["node_id"]], now) for task in begun]


def _name(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}


def _event(task: Row, node: int, now: float) -> dict[str, Any]:
    start, end = task["start_time"], task.get("end_time") or now
    event = {
        "cat": f"task::{task['func_or_class_name']}",
        "name": task["name"],
        "ph": "X",
        "pid": node,
        "tid": task["worker_pid"],
        "ts": round(start * 1e6),
        "dur": max(0, round((end - start) * 1e6)),
        "args": {
            "task_id": task["task_id"],
            "job_id": task["job_id"],
            "attempt_number": task["attempt_number"],
            "state": task["state"],
            "actor_id": task["actor_id"],
            "error": task.get("error_type"),
        },
    }
    colour = _COLOURS.get(task["state"])
    return {**event, "cname": colour} if colour else event


def cluster_trace(asker: Asker) -> list[dict[str, Any]]:
    """The trace of a cluster."""
    table = StateReader(asker).table("tasks")
    check_complete("tasks", table, raise_on_missing_output=False)
    return trace_events(table.rows, now=time.time())


def chrome_trace(runtime: Runtime, filename: str | None = None) -> list[dict[str, Any]] | None:
    """The trace of the runtime's cluster: as a list, or written to `filename` as JSON."""
    asker = Asker(Target(runtime.head.address, runtime.token), timeout_s=TIMEOUT_S)
    events = cluster_trace(asker)
    if filename is None:
        return events
    write_trace(events, filename)
    return None


def write_trace(events: list[dict[str, Any]], filename: str) -> None:
    with open(filename, "wb") as file:
        file.write(msgspec.json.encode(events))
