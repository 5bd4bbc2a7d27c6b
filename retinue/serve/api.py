"""`serve.run` and its kin: deploy applications on the cluster, look at them, take them down.

Lives here: those functions, for drivers and for code on the cluster. Does not: the command line, or what the
controller does. Each call waits for the controller where its docstring says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, TypeAdapter

import retinue
from retinue.exceptions import GetTimeoutError, RetinueTaskError, UnsupportedError
from retinue.serve.build import build, resolve
from retinue.serve.config import (
    ControllerOptions,
    HTTPOptions,
    LoggingConfig,
    ProxyLocation,
    TracingConfig,
    gRPCOptions,
)
from retinue.serve.context import find_replica_context
from retinue.serve.deployment import Application
from retinue.serve.exceptions import RetinueServeException
from retinue.serve.handle import DeploymentHandle
from retinue.serve.messages import CONTROLLER_NAME, NAMESPACE, ApplicationSpec, encode
from retinue.serve.models import hint
from retinue.serve.names import DEFAULT_APP_NAME
from retinue.serve.ports import check_port_is_free
from retinue.serve.status_schema import ApplicationStatus, ProxyStatus, ServeInstanceDetails, ServeStatus
from retinue.serve.unsupported import REFUSED

if TYPE_CHECKING:
    from retinue.actor import ActorHandle

logger = logging.getLogger("retinue.serve")

TELL_EVERY_S = 10.0  # what `run` waits for

M = TypeVar("M", bound=BaseModel)
_status = TypeAdapter(ServeStatus)

LOOK_AGAIN_S = 0.25  # why a proxy cannot start is no change of status, and wakes nobody


# --- starting and stopping


def start(
    proxy_location: str | ProxyLocation | None = None,
    http_options: dict[str, Any] | HTTPOptions | None = None,
    grpc_options: dict[str, Any] | gRPCOptions | None = None,
    logging_config: dict[str, Any] | LoggingConfig | None = None,
    tracing_config: dict[str, Any] | TracingConfig | None = None,
    controller_options: dict[str, Any] | ControllerOptions | None = None,
) -> None:
    """Start serve on the cluster: its controller, and proxies where `proxy_location` says (default: every
    node with a replica). Starts or joins a cluster as `retinue.init()` does, if that was not done.

    `serve.run` does this with the defaults; call it first to set options. They hold until `serve.shutdown`:
    if serve runs already, they are ignored with a warning.
    """
    _start_controller(
        proxy_location=proxy_location,
        http_options=http_options,
        grpc_options=grpc_options,
        logging_config=logging_config,
        tracing_config=tracing_config,
        controller_options=controller_options,
    )


def _start_controller(
    proxy_location: str | ProxyLocation | None = None,
    http_options: dict[str, Any] | HTTPOptions | None = None,
    grpc_options: dict[str, Any] | gRPCOptions | None = None,
    logging_config: dict[str, Any] | LoggingConfig | None = None,
    tracing_config: dict[str, Any] | TracingConfig | None = None,
    controller_options: dict[str, Any] | ControllerOptions | None = None,
) -> ActorHandle[Any]:
    http = _model(HTTPOptions, http_options)
    grpc = _model(gRPCOptions, grpc_options)
    logs = _model(LoggingConfig, logging_config)
    tracing = _model(TracingConfig, tracing_config)
    if tracing is not None and tracing.enabled:
        raise UnsupportedError(REFUSED["tracing_config"])
    controller = _model(ControllerOptions, controller_options)
    env_vars = (controller.runtime_env or {}).get("env_vars") if controller is not None else None
    location = ProxyLocation(proxy_location) if proxy_location is not None else None
    if http is not None and http.location is not None:
        location = http.location
    _connect()
    from retinue.serve.controller.actor import start_controller

    if location != ProxyLocation.Disabled and not _is_running():
        check_port_is_free(http)
    return start_controller(http, grpc, location, logs, env_vars=env_vars)  # type: ignore[no-any-return]


def _is_running() -> bool:
    try:
        retinue.get_actor(CONTROLLER_NAME, namespace=NAMESPACE)
    except ValueError:
        return False
    return True


def _connect() -> None:
    if not retinue.is_initialized():
        retinue.init(namespace=NAMESPACE)


def _model(model: type[M], given: Mapping[str, Any] | M | None) -> M | None:
    if given is None or isinstance(given, model):
        return given
    return model.model_validate(given)


def _controller() -> ActorHandle[Any]:
    """The running controller. Raises RetinueServeException if there is none."""
    found = _find_controller()
    if found is None:
        raise RetinueServeException("serve does not run on this cluster; serve.run or serve.start start it")
    return found


def _find_controller() -> ActorHandle[Any] | None:
    _connect()
    try:
        return retinue.get_actor(CONTROLLER_NAME, namespace=NAMESPACE)
    except ValueError:
        return None


def shutdown() -> None:
    """Delete all applications and stop serve's processes; returns when they are gone.

    Where serve does not run, only local applications (`_local_testing_mode`) are ended.
    """
    local = sys.modules.get("retinue.serve.local_testing")
    if local is not None:
        local.end_all()
    if not retinue.is_initialized():
        return
    controller = _find_controller()
    if controller is None:
        logger.info("serve does not run on this cluster; there is nothing to shut down")
        return
    retinue.get(controller.shutdown.remote())


async def shutdown_async() -> None:
    """As `shutdown`, for event loops."""
    await asyncio.to_thread(shutdown)


# --- running applications


@dataclass(frozen=True)
class RunTarget:
    """An application for `run_many`; the fields are `run`'s arguments."""

    target: Application
    name: str = DEFAULT_APP_NAME
    route_prefix: str | None = "/"
    logging_config: dict[str, Any] | LoggingConfig | None = None
    external_scaler_enabled: bool = False


