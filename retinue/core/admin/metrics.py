"""The metrics of a whole cluster in Prometheus' text form.

Lives here: the core's own metrics from what head and agents say (pure), the processes' metrics beside them,
and asking. Does not: the text form (`core.metric_text`), or serving it (`server`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retinue.core.admin.ask import Asker
from retinue.core.metric_text import Sample, render_prometheus
from retinue.core.wire.messages import NodeInfo, Query

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Name, kind, description, and where the agent's answer about itself has it.
_OF_NODE = (
    ("tasks_finished", "counter", "Tasks and actor calls that have ended", "tasks_finished"),
    ("tasks_failed", "counter", "Tasks and actor calls that have raised", "tasks_failed"),
    ("task_events_dropped", "counter", "Finished tasks that are not listed any more", "task_events_dropped"),
    ("actors", "gauge", "Actors that live on the node", "actors"),
    ("workers", "gauge", "Worker processes", "workers"),
    ("worker_starts", "counter", "Worker processes started", "worker_starts"),
)
_OF_STORE = (
    ("object_store_objects", "gauge", "Objects in the store", "objects"),
    ("object_store_used_bytes", "gauge", "Bytes of the store that objects take", "used_bytes"),
    ("object_store_size_bytes", "gauge", "Bytes that the store may take", "budget_bytes"),
    ("object_store_pinned_bytes", "gauge", "Bytes of objects in use", "pinned_bytes"),
    ("object_store_on_disk_bytes", "gauge", "Bytes of spilled objects", "on_disk_bytes"),
)


def sample(name: str, kind: str, description: str, value: float, **tags: str) -> Sample:
    return {"name": name, "kind": kind, "description": description, "tags": tags, "value": float(value)}


def node_samples(facts: Mapping[str, Any]) -> list[Sample]:
    """What an agent says of itself (`node.queries`)."""
    store = facts["store"]
    found = [sample(name, kind, text, facts[key]) for name, kind, text, key in _OF_NODE]
    found += [sample(name, kind, text, store[key]) for name, kind, text, key in _OF_STORE]
    waiting = sum(shape["count"] for shape in facts["waiting"])
    found.append(sample("leases_waiting", "gauge", "Workers asked for that do not fit now", waiting))
    for name, total in facts["total"].items():
        used = total - facts["available"].get(name, 0.0)
        found.append(sample("resource_total", "gauge", "Resources of the node", total, resource=name))
        found.append(sample("resource_used", "gauge", "Resources in use", used, resource=name))
    return found


def cluster_samples(summary: Mapping[str, Any], nodes: Sequence[NodeInfo]) -> list[Sample]:
    """What the head says."""
    alive = sum(node.alive for node in nodes)
    return [
        sample("nodes", "gauge", "Nodes by state", alive, state="alive"),
        sample("nodes", "gauge", "Nodes by state", len(nodes) - alive, state="dead"),
        sample("cluster_actors", "gauge", "Actors that are not dead", summary["actors"]),
        sample("jobs_running", "gauge", "Drivers that are connected", summary["jobs"]),
        sample("head_epoch", "gauge", "How often the head has started", summary["epoch"]),
    ]


def cluster_metrics(
    asker: Asker, own_process: tuple[Mapping[str, str], Sequence[Sample]] | None = None
) -> str:
    """Ask everybody. Nodes that do not answer are left out, and counted.

    `own_process`: labels (node, worker, job) and samples of the process that asks, newer than what its agent
    has of it.
    """
    summary = asker.ask_head(Query(0, "summary"))
    facts = asker.ask_nodes("node")
    processes = asker.ask_nodes("metrics")
    silent = len(facts.missing)
    own = cluster_samples(summary, asker.nodes())
    own.append(sample("nodes_silent", "gauge", "Living nodes that did not answer in time", silent))
    snapshots: list[Sequence[Sample]] = [own]
    labels: list[Mapping[str, str]] = [{}]
    for answer in facts.answers:
        snapshots.append(node_samples(answer.document))
        labels.append({"node": answer.node_id[:12]})
    for answer in processes.answers:
        for process in answer.document:
            worker = process["worker_id"][:12]
            samples = process["metrics"]
            if own_process is not None and worker == own_process[0]["worker"]:
                samples, own_process = own_process[1], None
            snapshots.append(samples)
            labels.append({"node": answer.node_id[:12], "worker": worker, "job": process["job_id"]})
    if own_process is not None:  # its agent has not heard of it yet
        labels.append(own_process[0])
        snapshots.append(own_process[1])
    return render_prometheus(snapshots, labels)
