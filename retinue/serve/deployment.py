"""Deployments and bound applications, as users declare them.

Lives here: `@serve.deployment`, its options and their checks, `.bind()`. Does not: turning the bound graph
into what the controller takes (`build`). Nothing here needs a cluster.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar, Unpack, overload

from pydantic import ValidationError

from retinue.serve.actor_options import check_actor_options, check_first_bundle
from retinue.serve.config import (
    NUM_REPLICAS_AND_AUTOSCALING,
    AutoscalingConfig,
    BackpressureConfig,
    DeploymentConfig,
    LoggingConfig,
    RequestRouterConfig,
)
from retinue.serve.models import explain, hint
from retinue.serve.names import check_name
from retinue.serve.unsupported import REFUSED, refuse

ASGI_ATTRIBUTE = "__retinue_asgi__"  # of classes that serve.ingress made: the app, or what builds it


class Options(TypedDict, total=False):
    """The options of a deployment, for @serve.deployment and `.options`; defaults in config.DeploymentConfig.

    name: unique in the application; the name of the class or function unless set.
    num_replicas: how many, or "auto" (1 to 100, by load, unless autoscaling_config says more).
    ray_actor_options, or actor_options: num_cpus (1 unless set), num_gpus, memory (bytes), resources,
        accelerator_type, runtime_env of each replica.
    placement_group_bundles, placement_group_strategy, placement_group_bundle_label_selector: resources
        that are reserved for each replica; it runs in the first bundle. Excludes max_replicas_per_node.
    max_replicas_per_node: 1 to 100, or None for no limit.
    user_config: given to the method `reconfigure`, at the start and whenever it changes; what JSON can hold.
    max_ongoing_requests: of each replica, from all callers together.
    max_queued_requests: how many requests may wait in each router (proxy or handle); -1: no limit.
    max_queue_wait_s: requests that would wait longer than this are refused at once; None: only by number.
    backpressure_config: the HTTP answer to refused requests.
    autoscaling_config: how the number of replicas follows the load. Excludes a num_replicas that is a number.
    graceful_shutdown_timeout_s: how long a stopping replica may work on what it has accepted.
    graceful_shutdown_wait_loop_s: how long it waits before it looks again whether it has finished.
    health_check_period_s, health_check_timeout_s: how often a replica is checked, and how long that may take.
    logging_config: logs of the replicas.
    request_router_config: how requests find a replica.
    max_constructor_retry_count: how often constructors may fail before the deployment counts as failed.
    rolling_update_percentage: the fraction of replicas that is updated at a time.
    max_surge_percent: extra replicas while updating; 0: an old one stops before a new one starts.
    """

    name: str
    num_replicas: int | str | None
    ray_actor_options: dict[str, Any] | None
    actor_options: dict[str, Any] | None
    placement_group_bundles: list[dict[str, float]] | None
    placement_group_strategy: str | None
    placement_group_bundle_label_selector: list[dict[str, str]] | None
    max_replicas_per_node: int | None
    user_config: Any
    max_ongoing_requests: int
    max_queued_requests: int
    max_queue_wait_s: float | None
    backpressure_config: dict[str, Any] | BackpressureConfig | None
    autoscaling_config: dict[str, Any] | AutoscalingConfig | None
    graceful_shutdown_wait_loop_s: float
    graceful_shutdown_timeout_s: float
    health_check_period_s: float
    health_check_timeout_s: float
    logging_config: dict[str, Any] | LoggingConfig | None
    request_router_config: dict[str, Any] | RequestRouterConfig | None
    max_constructor_retry_count: int
    rolling_update_percentage: float
    max_surge_percent: int
    gang_scheduling_config: Any
    deployment_actors: Any
    version: str | None


M = TypeVar("M", DeploymentConfig, AutoscalingConfig)
_CONFIG_FIELDS = frozenset(DeploymentConfig.model_fields)
_NONE_IS_DEFAULT = ("backpressure_config", "request_router_config")


class Application:
    """A deployment with its arguments, and through these all others that it uses. From `Deployment.bind()`.

    Give it to `serve.run`, name it in a config file, or bind it as an argument of another deployment.
    """

    def __init__(self, deployment: Deployment, args: tuple[Any, ...] = (), kwargs: Any = None) -> None:
        self._bound_deployment = deployment
        self.args = args
        self.kwargs: dict[str, Any] = dict(kwargs or {})

    @property
    def deployment(self) -> Deployment:
        return self._bound_deployment

    def __repr__(self) -> str:
        return f"Application(deployment={self._bound_deployment.name!r})"


class Deployment:
    """A class or function whose replicas answer requests. Made by @serve.deployment; never changes."""

    def __init__(self, func_or_class: Callable[..., Any], options: Options) -> None:
        self._func_or_class = _checked_definition(func_or_class)
        self._options = options
        self._name = check_name("a deployment's name", _name_of(func_or_class, options))
        self._config = _config_of(self._name, options)
        self._actor_options = check_actor_options(options.get("ray_actor_options"))
        check_first_bundle(self._actor_options, self._config.placement_group_bundles)

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str | None:
        """None: versions are found out from code, arguments and resources."""
        return None

    @property
    def func_or_class(self) -> Callable[..., Any]:
        return self._func_or_class

    @property
    def config(self) -> DeploymentConfig:
        """All options, checked; treat it as read-only."""
        return self._config

    @property
    def num_replicas(self) -> int | None:
        """The number of replicas; None if autoscaling decides."""
        return self._config.num_replicas

    @property
    def user_config(self) -> Any:
        return self._config.user_config

    @property
    def max_ongoing_requests(self) -> int:
        return self._config.max_ongoing_requests

    @property
    def max_queued_requests(self) -> int:
        return self._config.max_queued_requests

    @property
    def backpressure_config(self) -> BackpressureConfig:
        return self._config.backpressure_config

    @property
    def logging_config(self) -> dict[str, Any] | None:
        config = self._config.logging_config
        return None if config is None else config.model_dump(mode="json")

    def set_logging_config(self, logging_config: dict[str, Any] | None) -> None:
        self._options = {**self._options, "logging_config": logging_config}
        self._config = _config_of(self._name, self._options)

    @property
    def ray_actor_options(self) -> dict[str, Any]:
        return dict(self._actor_options)

    actor_options = ray_actor_options

    @property
    def init_args(self) -> tuple[Any, ...]:
        """(): arguments belong to the Application that `bind` returns."""
        return ()

    @property
    def init_kwargs(self) -> dict[str, Any]:
        return {}

    @property
    def is_function(self) -> bool:
        return not inspect.isclass(self._func_or_class)

    @property
    def is_asgi(self) -> bool:
        return getattr(self._func_or_class, ASGI_ATTRIBUTE, None) is not None

    def bind(self, *args: Any, **kwargs: Any) -> Application:
        """The deployment with the arguments of its constructor, as an application.

        Applications among the arguments, also inside of lists, dicts and objects, are handles when the
        constructor gets them. Raises TypeError if the arguments do not fit the constructor.
        """
        self._check_arguments(args, kwargs)
        return Application(self, args, kwargs)

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Deployment):
                raise TypeError(f"{self._name}.bind() was given {value!r}; give it {value.name}.bind()")
        if self.is_function:
            if args or kwargs:
                raise TypeError(f"{self._name} is a function, so {self._name}.bind() takes no arguments")
            return
        try:
            signature = inspect.signature(self._func_or_class)
        except ValueError:  # of classes in C: nobody knows before the replica starts
            return
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._name}.bind(): {error}; the constructor takes {signature}") from None

    def options(
        self, func_or_class: Callable[..., Any] | None = None, **options: Unpack[Options]
    ) -> Deployment:
        """The same deployment with some options changed; see Options. Raises as @serve.deployment does."""
        _check_names(options)
        merged: dict[str, Any] = {**self._options}
        if isinstance(options.get("num_replicas"), int):
            merged.pop("autoscaling_config", None)
        elif options.get("autoscaling_config") is not None:
            merged.pop("num_replicas", None)
        merged |= options
        return Deployment(func_or_class or self._func_or_class, Options(**merged))  # type: ignore[typeddict-item]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(
            f"{self._name} is a deployment and cannot be called; "
            f"serve.run({self._name}.bind()) returns a handle"
        )

    def __repr__(self) -> str:
        return f"Deployment(name={self._name!r})"


@overload
def deployment(_func_or_class: Callable[..., Any], /) -> Deployment: ...


@overload
def deployment(**options: Unpack[Options]) -> Callable[[Callable[..., Any]], Deployment]: ...


@overload
def deployment(_func_or_class: Callable[..., Any], /, **options: Unpack[Options]) -> Deployment: ...


def deployment(_func_or_class: Callable[..., Any] | None = None, /, **options: Unpack[Options]) -> Any:
    """Declare a class or function as a deployment: `@serve.deployment`, or with options in parentheses.

    See Options for what there is. Raises ValueError or TypeError naming the option that is wrong, and
    UnsupportedError for options of Ray Serve that Retinue does not have.
    """
    _check_names(options)
    if _func_or_class is not None:
        return Deployment(_func_or_class, options)
    _config_of(options.get("name", "the deployment"), options)  # wrong options fail on their own line
    return lambda func_or_class: Deployment(func_or_class, options)


def _check_names(options: Options) -> None:
    given: dict[str, Any] = options  # type: ignore[assignment]
    known = Options.__annotations__
    for name in given:
        if name not in known:
            raise TypeError(f"deployments have no option {name!r}{hint(name, set(known) - set(REFUSED))}")
    if given.get("version") is not None:
        raise ValueError(
            "version is not an option: a change of code, arguments or resources is a new version"
        )
    for name in REFUSED:
        refuse(name, given.pop(name, None))
    if "actor_options" in given:
        if "ray_actor_options" in given:
            raise ValueError("actor_options and ray_actor_options are the same; give one of them")
        given["ray_actor_options"] = given.pop("actor_options")


def _checked_definition(func_or_class: Any) -> Callable[..., Any]:
    if isinstance(func_or_class, Deployment):
        raise TypeError(
            f"{func_or_class.name} is a deployment already; use {func_or_class.name}.options(...)"
        )
    if hasattr(func_or_class, "remote"):
        raise TypeError(
            f"@serve.deployment goes on the plain class, without @retinue.remote, got {func_or_class!r}"
        )
    if not callable(func_or_class):
        raise TypeError(f"@serve.deployment goes on a class or function, got {func_or_class!r}")
    return func_or_class  # type: ignore[no-any-return]


def _name_of(func_or_class: Any, options: Options) -> Any:
    name = options.get("name")
    if name is None:
        name = getattr(func_or_class, "__name__", None)
    if name is None:
        raise ValueError(f"{func_or_class!r} has no name; set the option name")
    return name


def _config_of(name: str, options: Options) -> DeploymentConfig:
    given = {key: value for key, value in options.items() if key in _CONFIG_FIELDS}
    for key in _NONE_IS_DEFAULT:
        if key in given and given[key] is None:
            del given[key]
    replicas = given.pop("num_replicas", None)
    autoscaling = given.get("autoscaling_config")
    if replicas == "auto":
        given["autoscaling_config"] = _automatic(name, autoscaling)
    elif replicas is not None:
        if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 1:
            raise ValueError(f"{name}: num_replicas is a number from 1, or 'auto', got {replicas!r}")
        if autoscaling is not None:
            raise ValueError(f"{name}: {NUM_REPLICAS_AND_AUTOSCALING}")
        given["num_replicas"] = replicas
    return _checked(name, DeploymentConfig, given)


def _automatic(name: str, autoscaling: Any) -> AutoscalingConfig:
    """What the user said, over the defaults of "auto"."""
    if isinstance(autoscaling, AutoscalingConfig):
        autoscaling = {key: getattr(autoscaling, key) for key in autoscaling.model_fields_set}
    default = AutoscalingConfig.default().model_dump(exclude_unset=True)
    return _checked(name, AutoscalingConfig, {**default, **(autoscaling or {})})


def _checked(name: str, model: type[M], given: dict[str, Any]) -> M:
    try:
        return model(**given)
    except ValidationError as error:
        raise ValueError(f"{name}: " + "; ".join(explain(error))) from None