def run(
    target: Application,
    blocking: bool = False,
    name: str = DEFAULT_APP_NAME,
    route_prefix: str | None = "/",
    logging_config: dict[str, Any] | LoggingConfig | None = None,
    _local_testing_mode: bool = False,
    external_scaler_enabled: bool = False,
    controller_options: dict[str, Any] | ControllerOptions | None = None,
) -> DeploymentHandle[Any]:
    """Deploy an application, wait until it runs, and return a handle of its ingress deployment.

    An application of that name is updated: what did not change goes on. `route_prefix` None: not reachable by
    HTTP. `blocking`: return only when interrupted (KeyboardInterrupt is raised on). `logging_config` is for
    deployments that have none. `_local_testing_mode` runs everything in this process, without a cluster.

    Raises RetinueServeException with the reason if the application cannot be deployed; an older version of it
    goes on then. Other applications are left alone.
    """
    one = RunTarget(target, name, route_prefix, logging_config, external_scaler_enabled)
    return run_many(
        [one],
        blocking,
        _local_testing_mode=_local_testing_mode,
        controller_options=controller_options,
    )[0]


def run_many(
    targets: Sequence[RunTarget],
    blocking: bool = False,
    wait_for_ingress_deployment_creation: bool = True,
    wait_for_applications_running: bool = True,
    _local_testing_mode: bool = False,
    controller_options: dict[str, Any] | ControllerOptions | None = None,
) -> list[DeploymentHandle[Any]]:
    """As `run`, for several applications at once. Returns their handles in order.

    `wait_for_applications_running` False: return when they are accepted. All are built before the first is
    deployed.
    """
    if not targets:
        raise ValueError("run_many needs at least one RunTarget")
    if _local_testing_mode:
        from retinue.serve.local_testing import run_locally

        return [run_locally(resolve(t.target), t.name) for t in targets]
    _connect()  # before building: the driver's runtime_env goes into the applications
    specs = [_built(t) for t in targets]
    controller = _start_controller(controller_options=controller_options)
    try:
        retinue.get(controller.deploy.remote([encode(spec) for spec in specs]))
    except RetinueTaskError as error:
        if isinstance(error.cause, ValueError):  # what was asked for, not the controller, is wrong
            raise error.cause from None
        raise
    if wait_for_applications_running:
        _wait_running(controller, [spec.name for spec in specs])
        if any(t.route_prefix is not None for t in targets):
            _wait_proxies(controller)
    handles: list[DeploymentHandle[Any]] = [DeploymentHandle(spec.ingress, spec.name) for spec in specs]
    if blocking:
        wait_for_interrupt()
    return handles


def _built(target: RunTarget) -> ApplicationSpec:
    app: Any = target.target
    if not isinstance(app, Application):
        if not inspect.isfunction(app):
            resolve(app)  # says what it is instead
        raise TypeError(
            "serve.run takes an application, as .bind() returns it; call the builder function first"
        )
    return build(
        app,
        name=target.name,
        route_prefix=target.route_prefix,
        logging_config=_model(LoggingConfig, target.logging_config),
        runtime_env=_driver_env(),
        external_scaler_enabled=target.external_scaler_enabled,
    )


def _driver_env() -> dict[str, Any]:
    """Replicas are the controller's actors; they get this driver's environment and working directory."""
    env = dict(retinue.get_runtime_context().runtime_env)
    env.setdefault("working_dir", os.getcwd())
    return env


