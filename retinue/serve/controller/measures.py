"""The controller's metrics: what it knows, read when somebody looks, and what happens to replicas.

Lives here: names and tags. Does not: knowing it. `EVENTS` is of the process, which is one controller's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from retinue.serve.controller.replica_life import SERVING
from retinue.serve.measures import Tally, Timings, counter, gauge
from retinue.serve.status_schema import ReplicaState
from retinue.util.metrics import Sample

if TYPE_CHECKING:
    from retinue.serve.controller.actor import ServeController
    from retinue.serve.controller.deployments import Deployment

_TAGS = ("application", "deployment")
STARTUP_BOUNDARIES_S = (
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
    20.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
    1800.0,
)


class Events:
    """Counts and times. `key`: application and deployment."""

    def __init__(self) -> None:
        self.starts = Timings(
            "serve_replica_startup_latency_seconds",
            "From the decision to start a replica until it takes requests",
            _TAGS,
            STARTUP_BOUNDARIES_S,
        )
        self.start_failures = Tally(
            "serve_deployment_replica_start_failures", "Replicas that did not start", _TAGS
        )
        self.ends = Timings(
            "serve_replica_shutdown_duration_seconds",
            "From stopping a replica until its process is gone",
            _TAGS,
        )
        self.checks = Timings("serve_health_check_latency_seconds", "How long health checks took", _TAGS)
        self.failed_checks = Tally("serve_health_check_failures", "Health checks that failed", _TAGS)
        self.deaths = Tally(
            "serve_deployment_replica_deaths", "Replicas that died or were found ill while they served", _TAGS
        )
        self.scalings = Tally(
            "serve_autoscaling_decisions",
            "Changes of the number of replicas by load",
            (*_TAGS, "direction", "reason"),
        )
        self.scaled_from: dict[tuple[str, str], int] = {}

    def scaled(self, key: tuple[str, str], before: int, after: int, reason: str) -> None:
        self.scalings.add((*key, "up" if after > before else "down", reason))
        self.scaled_from[key] = before

    def samples(self) -> list[Sample]:
        found: list[Sample] = []
        for each in (
            self.starts,
            self.start_failures,
            self.ends,
            self.checks,
            self.failed_checks,
            self.deaths,
            self.scalings,
        ):
            found += each.samples()
        for key, count in self.starts.counts().items():
            tags = dict(zip(_TAGS, key, strict=True))
            found.append(
                counter("serve_deployment_replica_starts", "Replicas that have started", count, tags)
            )
        return found


EVENTS = Events()


def samples(controller: ServeController) -> list[Sample]:
    """Called from any thread: what the loop changes is copied first."""
    found = EVENTS.samples()
    found.append(
        counter("serve_controller_num_control_loops", "Rounds of the controller", controller.rounds, {})
    )
    for slot, proxy in controller.fleet.proxies.copy().items():
        tags = {"node_id": slot.node_id, "slot": str(slot.index)}
        status = proxy.health.status
        text = "1 STARTING, 2 HEALTHY, 3 UNHEALTHY, 4 DRAINING, 5 DRAINED"
        found.append(gauge("serve_proxy_status", text, status.to_numeric(), tags))
    for name, app in controller.apps.copy().items():
        text = "1 DEPLOY_FAILED, 2 UNHEALTHY, 3 NOT_STARTED, 4 DELETING, 5 DEPLOYING, 6 RUNNING"
        status_of_app = app.status()[0].to_numeric()
        found.append(gauge("serve_application_status", text, status_of_app, {"application": name}))
        for deployment in list(app.deployments.values()):
            found += _of_deployment(deployment)
    return found


def _of_deployment(deployment: Deployment) -> list[Sample]:
    tags = {"application": deployment.app_name, "deployment": deployment.name}
    text = "1 DEPLOY_FAILED, 2 UNHEALTHY, 3 UPDATING, 4 UPSCALING, 5 DOWNSCALING, 6 HEALTHY"
    status = deployment.status.status.to_numeric()
    target = 0 if deployment.is_deleting else deployment.target_count
    found = [
        gauge("serve_deployment_status", text, status, tags),
        gauge("serve_deployment_target_replicas", "Replicas that there shall be", target, tags),
    ]
    replicas = list(deployment.replicas.values())
    counts = dict.fromkeys(ReplicaState, 0)
    for replica in replicas:
        state = replica.life.state
        counts[state] = counts.get(state, 0) + 1
        found.append(
            gauge(
                "serve_deployment_replica_healthy",
                "1: the replica takes requests",
                state in SERVING,
                {**tags, "replica": replica.replica_id.rpartition("#")[2]},
            )
        )
    for state, count in counts.items():
        own = {**tags, "state": state.value}
        found.append(gauge("serve_deployment_replicas", "Replicas by state", count, own))
    return found + _of_scaling(deployment, tags)


def _of_scaling(deployment: Deployment, tags: dict[str, str]) -> list[Sample]:
    scaler = deployment.autoscaler
    if scaler is None:
        return []
    before = EVENTS.scaled_from.get((deployment.app_name, deployment.name), scaler.target)
    return [
        gauge(
            "serve_autoscaling_target_replicas", "Replicas that the load asks for, now", scaler.target, tags
        ),
        gauge("serve_autoscaling_previous_target_replicas", "The same, before the last change", before, tags),
        gauge("serve_autoscaling_desired_replicas", "What is wanted before delays", scaler.wanted, tags),
        gauge(
            "serve_autoscaling_total_requests",
            "Requests queued and ongoing, as last told",
            scaler.load.total.latest,
            tags,
        ),
        gauge(
            "serve_autoscaling_target_ongoing_requests",
            "Requests that each replica shall have",
            scaler.config.get_target_ongoing_requests(),
            tags,
        ),
    ]
