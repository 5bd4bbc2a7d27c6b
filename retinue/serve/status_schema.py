"""The status of serve, as `serve.status()`, the command line and the REST interface tell it.

Names, fields and values are Ray Serve's; what Retinue adds has a default. Lives here: the models. Does not:
finding out what is so (`controller`).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import ConfigDict, Field, NonNegativeInt

from retinue.serve.deploy_schema import DeploymentSchema, ServeApplicationSchema
from retinue.serve.models import StrictModel
from retinue.serve.proxy_options import HTTPOptionsSchema, ProxyLocation, gRPCOptionsSchema


class ProxyStatus(StrEnum):
    """A proxy's state."""

    STARTING = "STARTING"
    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"
    DRAINING = "DRAINING"
    DRAINED = "DRAINED"

    def to_numeric(self) -> int:
        """For metrics: from 1 in the order above."""
        return list(ProxyStatus).index(self) + 1


class ApplicationStatus(StrEnum):
    """An application's state."""

    NOT_STARTED = "NOT_STARTED"
    DEPLOYING = "DEPLOYING"
    DEPLOY_FAILED = "DEPLOY_FAILED"
    RUNNING = "RUNNING"
    UNHEALTHY = "UNHEALTHY"
    DELETING = "DELETING"

    def to_numeric(self) -> int:
        """For metrics: from 1, the worst, to 6, RUNNING."""
        worst_first = ("DEPLOY_FAILED", "UNHEALTHY", "NOT_STARTED", "DELETING", "DEPLOYING", "RUNNING")
        return worst_first.index(self.value) + 1


class DeploymentStatus(StrEnum):
    """A deployment's state."""

    UPDATING = "UPDATING"
    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"
    DEPLOY_FAILED = "DEPLOY_FAILED"
    UPSCALING = "UPSCALING"
    DOWNSCALING = "DOWNSCALING"

    def to_numeric(self) -> int:
        """For metrics: from 1, the worst, to 6, HEALTHY."""
        worst_first = ("DEPLOY_FAILED", "UNHEALTHY", "UPDATING", "UPSCALING", "DOWNSCALING", "HEALTHY")
        return worst_first.index(self.value) + 1


class DeploymentStatusTrigger(StrEnum):
    """What brought a deployment into its state."""

    UNSPECIFIED = "UNSPECIFIED"
    CONFIG_UPDATE_STARTED = "CONFIG_UPDATE_STARTED"
    CONFIG_UPDATE_COMPLETED = "CONFIG_UPDATE_COMPLETED"
    UPSCALE_COMPLETED = "UPSCALE_COMPLETED"
    DOWNSCALE_COMPLETED = "DOWNSCALE_COMPLETED"
    AUTOSCALING = "AUTOSCALING"
    REPLICA_STARTUP_FAILED = "REPLICA_STARTUP_FAILED"
    DEPLOYMENT_ACTOR_FAILED = "DEPLOYMENT_ACTOR_FAILED"
    HEALTH_CHECK_FAILED = "HEALTH_CHECK_FAILED"
    INTERNAL_ERROR = "INTERNAL_ERROR"
    DELETING = "DELETING"


class ReplicaState(StrEnum):
    """A replica's state."""

    STARTING = "STARTING"
    UPDATING = "UPDATING"
    RECOVERING = "RECOVERING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    PENDING_MIGRATION = "PENDING_MIGRATION"


@dataclass
class DeploymentStatusOverview:
    """A deployment in short. `replica_states`: how many replicas are in which state."""

    status: DeploymentStatus
    status_trigger: DeploymentStatusTrigger
    replica_states: dict[ReplicaState, int]
    message: str


@dataclass
class ApplicationStatusOverview:
    """An application in short. `last_deployed_time_s`: Unix time."""

    status: ApplicationStatus
    message: str
    last_deployed_time_s: float
    deployments: dict[str, DeploymentStatusOverview]


@dataclass
class ServeStatus:
    """Serve in short. `proxies`: by node id; a node with several has its worst."""

    proxies: dict[str, ProxyStatus] = field(default_factory=dict)
    applications: dict[str, ApplicationStatusOverview] = field(default_factory=dict)
    target_capacity: float | None = None


class _Details(StrictModel):
    model_config = ConfigDict(frozen=True)


class ServeActorDetails(_Details):
    """Where an actor of serve's runs, and where its log is (under the session's log folder)."""

    node_id: str | None = None
    node_ip: str | None = None
    node_instance_id: str | None = None
    actor_id: str | None = None
    actor_name: str | None = None
    worker_id: str | None = None
    log_file_path: str | None = None


class ReplicaDetails(ServeActorDetails):
    """A replica. A dead one has its end's time and reason, and the last lines of its log."""

    replica_id: str
    state: ReplicaState
    pid: int | None = None
    start_time_s: float = Field(description="Unix time.")
    end_time_s: float | None = None
    message: str = ""
    log_tail: str = ""


class AutoscalingMetricsHealth(StrEnum):
    """Whether the readings that autoscaling goes by are recent."""

    HEALTHY = "healthy"
    DELAYED = "delayed"
    UNAVAILABLE = "unavailable"


class AutoscalingStatus(StrEnum):
    """Which way the number of replicas goes."""

    UPSCALING = "UPSCALING"
    DOWNSCALING = "DOWNSCALING"
    STABLE = "STABLE"


