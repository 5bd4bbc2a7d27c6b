"""The status as it is told: in short, and in detail.

Lives here: putting the models of `schema` together from what the controller knows. Does not: knowing it.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil

import retinue
from retinue.serve.config import DeploymentConfig
from retinue.serve.messages import CONTROLLER_NAME
from retinue.serve.status_schema import AutoscalingStatus

if TYPE_CHECKING:
    from retinue.serve.controller.actor import ServeController
    from retinue.serve.controller.applications import App
    from retinue.serve.controller.deployments import Deployment
    from retinue.serve.controller.replicas import DeadReplica, Replica


def status_json(controller: ServeController) -> bytes:
    """JSON of schema.ServeStatus."""
    return json.dumps(
        {
            "proxies": controller.fleet.by_node(),
            "applications": {name: _app_in_short(app) for name, app in controller.apps.items()},
            "target_capacity": controller.target_capacity,
        }
    ).encode()


def _app_in_short(app: App) -> dict[str, Any]:
    status, message = app.status()
    return {
        "status": status,
        "message": message,
        "last_deployed_time_s": app.deployed_at,
        "deployments": {
            d.name: {
                "status": d.status.status,
                "status_trigger": d.status.trigger,
                "replica_states": d.replica_states(),
                "message": d.status.message,
            }
            for d in app.deployments.values()
        },
    }


def details_json(controller: ServeController) -> bytes:
    """JSON of schema.ServeInstanceDetails."""
    instance = controller.instance
    context = retinue.get_runtime_context()
    nodes = controller.cluster.nodes
    ips = {node_id: node.ip for node_id, node in nodes.items()}
    proxies = {}
    worst = controller.fleet.by_node()
    for slot, proxy in sorted(controller.fleet.proxies.items()):
        if slot.node_id not in proxies or proxy.health.status == worst[slot.node_id]:
            proxies[slot.node_id] = {
                "node_id": slot.node_id,
                "node_ip": ips.get(slot.node_id),
                "actor_id": proxy.actor_id,
                "actor_name": proxy.actor_name,
                "log_file_path": getattr(proxy.started, "log_file", None) or None,
                "status": proxy.health.status,
                "message": proxy.health.message,
            }
    return json.dumps(
        {
            "controller_info": {
                "node_id": context.get_node_id(),
                "node_ip": ips.get(context.get_node_id()),
                "actor_id": context.get_actor_id(),
                "actor_name": CONTROLLER_NAME,
                "worker_id": context.get_worker_id(),
                "log_file_path": controller.log_file or None,
            },
            "proxy_location": controller.fleet.location,
            "http_options": _known_http(instance.http_options),
            "grpc_options": json.loads(instance.grpc_options) if instance.grpc_options else None,
            "proxies": proxies,
            "applications": {name: _app(app, ips) for name, app in controller.apps.items()},
            "target_capacity": controller.target_capacity,
            "target_groups": _target_groups(controller),
            "controller_health_metrics": {
                "timestamp": time.time(),
                "controller_start_time": controller.started_at,
                "uptime_s": time.time() - controller.started_at,
                "num_control_loops": controller.rounds,
                "process_memory_mb": psutil.Process().memory_info().rss / (1 << 20),
            },
        }
    ).encode()


def _target_groups(controller: ServeController) -> list[dict[str, Any]]:
    """Where proxies listen: a group for each protocol. Proxies of one node share their port."""
    found: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    for slot, proxy in sorted(controller.fleet.proxies.items()):
        for protocol, address in (
            ("HTTP", getattr(proxy.started, "http_address", "")),
            ("gRPC", getattr(proxy.started, "grpc_address", "")),
        ):
            if address:
                place = urlsplit(address if "//" in address else f"//{address}")
                ip, port = place.hostname or "", place.port or 0
                target = {"ip": ip, "port": port, "instance_id": slot.node_id, "name": proxy.actor_name}
                found.setdefault(protocol, {}).setdefault((ip, port), target)
    return [
        {"protocol": protocol, "route_prefix": "/", "targets": list(targets.values())}
        for protocol, targets in found.items()
    ]


def _known_http(options: bytes) -> dict[str, Any] | None:
    """Those that the config file has as well."""
    if not options:
        return None
    beside = ("location", "root_url", "middlewares", "num_cpus")
    return {name: value for name, value in json.loads(options).items() if name not in beside}


def _app(app: App, ips: dict[str, str]) -> dict[str, Any]:
    status, message = app.status()
    ingress = app.deployments.get(app.spec.ingress) if app.spec is not None else None
    return {
        "name": app.name,
        "route_prefix": app.spec.route_prefix if app.spec is not None else None,
        "docs_path": (ingress.docs_path or None) if ingress is not None else None,
        "status": status,
        "message": message,
        "last_deployed_time_s": app.deployed_at,
        "deployed_app_config": json.loads(app.config) if app.config else None,
        "source": app.source,
        "external_scaler_enabled": app.spec.external_scaler_enabled if app.spec is not None else False,
        "deployments": {name: _deployment(d, ips) for name, d in app.deployments.items()},
    }


def _deployment(deployment: Deployment, ips: dict[str, str]) -> dict[str, Any]:
    release = deployment.release
    return {
        "name": deployment.name,
        "status": deployment.status.status,
        "status_trigger": deployment.status.trigger,
        "message": deployment.status.message,
        "deployment_config": _config(deployment),
        "target_num_replicas": 0 if deployment.is_deleting else deployment.target_count,
        "required_resources": release.resources,
        "replicas": [_replica(r, ips) for r in sorted(deployment.replicas.values(), key=lambda r: r.age)],
        "recent_dead_replicas": [_dead(r, ips) for r in deployment.dead],
        "autoscaling_detail": _autoscaling(deployment),
    }


def _config(deployment: Deployment) -> dict[str, Any]:
    config: DeploymentConfig = deployment.wanted.config
    options = json.loads(deployment.spec.actor_options or b"{}")
    told: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    told.pop("placement_group_bundle_label_selector", None)
    return {"name": deployment.name, **told, "ray_actor_options": options}


def _replica(replica: Replica, ips: dict[str, str]) -> dict[str, Any]:
    started = replica.started
    return {
        "replica_id": replica.replica_id,
        "state": replica.life.state,
        "pid": started.pid if started else None,
        "start_time_s": replica.start_time_s,
        "message": replica.reason,
        "node_id": started.node_id if started else None,
        "node_ip": ips.get(started.node_id) if started else None,
        "actor_id": replica.actor_id,
        "actor_name": replica.actor_name,
        "log_file_path": (started.log_file or None) if started else None,
    }


def _dead(dead: DeadReplica, ips: dict[str, str]) -> dict[str, Any]:
    return {
        "replica_id": dead.replica_id,
        "state": "STOPPED",
        "pid": dead.pid,
        "start_time_s": dead.start_time_s,
        "end_time_s": dead.end_time_s,
        "message": dead.reason,
        "log_tail": dead.log_tail,
        "node_id": dead.node_id,
        "node_ip": ips.get(dead.node_id) if dead.node_id else None,
        "actor_id": dead.actor_id,
        "log_file_path": dead.log_file or None,
    }


def _autoscaling(deployment: Deployment) -> dict[str, Any] | None:
    scaler = deployment.autoscaler
    if scaler is None:
        return None
    directions = {1: AutoscalingStatus.UPSCALING, -1: AutoscalingStatus.DOWNSCALING}
    return {
        "scaling_status": directions.get(scaler.direction, AutoscalingStatus.STABLE),
        "decisions": [
            {
                "timestamp_s": d.time_s,
                "reason": d.reason,
                "prev_num_replicas": d.before,
                "curr_num_replicas": d.after,
                "policy": d.policy,
            }
            for d in scaler.decisions
        ],
        "metrics": {
            "total_num_requests": scaler.load.total.latest,
            "queued_requests": scaler.load.queued.latest,
            "now": scaler.explain(time.monotonic()),
        },
        "errors": list(scaler.errors),
    }
