"""The options of deployments and of serve: fields, defaults, checks. Names and defaults are Ray Serve's.

Lives here: the public home of the option classes, those of a single deployment, and DeploymentConfig, all
of them together, as it goes to the controller and the replicas. Does not: the config file (`schema`), or
acting on any of it. An unknown key is an error that names the nearest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import StrEnum
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StrictInt,
    field_validator,
    model_validator,
)

from retinue.serve.autoscaling_options import (
    AggregationFunction,
    AutoscalingConfig,
    AutoscalingContext,
    AutoscalingPolicy,
)
from retinue.serve.code import CodeReference
from retinue.serve.models import StrictModel, check_json
from retinue.serve.proxy_options import ControllerOptions, HTTPOptions, ProxyLocation, gRPCOptions

__all__ = [
    "AggregationFunction",
    "AutoscalingConfig",
    "AutoscalingContext",
    "AutoscalingPolicy",
    "BackpressureConfig",
    "ControllerOptions",
    "DeploymentConfig",
    "DeploymentOptions",
    "EncodingType",
    "HTTPOptions",
    "LoggingConfig",
    "ProxyLocation",
    "RequestRouterConfig",
    "TracingConfig",
    "gRPCOptions",
]

DEFAULT_REQUEST_ROUTER = "retinue.serve.request_router:PowerOfTwoChoicesRequestRouter"
MAX_REPLICAS_PER_NODE = 100
NUM_REPLICAS_AND_AUTOSCALING = (
    "num_replicas and autoscaling_config exclude each other; leave num_replicas out, or say 'auto'"
)
LOG_RECORD_ATTRIBUTES = frozenset(
    {
        *(
            "args",
            "asctime",
            "created",
            "exc_info",
            "exc_text",
            "filename",
            "funcName",
            "levelname",
            "levelno",
        ),
        *("lineno", "message", "module", "msecs", "msg", "name", "pathname", "process", "processName"),
        *("relativeCreated", "stack_info", "taskName", "thread", "threadName"),
    }
)


class BackpressureConfig(StrictModel):
    """The answer to requests that are refused because the queue is full: 503 or 429, and Retry-After
    (seconds; if None it is estimated)."""

    status_code: Literal[503, 429] = 503
    retry_after_s: NonNegativeFloat | None = Field(default=None, allow_inf_nan=False)


class RequestRouterConfig(CodeReference):
    """How requests find a replica. A class of the user's own derives from serve.request_router.RequestRouter
    and is given itself, or as import path; `request_router_kwargs` go to its `initialize_state`. Seconds."""

    _reference_field: ClassVar[str] = "request_router_class"

    request_router_class: str = DEFAULT_REQUEST_ROUTER
    request_router_kwargs: dict[str, Any] = Field(default_factory=dict)
    request_routing_stats_period_s: PositiveFloat = 10.0
    request_routing_stats_timeout_s: PositiveFloat = 30.0
    initial_backoff_s: PositiveFloat = 0.025
    backoff_multiplier: PositiveFloat = 2.0
    max_backoff_s: PositiveFloat = 0.5

    @field_validator("request_router_kwargs")
    @classmethod
    def _kwargs_are_json(cls, value: dict[str, Any]) -> Any:
        return check_json("request_router_kwargs", value)

    def is_default_request_router(self) -> bool:
        return self.request_router_class == DEFAULT_REQUEST_ROUTER

    def get_request_router_class(self) -> Callable[..., Any]:
        """The class, from its definition or imported. Raises what importing raises."""
        return self.load()  # type: ignore[no-any-return]


class EncodingType(StrEnum):
    """The form of log lines."""

    TEXT = "TEXT"
    JSON = "JSON"


class LoggingConfig(StrictModel):
    """Logs of replicas, or of serve's own processes.

    `logs_dir` None: the session's folder. `additional_log_standard_attrs`: attributes of Python's LogRecord
    that are added to each line.
    """

    encoding: EncodingType = EncodingType.TEXT
    log_level: str = "INFO"
    logs_dir: str | None = None
    enable_access_log: bool = True
    additional_log_standard_attrs: list[str] = Field(default_factory=list)

    @field_validator("encoding", mode="before")
    @classmethod
    def _known_encoding(cls, value: Any) -> Any:
        if not isinstance(value, EncodingType) and value not in list(EncodingType):
            raise ValueError(f"encoding is 'TEXT' or 'JSON', got {value!r}")
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _known_level(cls, value: Any) -> str:
        levels = logging.getLevelNamesMapping()
        names = {number: name for name, number in reversed(levels.items())}
        if isinstance(value, int) and not isinstance(value, bool) and value in names:
            return names[value]
        if value not in levels:
            raise ValueError(f"log_level is one of {', '.join(levels)} or its number, got {value!r}")
        return str(value)

    @field_validator("additional_log_standard_attrs")
    @classmethod
    def _known_attributes(cls, value: list[str]) -> list[str]:
        unknown = [name for name in value if name not in LOG_RECORD_ATTRIBUTES]
        if unknown:
            raise ValueError(
                f"log records have no attribute {unknown[0]!r}; "
                f"there are {', '.join(sorted(LOG_RECORD_ATTRIBUTES))}"
            )
        return list(dict.fromkeys(value))


class TracingConfig(StrictModel):
    """Distributed tracing by OpenTelemetry. `exporter_import_path` names a function that returns span
    processors; empty: spans go to files in the log folder."""

    enabled: bool = False
    exporter_import_path: str = ""
    sampling_ratio: float = Field(default=0.01, ge=0.0, le=1.0)


class DeploymentOptions(StrictModel):
    """The options that code and config file share. Periods and timeouts are in seconds."""

    max_ongoing_requests: PositiveInt = Field(default=5, description="Of each replica, from all callers.")
    max_queued_requests: StrictInt = Field(default=1000, description="Per router; -1: no limit.")
    max_queue_wait_s: PositiveFloat | None = Field(
        default=None, description="Requests that would wait longer are refused at once. Null: by number only."
    )
    backpressure_config: BackpressureConfig = Field(default_factory=BackpressureConfig)
    user_config: Any = Field(default=None, description="Given to the deployment's method `reconfigure`.")
    autoscaling_config: AutoscalingConfig | None = None
    graceful_shutdown_timeout_s: NonNegativeFloat = Field(
        default=20.0, description="How long a stopping replica may work on what it has accepted."
    )
    graceful_shutdown_wait_loop_s: NonNegativeFloat = 2.0
    health_check_period_s: PositiveFloat = 10.0
    health_check_timeout_s: PositiveFloat = 30.0
    request_router_config: RequestRouterConfig = Field(default_factory=RequestRouterConfig)
    logging_config: LoggingConfig | None = None
    max_constructor_retry_count: PositiveInt = Field(
        default=20, description="How often constructors may fail before the deployment counts as failed."
    )
    rolling_update_percentage: float = Field(
        default=0.2, gt=0.0, le=1.0, description="The fraction of replicas that is updated at a time."
    )
    max_surge_percent: int = Field(
        default=25, ge=0, le=100, description="Extra replicas during an update; at least one unless 0."
    )
    max_replicas_per_node: int | None = Field(default=None, ge=1, le=MAX_REPLICAS_PER_NODE)
    placement_group_bundles: list[dict[str, float]] | None = None
    placement_group_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] | None = None
    placement_group_bundle_label_selector: list[dict[str, str]] | None = None

    @field_validator("max_queued_requests")
    @classmethod
    def _unlimited_or_positive(cls, value: int) -> int:
        if value < 1 and value != -1:
            raise ValueError(f"max_queued_requests is -1 (no limit) or at least 1, got {value}")
        return value

    @field_validator("user_config")
    @classmethod
    def _user_config_is_json(cls, value: Any) -> Any:
        return check_json("user_config", value)

    @field_validator("placement_group_bundles")
    @classmethod
    def _bundles_ask_for_something(cls, value: list[dict[str, float]] | None) -> Any:
        if value is None:
            return None
        if not value:
            raise ValueError("placement_group_bundles must hold at least one bundle")
        for index, bundle in enumerate(value):
            if not any(bundle.values()) or min(bundle.values()) < 0:
                raise ValueError(f"bundle {index} must ask for some resource, none below 0: {bundle}")
        return value

    @model_validator(mode="after")
    def _options_do_not_collide(self) -> Self:
        bundles, selectors = self.placement_group_bundles, self.placement_group_bundle_label_selector
        if bundles is not None and self.max_replicas_per_node is not None:
            raise ValueError("max_replicas_per_node and placement_group_bundles exclude each other")
        if bundles is not None and selectors is not None and len(selectors) not in (1, len(bundles)):
            raise ValueError(
                "placement_group_bundle_label_selector holds one selector for all bundles or one for each; "
                f"there are {len(selectors)} for {len(bundles)} bundles"
            )
        return self


class DeploymentConfig(DeploymentOptions):
    """All options of one deployment, complete. With `autoscaling_config`, `num_replicas` is None.

    What restarts no replica when it changes: everything here except the placement group's fields.
    """

    num_replicas: NonNegativeInt | None = 1

    @model_validator(mode="after")
    def _options_are_complete(self) -> Self:
        if self.placement_group_bundles is None:
            for name in ("placement_group_strategy", "placement_group_bundle_label_selector"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} needs placement_group_bundles")
        if self.autoscaling_config is None:
            self.num_replicas = 1 if self.num_replicas is None else self.num_replicas
        elif self.num_replicas is not None and "num_replicas" in self.model_fields_set:
            raise ValueError(NUM_REPLICAS_AND_AUTOSCALING)
        else:
            self.num_replicas = None
        return self

    def embed_code(self) -> None:
        """Put the user's policy and router into the config itself, for processes that cannot import them."""
        self.request_router_config.embed()
        if self.autoscaling_config is not None:
            self.autoscaling_config.policy.embed()
