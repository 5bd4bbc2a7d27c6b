"""Count rows: tasks by function, actors by class, objects by call site, memory by holder. Pure.

The shapes are Ray's: `{"cluster": {"summary": {...}, "total_...": ...}}`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from retinue.core.admin.filters import Row

MIB = 1024**2


def summarize_tasks(tasks: Iterable[Row]) -> dict[str, Any]:
    summary: dict[str, dict[str, Any]] = {}
    kinds = {"NORMAL_TASK": 0, "ACTOR_TASK": 0, "ACTOR_CREATION_TASK": 0}
    for task in tasks:
        name = task["name"] or task["func_or_class_name"]
        group = summary.setdefault(
            name, {"func_or_class_name": name, "type": task["type"], "state_counts": {}}
        )
        _count(group["state_counts"], task["state"])
        _count(kinds, task["type"])
    return {
        "cluster": {
            "summary": summary,
            "total_tasks": kinds["NORMAL_TASK"],
            "total_actor_tasks": kinds["ACTOR_TASK"],
            "total_actor_scheduled": kinds["ACTOR_CREATION_TASK"],
            "summary_by": "func_name",
        }
    }


def summarize_actors(actors: Iterable[Row]) -> dict[str, Any]:
    summary: dict[str, dict[str, Any]] = {}
    total = 0
    for actor in actors:
        name = actor["class_name"]
        group = summary.setdefault(name, {"class_name": name, "state_counts": {}})
        _count(group["state_counts"], actor["state"])
        total += 1
    return {"cluster": {"summary": summary, "total_actors": total, "summary_by": "class"}}


def summarize_objects(objects: Iterable[Row]) -> dict[str, Any]:
    summary: dict[str, dict[str, Any]] = {}
    holders: dict[str, tuple[set[int], set[str]]] = {}
    for held in objects:
        site = held["call_site"]
        group = summary.setdefault(
            site,
            {
                "total_objects": 0,
                "total_size_mb": 0.0,
                "total_num_workers": 0,
                "total_num_nodes": 0,
                "task_state_counts": {},
                "task_attempt_number_counts": {},
                "ref_type_counts": {},
            },
        )
        group["total_objects"] += 1
        group["total_size_mb"] += max(0, held["object_size"]) / MIB
        _count(group["task_state_counts"], held["task_status"])
        _count(group["task_attempt_number_counts"], str(held["attempt_number"]))
        _count(group["ref_type_counts"], held["reference_type"])
        workers, nodes = holders.setdefault(site, (set(), set()))
        workers.add(held["pid"])
        nodes.add(held["ip"])
        group["total_num_workers"], group["total_num_nodes"] = len(workers), len(nodes)
    return {
        "cluster": {
            "summary": summary,
            "total_objects": sum(group["total_objects"] for group in summary.values()),
            "total_size_mb": sum(group["total_size_mb"] for group in summary.values()),
            "callsite_enabled": "disabled" not in summary,
            "summary_by": "callsite",
        }
    }


def _count(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1


# --- memory ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Holding:
    """What one process holds from one call site, for one reason."""

    holder: str  # "driver 123" or "worker 456"
    ip: str
    call_site: str
    reference_type: str
    objects: int
    size_bytes: int


def holdings(objects: Iterable[Row]) -> list[Holding]:
    """Who holds what, the most bytes first. An object that several processes hold counts for each."""
    groups: dict[tuple[str, str, str, str], list[int]] = {}
    for held in objects:
        holder = f"{held['type'].lower()} {held['pid']}"
        key = holder, held["ip"], held["call_site"], held["reference_type"]
        count = groups.setdefault(key, [0, 0])
        count[0] += 1
        count[1] += max(0, held["object_size"])
    found = [Holding(*key, objects=count, size_bytes=size) for key, (count, size) in groups.items()]
    return sorted(found, key=lambda holding: (-holding.size_bytes, holding.holder, holding.call_site))


def distinct_bytes(objects: Iterable[Row]) -> tuple[int, int]:
    """How many objects there are, and their bytes, each counted once."""
    sizes: dict[str, int] = {}
    for held in objects:
        object_id = held["object_id"]
        sizes[object_id] = max(sizes.get(object_id, 0), held["object_size"])
    return len(sizes), sum(sizes.values())
