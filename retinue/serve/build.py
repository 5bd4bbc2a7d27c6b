"""From a bound application to what the controller takes: ApplicationSpec.

Every deployment of the graph gets a unique name, its definition and arguments are pickled (with handles where
applications were), options of the config file go before the code's, and what cannot be changed in place
becomes its version. Lives here: that. Does not: what a deployment may say (`deployment`), which modules it
needs (`dependencies`), talking to the controller (`api`).
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import json
import logging
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, get_type_hints

import cloudpickle
from cloudpickle.cloudpickle import _DYNAMIC_CLASS_TRACKER_BY_CLASS
from pydantic import BaseModel, ValidationError

from retinue.serve import dependencies
from retinue.serve.config import AutoscalingPolicy, LoggingConfig
from retinue.serve.deploy_schema import DeploymentSchema, ServeApplicationSchema
from retinue.serve.deployment import ASGI_ATTRIBUTE, Application, Deployment
from retinue.serve.exceptions import RetinueServeException
from retinue.serve.messages import ApplicationSpec, DeploymentSpec
from retinue.serve.models import explain, hint, import_attribute
from retinue.serve.names import DEFAULT_APP_NAME, check_name, check_route_prefix

logger = logging.getLogger("retinue.serve")

# (deployment name, application name) -> the handle, where the pickle is read
HandleFactory = Callable[[str, str], Any]


# --- import paths and builders


def import_application(import_path: str, args: Mapping[str, Any] | None = None) -> Application:
    """Import an application, or the function that builds it, and build it with `args`.

    Raises what importing and building raise, and TypeError or ValueError if what is there is no application.
    """
    return resolve(import_attribute(import_path), args, import_path)


def resolve(target: Any, args: Mapping[str, Any] | None = None, what: str = "") -> Application:
    """The application: the target itself, or what it returns when it is called with `args`.

    A builder takes nothing, or one parameter: a dict, or, if its annotation is a pydantic model, that.
    """
    what = what or repr(target)
    if isinstance(target, Application):
        if args:
            raise ValueError(
                f"{what} is bound already and takes no arguments; args are for builder functions"
            )
        return target
    if isinstance(target, Deployment):
        raise TypeError(f"{what} is a deployment that is not bound; use {target.name}.bind()")
    if not inspect.isfunction(target):
        raise TypeError(f"{what} is no application (from .bind()) and no function that returns one")
    app = _call_builder(target, dict(args or {}), what)
    if isinstance(app, Deployment):
        raise TypeError(f"{what} returned a deployment that is not bound; return {app.name}.bind()")
    if not isinstance(app, Application):
        raise TypeError(f"{what} has to return an application (from .bind()), it returned {app!r}")
    return app


def _call_builder(builder: Callable[..., Any], args: dict[str, Any], what: str) -> Any:
    parameters = list(inspect.signature(builder).parameters.values())
    if len(parameters) > 1:
        raise TypeError(
            f"{what} builds an application, so it takes one parameter, args; it takes {len(parameters)}"
        )
    if not parameters:
        if args:
            raise TypeError(f"{what} takes no arguments, got {', '.join(args)}")
        return builder()
    annotation = get_type_hints(builder).get(parameters[0].name)
    if not (inspect.isclass(annotation) and issubclass(annotation, BaseModel)):
        return builder(args)
    unknown = set(args) - _keys_of(annotation)
    if unknown and annotation.model_config.get("extra") is None:
        name = min(unknown)
        raise ValueError(f"the args of {what} have no key {name!r}{hint(name, _keys_of(annotation))}")
    try:
        return builder(annotation.model_validate(args))
    except ValidationError as error:
        raise ValueError(f"the args of {what}: " + "; ".join(explain(error))) from None


def _keys_of(model: type[BaseModel]) -> set[str]:
    fields = model.model_fields
    return set(fields) | {field.alias for field in fields.values() if field.alias}


# --- the graph


def build(
    app: Application,
    *,
    name: str = DEFAULT_APP_NAME,
    route_prefix: str | None = "/",
    logging_config: LoggingConfig | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    overrides: Sequence[DeploymentSchema] = (),
    config: ServeApplicationSchema | None = None,
    external_scaler_enabled: bool = False,
    handle_factory: HandleFactory | None = None,
) -> ApplicationSpec:
    """The application, ready to be sent.

    `logging_config` and `runtime_env` are for deployments that have none of their own; a deployment's
    runtime_env goes before, and env_vars of both are put together. Raises ValueError for overrides of
    deployments that there are not, and RetinueServeException for what cannot be pickled.
    """
    graph = Graph(check_name("an application's name", name), handle_factory or _default_handle())
    ingress = graph.add(app)
    _check_overrides(overrides, graph)
    _check_single_asgi(graph, ingress)
    changed = {override.name: override.overrides() for override in overrides}
    parts = [
        _Part(node, changed.get(node.name, {}), logging_config, runtime_env or {}) for node in graph.nodes
    ]
    scaled = [part.node.name for part in parts if part.config.autoscaling_config is not None]
    if external_scaler_enabled and scaled:
        raise ValueError(f"external_scaler_enabled excludes autoscaling, which {', '.join(scaled)} has")
    needed = dependencies.of(part.referenced for part in parts)
    return ApplicationSpec(
        name=name,
        route_prefix=check_route_prefix(route_prefix),
        ingress=ingress,
        deployments=[part.spec(needed) for part in parts],
        config=config.model_dump_json(exclude_unset=True).encode() if config else b"",
        logging_config=logging_config.model_dump_json().encode() if logging_config else b"",
        external_scaler_enabled=external_scaler_enabled,
        autoscaling_policy=_policy(config.autoscaling_policy) if config is not None else b"",
    )


def _policy(given: dict[str, Any] | None) -> bytes:
    """With its definition: the controller may not be able to import it."""
    if given is None:
        return b""
    policy = AutoscalingPolicy.model_validate(given)
    policy.embed()
    return policy.model_dump_json().encode()


def build_from_config(config: ServeApplicationSchema) -> ApplicationSpec:
    """Import and build an application of a config file, in a process that has its runtime_env."""
    return build(
        import_application(config.import_path, config.args),
        name=config.name,
        route_prefix=config.route_prefix,
        logging_config=config.logging_config,
        runtime_env=config.runtime_env,
        overrides=config.deployments,
        config=config,
        external_scaler_enabled=config.external_scaler_enabled,
    )


def _default_handle() -> HandleFactory:
    from retinue.serve.handle import DeploymentHandle

    return DeploymentHandle


class Node:
    """A deployment of the graph, under its unique name, with its pickled arguments."""

    def __init__(self, name: str, deployment: Deployment, init_args: bytes) -> None:
        self.name = name
        self.deployment = deployment
        self.init_args = init_args


class Graph:
    """The deployments of an application: those that others depend on first, the ingress last."""

    def __init__(self, app_name: str, handle_factory: HandleFactory) -> None:
        self.app_name = app_name
        self.handle_factory = handle_factory
        self.nodes: list[Node] = []
        self._names: dict[int, str] = {}  # by identity: the same application twice is one deployment
        self._under_way: list[int] = []

    def add(self, app: Application) -> str:
        """The name of the application's deployment, which is added with all that it depends on."""
        known = self._names.get(id(app))
        if known is not None:
            return known
        if id(app) in self._under_way:
            raise ValueError(f"{app!r} is bound to itself")
        self._under_way.append(id(app))
        try:
            init_args = self._pickle(app)
        finally:
            self._under_way.pop()
        name = self._names[id(app)] = self._unique(app.deployment.name)
        self.nodes.append(Node(name, app.deployment, init_args))
        return name

    def _pickle(self, app: Application) -> bytes:
        file = io.BytesIO()
        with _explained(f"the arguments of {app.deployment.name}.bind()"):
            _Pickler(file, self).dump((app.args, app.kwargs))
        return file.getvalue()

    def _unique(self, wanted: str) -> str:
        name, index = wanted, 0
        while name in self._names.values():
            index += 1
            name = f"{wanted}_{index}"
        if index:
            logger.info(
                "application %r has several deployments named %r: one is %r now", self.app_name, wanted, name
            )
        return name


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Puts handles where applications are, however deep in the arguments."""

    def __init__(self, file: io.BytesIO, graph: Graph) -> None:
        super().__init__(file, protocol=5)
        self._graph = graph

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Application):
            return self._graph.handle_factory, (self._graph.add(obj), self._graph.app_name)
        return super().reducer_override(obj)


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Says what could not be pickled."""
    try:
        yield
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise RetinueServeException(
            f"{what} cannot be pickled: {error}. Make such things in the constructor; "
            "retinue.util.inspect_serializability finds where they are"
        ) from error


