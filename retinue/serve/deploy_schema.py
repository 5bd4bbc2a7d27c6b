"""The config file: applications with their deployments' options, proxies, logging.

It is what `serve deploy` and `PUT /api/serve/applications/` take, checked whole before anything changes.
Lives here: the models. Does not: files and lines (`schema_file`), or building applications (`build`).
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator, model_validator

from retinue.serve.actor_options import check_actor_options
from retinue.serve.autoscaling_options import AutoscalingPolicy
from retinue.serve.config import (
    NUM_REPLICAS_AND_AUTOSCALING,
    DeploymentConfig,
    DeploymentOptions,
    LoggingConfig,
    TracingConfig,
)
from retinue.serve.models import StrictModel, check_import_path
from retinue.serve.names import DEFAULT_APP_NAME, check_name, check_route_prefix
from retinue.serve.proxy_options import (
    DEFAULT_HTTP_HOST,
    DEFAULT_HTTP_PORT,
    ControllerOptions,
    HTTPOptionsSchema,
    ProxyLocation,
    gRPCOptionsSchema,
)
from retinue.serve.unsupported import REFUSED


def _fits(options: dict[str, Any]) -> None:
    try:
        check_actor_options(options)
    except (TypeError, NotImplementedError) as error:  # pydantic adds the path to ValueErrors only
        raise ValueError(str(error)) from error


class RetinueActorOptionsSchema(StrictModel):
    """Options of the replicas' actors; one CPU unless `num_cpus` is set. `memory` is in bytes."""

    runtime_env: dict[str, Any] = Field(default={})
    num_cpus: NonNegativeFloat | None = None
    num_gpus: NonNegativeFloat | None = None
    memory: NonNegativeFloat | None = None
    resources: dict[str, float] = Field(default={})
    accelerator_type: str | None = None
    label_selector: dict[str, str] | None = None
    fallback_strategy: list[dict[str, Any]] | None = None

    @model_validator(mode="after")
    def _fit_an_actor(self) -> Self:
        _fits(self.model_dump(exclude_unset=True))
        return self