class ScalingDecision(StrictModel):
    """One decision of autoscaling, with its reason."""

    timestamp_s: float = Field(description="Unix time.")
    reason: str
    prev_num_replicas: NonNegativeInt
    curr_num_replicas: NonNegativeInt
    policy: str | None = None


class DeploymentAutoscalingDetail(StrictModel):
    """What autoscaling sees and does; the latest decisions last."""

    scaling_status: AutoscalingStatus
    decisions: list[ScalingDecision] = Field(default_factory=list)
    metrics: dict[str, Any] | None = None
    metrics_health: AutoscalingMetricsHealth = AutoscalingMetricsHealth.HEALTHY
    errors: list[str] = Field(default_factory=list)


class DeploymentDetails(_Details):
    """A deployment. `deployment_config`: the options that hold now."""

    name: str
    status: DeploymentStatus
    status_trigger: DeploymentStatusTrigger
    message: str
    deployment_config: DeploymentSchema
    target_num_replicas: NonNegativeInt
    required_resources: dict[str, Any]
    replicas: list[ReplicaDetails]
    recent_dead_replicas: list[ReplicaDetails] = Field(default_factory=list)
    autoscaling_detail: DeploymentAutoscalingDetail | None = None


class APIType(StrEnum):
    """How an application came: by `serve.run`, or by a config file."""

    UNKNOWN = "unknown"
    IMPERATIVE = "imperative"
    DECLARATIVE = "declarative"

    @classmethod
    def get_valid_user_values(cls) -> list[str]:
        return [cls.IMPERATIVE.value, cls.DECLARATIVE.value]


class DeploymentNode(StrictModel):
    """A deployment and those that it has handles of."""

    name: str
    app_name: str
    outbound_deployments: list[dict[str, Any]] = Field(default_factory=list)
    is_ingress: bool = False


class DeploymentTopology(StrictModel):
    """Which deployments of an application call which."""

    app_name: str
    nodes: dict[str, DeploymentNode]
    ingress_deployment: str | None = None


class ApplicationDetails(_Details):
    """An application. `deployed_app_config`: what the config file said, if it came from one."""

    name: str
    route_prefix: str | None
    docs_path: str | None
    status: ApplicationStatus
    message: str
    last_deployed_time_s: float = Field(description="Unix time.")
    deployed_app_config: ServeApplicationSchema | None = None
    source: APIType
    deployments: dict[str, DeploymentDetails]
    external_scaler_enabled: bool = False
    deployment_topology: DeploymentTopology | None = None


class ProxyDetails(ServeActorDetails):
    """A proxy. `message`: what it cannot do, and why."""

    status: ProxyStatus
    message: str = ""


class Target(_Details):
    """Where a load balancer can reach a proxy."""

    ip: str
    port: int
    instance_id: str
    name: str


class TargetGroup(_Details):
    """The targets of one prefix and protocol."""

    targets: list[Target]
    route_prefix: str
    protocol: str
    app_name: str = ""


class DurationStats(StrictModel):
    """Of durations over a rolling window."""

    mean: float = 0.0
    std: float = 0.0
    min: float = 0.0
    max: float = 0.0

    @classmethod
    def from_values(cls, values: list[float]) -> DurationStats:
        if not values:
            return cls()
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        return cls(mean=mean, std=math.sqrt(variance), min=min(values), max=max(values))


class ControllerHealthMetrics(StrictModel):
    """How the controller does. Times are Unix times, durations in seconds."""

    timestamp: float = 0.0
    controller_start_time: float = 0.0
    uptime_s: float = 0.0
    last_control_loop_time: float = 0.0
    num_control_loops: int = 0
    loop_duration_s: DurationStats | None = None
    loops_per_second: float = 0.0
    event_loop_delay_s: float = 0.0
    num_asyncio_tasks: int = 0
    process_memory_mb: float = 0.0


class ServeInstanceDetails(StrictModel):
    """Everything: the answer of `GET /api/serve/applications/`."""

    controller_info: ServeActorDetails = Field(default_factory=ServeActorDetails)
    proxy_location: ProxyLocation | None = None
    http_options: HTTPOptionsSchema | None = None
    grpc_options: gRPCOptionsSchema | None = None
    proxies: dict[str, ProxyDetails]
    applications: dict[str, ApplicationDetails]
    target_capacity: float | None = Field(default=None, ge=0, le=100)
    target_groups: list[TargetGroup] = Field(default_factory=list)
    controller_health_metrics: ControllerHealthMetrics = Field(default_factory=ControllerHealthMetrics)
    restores_unset_config_options: bool = True

    @staticmethod
    def get_empty_schema_dict() -> dict[str, Any]:
        """What is told where serve does not run."""
        return {"controller_info": {}, "proxies": {}, "applications": {}, "target_capacity": None}

    def to_status(self) -> ServeStatus:
        """The same in short."""
        return ServeStatus(
            target_capacity=self.target_capacity,
            proxies={node_id: proxy.status for node_id, proxy in self.proxies.items()},
            applications={name: _in_short(app) for name, app in self.applications.items()},
        )


def _in_short(app: ApplicationDetails) -> ApplicationStatusOverview:
    return ApplicationStatusOverview(
        status=app.status,
        message=app.message,
        last_deployed_time_s=app.last_deployed_time_s,
        deployments={
            name: DeploymentStatusOverview(
                status=deployment.status,
                status_trigger=deployment.status_trigger,
                replica_states=dict(Counter(replica.state for replica in deployment.replicas)),
                message=deployment.message,
            )
            for name, deployment in app.deployments.items()
        },
    )