def _check_overrides(overrides: Iterable[DeploymentSchema], graph: Graph) -> None:
    names = [node.name for node in graph.nodes]
    for override in overrides:
        if override.name not in names:
            raise ValueError(
                f"application {graph.app_name!r} has no deployment {override.name!r}"
                f"{hint(override.name, names)}"
            )


def _check_single_asgi(graph: Graph, ingress: str) -> None:
    others = [node.name for node in graph.nodes if node.deployment.is_asgi and node.name != ingress]
    if others:
        raise RetinueServeException(
            f"application {graph.app_name!r} has @serve.ingress on {others[0]!r}, which no request can "
            f"reach: only {ingress!r} is its ingress"
        )


# --- deployments


class _Part:
    """A deployment on its way to its spec."""

    def __init__(
        self,
        node: Node,
        overrides: Mapping[str, Any],
        logging_config: LoggingConfig | None,
        runtime_env: Mapping[str, Any],
    ) -> None:
        deployment = node.deployment.options(**overrides) if overrides else node.deployment
        self.node = node
        self.deployment = deployment
        self.config = deployment.config.model_copy(deep=True)
        self.config.embed_code()
        if self.config.logging_config is None:
            self.config.logging_config = logging_config
        self.actor_options = _with_runtime_env(deployment.ray_actor_options, runtime_env)
        with _explained(f"the code of deployment {node.name!r}"):
            self.definition: bytes = cloudpickle.dumps(deployment.func_or_class, protocol=5)
        self.referenced = dependencies.referenced(self.definition) | dependencies.referenced(node.init_args)

    def spec(self, needed: dependencies.Dependencies) -> DeploymentSpec:
        definition = self.deployment.func_or_class
        return DeploymentSpec(
            name=self.node.name,
            config=self.config.model_dump_json().encode(),
            definition=self.definition,
            init_args=self.node.init_args,
            actor_options=_json(self.actor_options),
            version=self._version(),
            is_asgi=self.deployment.is_asgi,
            is_function=self.deployment.is_function,
            sys_path=needed.sys_path,
            preload=needed.preload,
            docs_path=getattr(getattr(definition, ASGI_ATTRIBUTE, None), "docs_url", None) or "",
        )

    def _version(self) -> str:
        """Of all that a running replica cannot take on; not of numbers, limits, user_config, logging."""
        config = self.config
        placement = (
            config.placement_group_bundles,
            config.placement_group_strategy,
            config.placement_group_bundle_label_selector,
        )
        digest = hashlib.sha256()
        for part in (
            _stable(self.definition),
            _stable(self.node.init_args),
            _json(self.actor_options),
            _json(placement),
            dependencies.source_digest(self.referenced),
        ):
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()[:16]


def _with_runtime_env(options: dict[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    own = options.get("runtime_env") or {}
    env = {**default, **own}
    variables = {**default.get("env_vars", {}), **own.get("env_vars", {})}
    if variables:
        env["env_vars"] = variables
    return {**options, "runtime_env": env} if env else options


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _stable(pickled: bytes) -> bytes:
    """The pickle without the random ids that cloudpickle gives classes: equal code, equal bytes."""
    for class_id in list(_DYNAMIC_CLASS_TRACKER_BY_CLASS.values()):
        pickled = pickled.replace(class_id.encode(), bytes(len(class_id)))
    return pickled
