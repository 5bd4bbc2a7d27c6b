"""How the number of a deployment's replicas follows its load: what the user may set.

Lives here: the fields, their defaults and checks, and what a policy of the user's own is given. Does not: the
decisions (`controller/replica_autoscaling`). `retinue.serve.config` is the public home of these names.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, StrEnum
from functools import cached_property
from typing import Any, ClassVar

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    field_validator,
    model_validator,
)

from retinue.serve.code import CodeReference
from retinue.serve.models import StrictModel, check_json

DEFAULT_POLICY = "retinue.serve.autoscaling_policy:default_autoscaling_policy"
DEFAULT_TARGET_ONGOING_REQUESTS = 2.0


class AggregationFunction(StrEnum):
    """How the readings of the look-back period become one number."""

    MEAN = "mean"
    MAX = "max"
    MIN = "min"


class AutoscalingContext:
    """What a policy of the user's own decides on: `policy(context) -> (target_num_replicas, policy_state)`.

    Metrics may be given as functions, which are called when they are first read.
    """

    def __init__(
        self,
        deployment_id: Any,
        deployment_name: str,
        app_name: str | None,
        current_num_replicas: int,
        target_num_replicas: int,
        running_replicas: list[Any],
        total_num_requests: float | Callable[[], float],
        total_queued_requests: float | Callable[[], float] | None = None,
        aggregated_metrics: dict[str, dict[Any, float]] | Callable[[], Any] | None = None,
        raw_metrics: dict[str, dict[Any, Any]] | Callable[[], Any] | None = None,
        capacity_adjusted_min_replicas: int = 1,
        capacity_adjusted_max_replicas: int = 1,
        policy_state: dict[str, Any] | None = None,
        last_scale_up_time: float | None = None,
        last_scale_down_time: float | None = None,
        current_time: float | None = None,
        config: AutoscalingConfig | None = None,
    ) -> None:
        self.deployment_id = deployment_id
        self.deployment_name = deployment_name
        self.app_name = app_name
        self.current_num_replicas = current_num_replicas
        self.target_num_replicas = target_num_replicas
        self.running_replicas = running_replicas
        self.capacity_adjusted_min_replicas = capacity_adjusted_min_replicas
        self.capacity_adjusted_max_replicas = capacity_adjusted_max_replicas
        self.policy_state = {} if policy_state is None else policy_state
        self.last_scale_up_time = last_scale_up_time
        self.last_scale_down_time = last_scale_down_time
        self.current_time = current_time
        self.config = config
        self._total_num_requests = total_num_requests
        self._total_queued_requests = total_queued_requests
        self._aggregated_metrics = aggregated_metrics
        self._raw_metrics = raw_metrics

    @cached_property
    def total_num_requests(self) -> float:
        """Queued and running, over all replicas and routers, aggregated over the look-back period."""
        return float(_value(self._total_num_requests))

    @cached_property
    def total_queued_requests(self) -> float:
        """Those that wait in routers."""
        return float(_value(self._total_queued_requests) or 0.0)

    @property
    def total_running_requests(self) -> float:
        """Those that replicas work on. Never negative, though its two terms are aggregated apart."""
        return max(0.0, self.total_num_requests - self.total_queued_requests)

    @cached_property
    def aggregated_metrics(self) -> dict[str, dict[Any, float]]:
        """Of `record_autoscaling_stats`: metric -> replica id -> value over the look-back period."""
        return dict(_value(self._aggregated_metrics) or {})

    @cached_property
    def raw_metrics(self) -> dict[str, dict[Any, Any]]:
        """The same as it came: metric -> replica id -> readings."""
        return dict(_value(self._raw_metrics) or {})


def _value(given: Any) -> Any:
    return given() if callable(given) else given


class AutoscalingPolicy(CodeReference):
    """The function, or class of callables, that decides: an import path `module:name`, or the thing itself.

    `policy_kwargs` go to the constructor if it is a class.
    """

    policy_function: str = DEFAULT_POLICY
    policy_kwargs: dict[str, Any] = Field(default_factory=dict)
    _reference_field: ClassVar[str] = "policy_function"
    _cached: Any = PrivateAttr(default=None)

    @field_validator("policy_kwargs")
    @classmethod
    def _kwargs_are_json(cls, value: dict[str, Any]) -> Any:
        return check_json("policy_kwargs", value)

    def is_default_policy_function(self) -> bool:
        return self.policy_function == DEFAULT_POLICY

    def get_policy(self) -> Callable[..., Any]:
        """The policy, ready to be called with an AutoscalingContext; the same object each time."""
        if self._cached is None:
            policy = self.load()
            self._cached = policy(**self.policy_kwargs) if isinstance(policy, type) else policy
        return self._cached  # type: ignore[no-any-return]


class AutoscalingConfig(StrictModel):
    """When replicas are added and removed. Delays and periods are in seconds.

    The wanted number is the number of ongoing and queued requests over `look_back_period_s`, divided by
    `target_ongoing_requests`, within `min_replicas` and `max_replicas`. It is followed once it has been so
    for `upscale_delay_s` or `downscale_delay_s` (for the last replica `downscale_to_zero_delay_s`, if set);
    `upscaling_factor` and `downscaling_factor` (1 if None) multiply each step.
    """

    min_replicas: NonNegativeInt = 1
    initial_replicas: NonNegativeInt | None = None
    max_replicas: PositiveInt = 1
    target_ongoing_requests: PositiveFloat = DEFAULT_TARGET_ONGOING_REQUESTS
    metrics_interval_s: PositiveFloat = 10.0
    look_back_period_s: PositiveFloat = 30.0
    smoothing_factor: PositiveFloat = 1.0
    upscale_smoothing_factor: PositiveFloat | None = None
    downscale_smoothing_factor: PositiveFloat | None = None
    upscaling_factor: PositiveFloat | None = None
    downscaling_factor: PositiveFloat | None = None
    downscale_delay_s: NonNegativeFloat = 600.0
    downscale_to_zero_delay_s: NonNegativeFloat | None = None
    upscale_delay_s: NonNegativeFloat = 30.0
    aggregation_function: AggregationFunction = AggregationFunction.MEAN
    policy: AutoscalingPolicy = Field(default_factory=AutoscalingPolicy)

    @field_validator("aggregation_function", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) and not isinstance(value, Enum) else value

    @field_validator("target_ongoing_requests", mode="before")
    @classmethod
    def _none_is_the_default(cls, value: Any) -> Any:
        return DEFAULT_TARGET_ONGOING_REQUESTS if value is None else value

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> AutoscalingConfig:
        low, high, first = self.min_replicas, self.max_replicas, self.initial_replicas
        if high < low:
            raise ValueError(f"max_replicas ({high}) must be at least min_replicas ({low})")
        if first is not None and not low <= first <= high:
            raise ValueError(
                f"initial_replicas ({first}) must be between min_replicas ({low}) and max_replicas ({high})"
            )
        return self

    @classmethod
    def default(cls) -> AutoscalingConfig:
        """What `num_replicas="auto"` stands for: 1 to 100 replicas."""
        return cls(target_ongoing_requests=DEFAULT_TARGET_ONGOING_REQUESTS, min_replicas=1, max_replicas=100)

    def get_upscaling_factor(self) -> float:
        return self.upscaling_factor or self.upscale_smoothing_factor or self.smoothing_factor

    def get_downscaling_factor(self) -> float:
        return self.downscaling_factor or self.downscale_smoothing_factor or self.smoothing_factor

    def get_target_ongoing_requests(self) -> float:
        return self.target_ongoing_requests