class DeploymentSchema(DeploymentOptions):
    """Options of one deployment that go before those in code. What is not written here stays as in code."""

    name: str = Field(description="The deployment's name, as in code.")
    num_replicas: PositiveInt | Literal["auto"] | None = Field(
        default=None, description="A number, or 'auto': 1 to 100 by load."
    )
    ray_actor_options: RetinueActorOptionsSchema = Field(
        default_factory=RetinueActorOptionsSchema,
        description="Options of the replicas' actors. `actor_options` is the same.",
    )
    gang_scheduling_config: Any = Field(default=None, description="Not supported.")
    deployment_actors: Any = Field(default=None, description="Not supported.")

    @model_validator(mode="before")
    @classmethod
    def _actor_options_has_two_names(cls, data: Any) -> Any:
        if isinstance(data, dict) and "actor_options" in data:
            if "ray_actor_options" in data:
                raise ValueError("actor_options and ray_actor_options are the same; give one of them")
            data = dict(data)
            data["ray_actor_options"] = data.pop("actor_options")
        return data

    @field_validator("num_replicas", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if value is None or value == "auto" or (is_number and value > 0):
            return value
        raise ValueError(f"num_replicas is a number from 1, or 'auto', got {value!r}")

    @field_validator("gang_scheduling_config", "deployment_actors", mode="before")
    @classmethod
    def _not_supported(cls, value: Any, info: Any) -> Any:
        if value is not None:
            raise ValueError(REFUSED[info.field_name])
        return value

    @field_validator("name")
    @classmethod
    def _name_has_the_form(cls, value: str) -> str:
        return check_name("a deployment's name", value)

    @model_validator(mode="after")
    def _number_or_autoscaling(self) -> Self:
        if isinstance(self.num_replicas, int) and self.autoscaling_config is not None:
            raise ValueError(NUM_REPLICAS_AND_AUTOSCALING)
        return self

    @classmethod
    def of(cls, name: str, config: DeploymentConfig, actor_options: dict[str, Any]) -> DeploymentSchema:
        """The options that hold now, for the status: complete, without pickled code."""
        options = config.model_dump(
            exclude={
                "request_router_config": {"definition"},
                "autoscaling_config": {"policy": {"definition"}},
            }
        )
        known = RetinueActorOptionsSchema.model_fields
        asked = {k: v for k, v in actor_options.items() if k in known and v is not None}
        return cls(name=name, ray_actor_options=RetinueActorOptionsSchema(**asked), **options)

    def overrides(self) -> dict[str, Any]:
        """What the file says, for `Deployment.options`."""
        given = {name: getattr(self, name) for name in self.model_fields_set if name in _OVERRIDES}
        if "ray_actor_options" in given:
            given["ray_actor_options"] = self.ray_actor_options.model_dump(exclude_unset=True)
        return given

    def is_autoscaling_configured(self) -> bool:
        return self.num_replicas == "auto" or self.autoscaling_config is not None


_OVERRIDES = set(DeploymentSchema.model_fields) - {"name", "gang_scheduling_config", "deployment_actors"}


class ServeApplicationSchema(StrictModel):
    """One application: what to import, under which prefix, with which options."""

    name: str = Field(default=DEFAULT_APP_NAME, description="Unique in the cluster.")
    route_prefix: str | None = Field(default="/", description="Null: not reachable by HTTP.")
    import_path: str = Field(
        description="'package.module:app', where app is a bound deployment, or a function that returns one."
    )
    runtime_env: dict[str, Any] = Field(
        default={}, description="Of the replicas, and of the process that imports the application."
    )
    host: str = Field(default=DEFAULT_HTTP_HOST, description="Refused: set it in http_options.")
    port: int = Field(default=DEFAULT_HTTP_PORT, description="Refused: set it in http_options.")
    deployments: list[DeploymentSchema] = Field(default=[], description="Options that go before the code's.")
    autoscaling_policy: dict[str, Any] | None = Field(
        default=None,
        description="One policy for all deployments that have autoscaling_config, instead of theirs: "
        "policy_function, policy_kwargs.",
    )
    args: dict[str, Any] = Field(default={}, description="For the function that builds the application.")
    logging_config: LoggingConfig | None = None
    external_scaler_enabled: bool = Field(
        default=False, description="Numbers of replicas are set from outside, none by autoscaling."
    )

    @property
    def deployment_names(self) -> list[str]:
        return [deployment.name for deployment in self.deployments]

    @field_validator("name")
    @classmethod
    def _name_has_the_form(cls, value: str) -> str:
        return check_name("an application's name", value)

    @field_validator("route_prefix")
    @classmethod
    def _prefix_has_the_form(cls, value: str | None) -> str | None:
        return check_route_prefix(value)

    @field_validator("import_path")
    @classmethod
    def _path_has_the_form(cls, value: str) -> str:
        return check_import_path(value)

    @field_validator("runtime_env")
    @classmethod
    def _environment_is_supported(cls, value: dict[str, Any]) -> dict[str, Any]:
        _fits({"runtime_env": value})
        return value

    @field_validator("host", "port", mode="before")
    @classmethod
    def _belongs_to_http_options(cls, value: Any, info: Any) -> Any:
        raise ValueError(f"{info.field_name} is not an application's: set it in http_options")

    @field_validator("autoscaling_policy", mode="before")
    @classmethod
    def _is_a_policy(cls, value: Any) -> Any:
        if isinstance(value, AutoscalingPolicy):
            value = value.model_dump(exclude={"definition"})
        if value is not None:
            if not isinstance(value, dict) or not value.get("policy_function"):
                raise ValueError("autoscaling_policy needs policy_function, an import path")
            AutoscalingPolicy.model_validate(value)
        return value

    @field_validator("deployments")
    @classmethod
    def _deployments_are_unique(cls, value: list[DeploymentSchema]) -> list[DeploymentSchema]:
        _check_unique("deployment", [deployment.name for deployment in value])
        return value

    @model_validator(mode="after")
    def _one_scaler(self) -> Self:
        scaled = [d.name for d in self.deployments if d.is_autoscaling_configured()]
        if self.external_scaler_enabled and scaled:
            raise ValueError(
                f"external_scaler_enabled excludes autoscaling, which is set for {', '.join(scaled)}"
            )
        return self

    @staticmethod
    def get_empty_schema_dict() -> dict[str, Any]:
        return {"import_path": "", "runtime_env": {}, "deployments": []}


class ServeDeploySchema(StrictModel):
    """The whole config file: applications that are not in it are deleted when it is deployed."""

    proxy_location: ProxyLocation = ProxyLocation.EveryNode
    http_options: HTTPOptionsSchema = Field(default_factory=HTTPOptionsSchema)
    grpc_options: gRPCOptionsSchema = Field(default_factory=gRPCOptionsSchema)
    controller_options: ControllerOptions | None = None
    logging_config: LoggingConfig | None = Field(default=None, description="Of controller and proxies.")
    tracing_config: TracingConfig | None = None
    applications: list[ServeApplicationSchema]
    target_capacity: float | None = Field(
        default=None, ge=0, le=100, description="Percent of all numbers of replicas that is really run."
    )

    @field_validator("tracing_config")
    @classmethod
    def _tracing_is_off(cls, value: TracingConfig | None) -> TracingConfig | None:
        if value is not None and value.enabled:
            raise ValueError(REFUSED["tracing_config"])
        return value

    @field_validator("applications")
    @classmethod
    def _applications_are_unique(cls, value: list[ServeApplicationSchema]) -> list[ServeApplicationSchema]:
        _check_unique("application", [app.name for app in value])
        _check_unique("route_prefix", [app.route_prefix for app in value if app.route_prefix is not None])
        return value

    @staticmethod
    def get_empty_schema_dict() -> dict[str, Any]:
        return {"applications": []}


def _check_unique(what: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{what} {', '.join(map(repr, twice))} is there more than once")