def _wait_running(controller: ActorHandle[Any], names: Sequence[str]) -> None:
    """Raises RetinueServeException with the reason if one of them cannot be deployed, or is deleted."""
    version = -1
    told: dict[str, tuple[str, float]] = {}  # what was said of each, and when
    change = controller.changed.remote(version)
    while True:
        with contextlib.suppress(GetTimeoutError):
            version = retinue.get(change, timeout=TELL_EVERY_S)
            change = controller.changed.remote(version)
        now = time.monotonic()
        applications = _get_status(controller).applications
        waiting = []
        for name in names:
            app = applications.get(name)
            if app is None or app.status is ApplicationStatus.DELETING:
                raise RetinueServeException(f"application {name!r} was deleted while it was deployed")
            if app.status is ApplicationStatus.DEPLOY_FAILED:
                raise RetinueServeException(f"application {name!r} could not be deployed: {app.message}")
            if app.status is not ApplicationStatus.RUNNING:
                waiting.append(name)
                message, at = told.get(name, ("", now if not app.message else 0.0))
                if app.message != message or now - at >= TELL_EVERY_S:
                    # Such as: a replica cannot be placed, and what it lacks. The wait may be for ever.
                    said = app.message or "its replicas are starting"
                    logger.warning("application %r is not running yet: %s", name, said)
                    at = now
                told[name] = app.message, at
        if not waiting:
            return


def _wait_proxies(controller: ActorHandle[Any]) -> None:
    """Until requests can come in. Raises RetinueServeException, with the reason, if a proxy cannot start."""
    while True:
        version = retinue.get(controller.changed.remote(-1))
        details = ServeInstanceDetails.model_validate_json(retinue.get(controller.details.remote()))
        proxies = details.proxies.values()
        if details.proxy_location is ProxyLocation.Disabled:
            return
        if proxies and all(proxy.status is not ProxyStatus.STARTING for proxy in proxies):
            return
        for proxy in proxies:
            if proxy.message:
                raise RetinueServeException(f"the applications run, but the proxy cannot: {proxy.message}")
        with contextlib.suppress(GetTimeoutError):
            retinue.get(controller.changed.remote(version), timeout=LOOK_AGAIN_S)


def wait_for_interrupt() -> None:
    """Wait for Ctrl-C; the KeyboardInterrupt goes on to the caller."""
    logger.info("applications are running; press Ctrl-C to end")
    threading.Event().wait()


def delete(name: str, _blocking: bool = True) -> None:
    """Delete an application; returns when its replicas have finished what they had accepted and are gone.

    Raises RetinueServeException if serve does not run, or has no such application.
    """
    controller = _controller()
    applications = _get_status(controller).applications
    if name not in applications:
        raise RetinueServeException(f"there is no application {name!r}{hint(name, applications)}")
    retinue.get(controller.delete.remote([name]))
    version = -1
    while _blocking and name in _get_status(controller).applications:
        version = retinue.get(controller.changed.remote(version))


# --- looking


def status() -> ServeStatus:
    """Proxies, applications and their deployments, in short. Empty where serve does not run."""
    controller = _find_controller()
    return ServeStatus() if controller is None else _get_status(controller)


def _get_status(controller: ActorHandle[Any]) -> ServeStatus:
    return _status.validate_json(retinue.get(controller.status.remote()))


def get_app_handle(name: str) -> DeploymentHandle[Any]:
    """A handle of an application's ingress deployment.

    Raises RetinueServeException if serve does not run, or has no such application.
    """
    controller = _controller()
    ingress = retinue.get(controller.ingress_of.remote(name))
    if not ingress:
        raise RetinueServeException(
            f"there is no application {name!r}{hint(name, _get_status(controller).applications)}"
        )
    return DeploymentHandle(ingress, name)


def get_deployment_handle(
    deployment_name: str,
    app_name: str | None = None,
    _check_exists: bool = True,
    _record_telemetry: bool = True,
) -> DeploymentHandle[Any]:
    """A handle of a deployment. `app_name` may be left out in replicas: it is their own application then.

    Raises RetinueServeException if there is no such deployment, or no application is said.
    """
    if app_name is None:
        context = find_replica_context()
        if context is None:
            raise RetinueServeException(
                "get_deployment_handle needs app_name outside of an application's replicas"
            )
        app_name = context.app_name
    if _check_exists:
        applications = _get_status(_controller()).applications
        if app_name not in applications:
            raise RetinueServeException(f"there is no application {app_name!r}{hint(app_name, applications)}")
        deployments = applications[app_name].deployments
        if deployment_name not in deployments:
            raise RetinueServeException(
                f"application {app_name!r} has no deployment {deployment_name!r}"
                f"{hint(deployment_name, deployments)}"
            )
    return DeploymentHandle(deployment_name, app_name)
