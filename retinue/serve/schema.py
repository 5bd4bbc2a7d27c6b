"""The config file and the status, as pydantic models. Names, fields and values are Ray Serve's.

Lives here: the public home of those names, and the JSON Schema of the config file. Does not: the models
themselves (`deploy_schema`, `status_schema`), or reading files (`schema_file`).
"""

from __future__ import annotations

from typing import Any

from retinue.serve.config import EncodingType, LoggingConfig, TracingConfig
from retinue.serve.deploy_schema import (
    DeploymentSchema,
    RetinueActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
)
from retinue.serve.proxy_options import HTTPOptionsSchema, gRPCOptionsSchema
from retinue.serve.status_schema import (
    APIType,
    ApplicationDetails,
    ApplicationStatus,
    ApplicationStatusOverview,
    AutoscalingMetricsHealth,
    AutoscalingStatus,
    ControllerHealthMetrics,
    DeploymentAutoscalingDetail,
    DeploymentDetails,
    DeploymentNode,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
    DeploymentTopology,
    DurationStats,
    ProxyDetails,
    ProxyStatus,
    ReplicaDetails,
    ReplicaState,
    ScalingDecision,
    ServeActorDetails,
    ServeInstanceDetails,
    ServeStatus,
    Target,
    TargetGroup,
)

__all__ = [
    "APIType",
    "ApplicationDetails",
    "ApplicationStatus",
    "ApplicationStatusOverview",
    "AutoscalingMetricsHealth",
    "AutoscalingStatus",
    "ControllerHealthMetrics",
    "DeploymentAutoscalingDetail",
    "DeploymentDetails",
    "DeploymentNode",
    "DeploymentSchema",
    "DeploymentStatus",
    "DeploymentStatusOverview",
    "DeploymentStatusTrigger",
    "DeploymentTopology",
    "DurationStats",
    "EncodingType",
    "HTTPOptionsSchema",
    "LoggingConfig",
    "ProxyDetails",
    "ProxyStatus",
    "ReplicaDetails",
    "ReplicaState",
    "RetinueActorOptionsSchema",
    "ScalingDecision",
    "ServeActorDetails",
    "ServeApplicationSchema",
    "ServeDeploySchema",
    "ServeInstanceDetails",
    "ServeStatus",
    "Target",
    "TargetGroup",
    "TracingConfig",
    "gRPCOptionsSchema",
    "json_schema",
]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of config files, for editors that check and complete while one types."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **ServeDeploySchema.model_json_schema(),
    }
