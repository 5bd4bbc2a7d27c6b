"""The controller's actor: takes targets in, keeps them, and has applications and proxies follow them.

It is woken by events (a deploy, a replica that is ready or dead, a report of load, a node) and by the times
that parts of it ask for; nothing polls. Every change of target is in the key-value table before it is
acknowledged. Lives here: the order of its life, what others call. Does not: decisions, replicas, proxies.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

import msgspec

import retinue
from retinue.core import doors
from retinue.exceptions import ActorDiedError, RetinueError
from retinue.serve import logs
from retinue.serve.config import HTTPOptions, LoggingConfig, gRPCOptions
from retinue.serve.controller import building, details, measures, releases
from retinue.serve.controller.admin_door import ADMIN_DOOR, AdminDoor
from retinue.serve.controller.applications import App
from retinue.serve.controller.checkpoint import Checkpoint, InstanceRecord, ReplicaRecord
from retinue.serve.controller.cluster_view import ClusterView
from retinue.serve.controller.deployments import Deployment
from retinue.serve.controller.proxy_fleet import ProxyFleet
from retinue.serve.controller.publisher import Publisher
from retinue.serve.controller.replicas import ACTOR_PREFIX
from retinue.serve.deploy_schema import ServeDeploySchema
from retinue.serve.exceptions import RetinueServeException
from retinue.serve.measures import add_source
from retinue.serve.messages import (
    CONTROLLER_DOOR,
    CONTROLLER_KEY,
    CONTROLLER_NAME,
    NAMESPACE,
    ROUTES_KEY,
    ApplicationSpec,
    ControllerInfo,
    ReplicaStats,
    RouterStats,
    RouteTable,
    decode,
    encode,
    routing_key,
)
from retinue.serve.proxy_options import ProxyLocation
from retinue.util import list_named_actors

logger = logging.getLogger(__name__)

REPLICA_CLASS = "retinue.serve.replica.actor:ReplicaActor"
PROXY_CLASS = "retinue.serve.proxy.actor:ProxyActor"
# Parts ask for the times they need; this only bounds what a lost event can cost.
SLOW_TICK_S = 5.0
CHANGED_TIMEOUT_S = 30.0
TIMER_STEP_S = 0.001  # a loop's timer may come as much too early
LAST_WORDS_S = 0.2  # for the answer to `shutdown` to leave


class Door:
    """Reports of load."""

    load = 0

    def __init__(self, controller: ServeController) -> None:
        self._controller = controller

    async def call(self, method: str, body: bytes, context: doors.DoorContext) -> bytes:
        if method == "router_stats":
            self._controller.router_told(decode(RouterStats, body))
        elif method == "replica_stats":
            self._controller.replica_told(decode(ReplicaStats, body))
        else:
            raise ValueError(f"the controller's door has no method {method!r}")
        return b""


class ServeController:
    """The actor. `replica_class` and `proxy_class` are import paths of the actors' classes."""

    def __init__(self, replica_class: str = REPLICA_CLASS, proxy_class: str = PROXY_CLASS) -> None:
        self._paths = {"replica": replica_class, "proxy": proxy_class}
        self._classes: dict[str, Any] = {}
        self._starting: asyncio.Task[None] | None = None
        self._apps: dict[str, App] = {}
        self._dirty: set[Deployment] = set()
        self._timers: dict[Deployment, tuple[float, asyncio.TimerHandle]] = {}
        self._side: set[asyncio.Task[Any]] = set()
        self._version = 0
        self._told = b""
        self._is_ending = False
        self._ended: asyncio.Future[None] | None = None
        self._builds: dict[str, asyncio.Task[None]] = {}
        self.started_at = time.time()
        self.rounds = 0
        self.log_file = ""
        self._logs_by: bytes | None = None  # the options
        self.instance = InstanceRecord()
        # After its own death nobody calls it for a while, and it has to go on by itself. The loop does not
        # run yet: this call waits until it does.
        self._first_call = retinue.get_runtime_context().current_actor.ready.remote()

    # --- its life

    async def ready(self) -> str:
        """Return once it works, with its node's id."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        await asyncio.shield(self._starting)
        return retinue.get_runtime_context().get_node_id()

    async def _start(self) -> None:
        self._kv = doors.AsyncKeyValue(NAMESPACE)
        self.checkpoint = Checkpoint(self._kv)
        self._publisher = Publisher(self._kv)
        self._wake = asyncio.Event()
        self._news = asyncio.Event()
        self._targets = asyncio.Lock()  # one change of target at a time, so that records are in order
        self.cluster = ClusterView(self.wake)
        self.fleet = ProxyFleet(lambda: self._class("proxy"), self.cluster, self.wake)
        self._door = doors.open(CONTROLLER_DOOR, Door(self))
        self._admin_door = doors.open(ADMIN_DOOR, AdminDoor(self))
        await asyncio.gather(self.cluster.start(), self._recover())
        self._publisher.publish(CONTROLLER_KEY, encode(ControllerInfo(doors.own_address())))
        add_source(lambda: measures.samples(self))
        for work in (self._publisher.run(), self.cluster.run(), self._run()):
            self._keep(work)
        await self._publisher.flush(CONTROLLER_KEY)

    async def _recover(self) -> None:
        """Take up what an earlier incarnation left: targets, and replicas by their names."""
        self.instance = await self.checkpoint.instance()
        self._use_instance()
        for record in await self.checkpoint.applications():
            app = self._apps[record.name] = App(record.name, self)
            names = [d.name for d in record.spec.deployments] if record.spec else []
            app.recover(record, {name: await self.checkpoint.scale(record.name, name) for name in names})
            if record.spec is None and record.config and not record.build_error:
                self._build(app)
        known = set()
        for replica in sorted(await self.checkpoint.replicas(), key=lambda record: record.start_time_s):
            app_name, deployment_name, _ = replica.replica_id.split("#")
            deployment = self._find(app_name, deployment_name)
            if deployment is not None and deployment.recover(replica):
                known.add(replica.replica_id)
            else:
                await self.checkpoint.forget_replica(replica.replica_id)
        await asyncio.to_thread(_end_unknown, {ACTOR_PREFIX + replica_id for replica_id in known})
        self._dirty.update(d for app in self._apps.values() for d in app.all_deployments())

    def _keep(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        async def logged() -> Any:
            try:
                return await work
            except (RetinueError, OSError, ValueError, TimeoutError):
                logger.exception("a part of the controller failed")
                return None

        task = asyncio.create_task(logged())
        self._side.add(task)
        task.add_done_callback(self._side.discard)
        return task

    def _class(self, kind: str) -> Any:
        found = self._classes.get(kind)
        if found is None:
            module, _, name = self._paths[kind].partition(":")
            found = self._classes[kind] = retinue.remote(getattr(importlib.import_module(module), name))
        return found

    # --- rounds

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SLOW_TICK_S):
                    await self._wake.wait()
            self._wake.clear()
            self._round()

    def _round(self) -> None:
        self.rounds += 1
        now = time.monotonic()
        for app in list(self._apps.values()):
            for deployment in app.all_deployments():
                deployment.bury()
            app.order_deletions()
            for deployment in app.all_deployments():
                self._reconcile(deployment, now)
            app.load_changed(now)
            self._forget_gone(app)
        self._publish_routes()
        if not self._is_ending:
            self.fleet.reconcile({r.started.node_id for r in self._replicas() if r.started is not None})
        self._notice_news()

    def _reconcile(self, deployment: Deployment, now: float) -> None:
        try:
            deployment.reconcile(now)
            deployment.load_changed(now)
        except Exception as error:
            logger.exception("deployment %s of %s", deployment.name, deployment.app_name)
            deployment.internal_error(f"{type(error).__name__}: {error}")

    def _replicas(self) -> list[Any]:
        return [r for app in self._apps.values() for d in app.all_deployments() for r in d.replicas.values()]

    def _forget_gone(self, app: App) -> None:
        gone = app.forget_gone()
        for deployment in gone:
            if app.deployments.get(deployment.name) is not deployment or app.is_gone:
                self._forget(deployment)
        if app.is_gone:
            del self._apps[app.name]
            self._keep(self.checkpoint.forget_application(app.name))
        elif gone:
            self._keep(self._save(app))

    def _forget(self, deployment: Deployment) -> None:
        known = self._timers.pop(deployment, None)
        if known is not None:
            known[1].cancel()
        key = routing_key(deployment.app_name, deployment.name)
        if self._find(deployment.app_name, deployment.name) in (None, deployment):
            self._publisher.publish(key, None)

    def _publish_routes(self) -> None:
        routes = [route for app in self._apps.values() if (route := app.route()) is not None]
        table = RouteTable(sorted(routes, key=lambda r: r.prefix), sorted(self.cluster.draining))
        self._publisher.publish(ROUTES_KEY, encode(table))

    def _notice_news(self) -> None:
        told = details.status_json(self)
        if told != self._told:
            self._told = told
            self._version += 1
            self._news.set()
            self._news = asyncio.Event()

    # --- what deployments need (`deployments.Surroundings`)

    @property
    def actor_class(self) -> Any:
        return self._class("replica")

    @property
    def target_capacity(self) -> float | None:
        return self.instance.target_capacity

    def wake(self, deployment: Deployment | None = None) -> None:
        self._wake.set()

    def wake_at(self, deployment: Deployment, when: float) -> None:
        now = time.monotonic()
        known = self._timers.get(deployment)
        if known is not None:
            at, timer = known
            if at <= when:
                return
            timer.cancel()
        delay_s = max(0.0, when - now) + TIMER_STEP_S
        timer = asyncio.get_running_loop().call_later(delay_s, self._time_has_come, deployment)
        self._timers[deployment] = when, timer

    def _time_has_come(self, deployment: Deployment) -> None:
        del self._timers[deployment]
        self.wake(deployment)

    def publish(self, key: bytes, value: bytes | None) -> None:
        self._publisher.publish(key, value)

    async def flush(self, key: bytes) -> None:
        self._wake.set()
        await self._publisher.flush(key)

    def save_replica(self, record: ReplicaRecord) -> None:
        self._keep(self.checkpoint.save_replica(record))

    def forget_replica(self, replica_id: str) -> None:
        self._keep(self.checkpoint.forget_replica(replica_id))

    def save_scale(self, deployment: Deployment, count: int) -> None:
        self._keep(self.checkpoint.save_scale(deployment.app_name, deployment.name, count))

    def update_failed(self, deployment: Deployment) -> None:
        app = self._apps.get(deployment.app_name)
        if app is not None:
            self._keep(self._save(app))

    def new_replica_id(self, deployment: Deployment) -> str:
        return f"{deployment.app_name}#{deployment.name}#{os.urandom(4).hex()}"

    async def _save(self, app: App) -> None:
        async with self._targets:
            if self._apps.get(app.name) is app:
                await self.checkpoint.save_application(app.record())

    # --- load

    def router_told(self, stats: RouterStats) -> None:
        deployment = self._find(stats.app_name, stats.deployment_name)
        if deployment is not None and deployment.autoscaler is not None:
            now = time.monotonic()
            deployment.autoscaler.router_told(stats.router_id, stats.queued, stats.ongoing, now)
            deployment.load_changed(now)
            self._apps[stats.app_name].load_changed(now)

    def replica_told(self, stats: ReplicaStats) -> None:
        app_name, deployment_name, _ = stats.replica_id.split("#")
        deployment = self._find(app_name, deployment_name)
        replica = deployment.replicas.get(stats.replica_id) if deployment is not None else None
        if deployment is None or replica is None:
            return
        replica.ongoing = stats.ongoing
        if deployment.autoscaler is not None and stats.custom:
            now = time.monotonic()
            deployment.autoscaler.replica_told(stats.replica_id, stats.custom, now)
            deployment.load_changed(now)

    def _find(self, app_name: str, deployment_name: str) -> Deployment | None:
        app = self._apps.get(app_name)
        return app.deployments.get(deployment_name) if app is not None else None

    # --- targets

    async def deploy(self, specs: list[bytes]) -> None:
        """Deploy applications (msgpack of ApplicationSpec). Returns when the targets are durable.

        Raises ValueError, and changes nothing, for options or a route prefix that cannot be.
        """
        await self._check_open()
        await self._deploy([decode(ApplicationSpec, spec) for spec in specs])

    async def _deploy(
        self, specs: Sequence[ApplicationSpec], *, source: str = "imperative", config: bytes = b""
    ) -> None:
        for spec in specs:
            for deployment in spec.deployments:
                releases.read(deployment)
        async with self._targets:
            self._check_prefixes(specs)
            for spec in specs:
                app = self._apps.get(spec.name) or App(spec.name, self)
                app.source, app.config = source, config or spec.config
                await self.checkpoint.save_application(app.record(spec))
                self._apps[spec.name] = app
                app.deploy(spec, source=source, config=config or spec.config)
        self._round()

    def _check_prefixes(self, specs: Sequence[ApplicationSpec]) -> None:
        names = {spec.name for spec in specs}
        taken = {
            app.spec.route_prefix: app.name
            for app in self._apps.values()
            if app.spec is not None and app.name not in names and not app.is_deleting
        }
        for spec in specs:
            if spec.route_prefix is None:
                continue
            holder = taken.get(spec.route_prefix)
            if holder is not None:
                raise ValueError(
                    f"application {spec.name!r} cannot have the route prefix {spec.route_prefix!r}: "
                    f"application {holder!r} has it"
                )
            taken[spec.route_prefix] = spec.name

    async def scale(self, app_name: str, deployment_name: str, num_replicas: int) -> None:
        """Give a deployment another number of replicas; it holds until the application is deployed again.

        Raises ValueError for what there is not, and for deployments that are scaled by their load.
        """
        await self._check_open()
        deployment = self._find(app_name, deployment_name)
        app = self._apps.get(app_name)
        if app is None or app.spec is None or deployment is None:
            raise ValueError(f"there is no deployment {deployment_name!r} in an application {app_name!r}")
        if deployment.autoscaler is not None:
            raise ValueError(f"deployment {deployment_name!r} has autoscaling_config: its load decides")
        specs = [
            building.with_replicas(d, num_replicas) if d.name == deployment_name else d
            for d in app.spec.deployments
        ]
        spec = msgspec.structs.replace(app.spec, deployments=specs)
        await self._deploy([spec], source=app.source, config=app.config)

    async def delete(self, names: list[str]) -> None:
        """Drain and delete applications. Returns when that is certain, not when it is done."""
        await self.ready()
        async with self._targets:
            for name in names:
                app = self._apps.get(name)
                if app is None:
                    continue
                build = self._builds.pop(name, None)
                if build is not None:
                    build.cancel()
                app.delete()
                await self.checkpoint.save_application(app.record())
        self._round()

    async def apply_config(self, config_json: bytes) -> None:
        """Have the applications be those of the config (JSON of ServeDeploySchema).

        Others that came from a config are deleted. Applications are built behind this call; what fails is in
        their status. Raises pydantic.ValidationError, and changes nothing, for a config that is none.
        """
        await self._check_open()
        config = ServeDeploySchema.model_validate_json(config_json)
        instance = building.instance_of(config, self.instance, config_json)
        if building.changes_proxies(config, self.instance):
            logger.warning("proxies run already: their options stay as they are until serve is shut down")
        async with self._targets:
            await self.checkpoint.save_instance(instance)
            is_rescaled = instance.target_capacity != self.instance.target_capacity
            self.instance = instance
            self._use_instance()
            if is_rescaled:
                for app in self._apps.values():
                    for deployment in app.deployments.values():
                        deployment.use_capacity()
            for schema in config.applications:
                if schema.logging_config is None and config.logging_config is not None:
                    schema.logging_config = config.logging_config
                text = schema.model_dump_json(exclude_unset=True).encode()
                app = self._apps.get(schema.name) or App(schema.name, self)
                self._apps[app.name] = app
                if app.config == text and not app.is_deleting and app.is_fine:
                    continue
                app.source, app.config, app.is_deleting, app.build_error = "declarative", text, False, ""
                await self.checkpoint.save_application(app.record())
                self._build(app)
        wanted = {schema.name for schema in config.applications}
        gone = [a.name for a in self._apps.values() if a.source == "declarative" and a.name not in wanted]
        await self.delete(gone)

    def _build(self, app: App) -> None:
        before = self._builds.pop(app.name, None)
        if before is not None:
            before.cancel()
        app.is_building = True
        self._builds[app.name] = self._keep(self._build_and_deploy(app, app.config))

    async def _build_and_deploy(self, app: App, config: bytes) -> None:
        try:
            spec = await building.build_remotely(config)
            await self._deploy([spec], source="declarative", config=config)
        except (RetinueError, ValueError, TypeError) as error:
            app.is_building = False
            app.build_error = f"the application could not be built: {error}"
            await self._save(app)
            self._round()

    async def start_proxies(
        self,
        http_options_json: bytes,
        grpc_options_json: bytes,
        location: str,
        logging_config_json: bytes = b"",
    ) -> None:
        """Have proxies where `location` says, with these options (JSON). Those that run keep theirs."""
        await self._check_open()
        if self.instance.proxies_are_wanted:
            return
        record = InstanceRecord(
            location=location,
            http_options=bytes(http_options_json),
            grpc_options=bytes(grpc_options_json),
            logging_config=bytes(logging_config_json) or self.instance.logging_config,
            target_capacity=self.instance.target_capacity,
            config=self.instance.config,
            proxies_are_wanted=True,
        )
        async with self._targets:
            await self.checkpoint.save_instance(record)
            self.instance = record
            self._use_instance()
        self._round()

    def _use_instance(self) -> None:
        record = self.instance
        if self._logs_by != record.logging_config:
            self._logs_by = record.logging_config
            self.log_file = str(
                logs.configure(
                    logs.read_settings(record.logging_config),
                    file_name="controller.log",
                    component="controller",
                    component_id=str(os.getpid()),
                    terminal_level=logging.WARNING,
                ).path
            )
        if record.proxies_are_wanted:
            self.fleet.use(
                ProxyLocation(record.location or ProxyLocation.EveryNode),
                HTTPOptions.model_validate_json(record.http_options or b"{}"),
                gRPCOptions.model_validate_json(record.grpc_options or b"{}"),
                record.logging_config.decode(),
            )

    async def shutdown(self) -> None:
        """Delete all applications, end all proxies, forget everything; then the controller ends."""
        await self.ready()
        if self._ended is None:
            self._is_ending = True
            self._ended = asyncio.ensure_future(self._end_everything())
        await asyncio.shield(self._ended)

    async def _end_everything(self) -> None:
        names = list(self._apps)
        await asyncio.gather(self.delete(names), self.fleet.end_all())
        while self._apps:
            self._wake.set()
            news = self._news
            await news.wait()
        self._publisher.close()
        await self._kv.delete(b"", by_prefix=True)
        me = retinue.get_runtime_context().current_actor
        asyncio.get_running_loop().call_later(LAST_WORDS_S, lambda: retinue.kill(me))

    async def wait_ended(self) -> None:
        """Return at once, unless serve is being shut down: then never, for the actor ends first."""
        if self._is_ending:
            await asyncio.Event().wait()

    async def _check_open(self) -> None:
        await self.ready()
        if self._is_ending:
            raise RetinueServeException("serve is being shut down")

    # --- what there is

    async def status(self) -> bytes:
        """JSON of schema.ServeStatus."""
        await self.ready()
        return details.status_json(self)

    async def details(self) -> bytes:
        """JSON of schema.ServeInstanceDetails."""
        await self.ready()
        return details.details_json(self)

    async def changed(self, version: int) -> int:
        """Return the status's version once it is another than `version`; the same one after 30 s."""
        await self.ready()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CHANGED_TIMEOUT_S):
                while self._version == version:
                    await self._news.wait()
        return self._version

    async def ingress_of(self, app_name: str) -> str:
        """The name of the application's ingress deployment; "" if there is no such application."""
        await self.ready()
        app = self._apps.get(app_name)
        return app.spec.ingress if app is not None and app.spec is not None else ""

    @property
    def apps(self) -> dict[str, App]:
        return self._apps


def _end_unknown(known: set[str]) -> None:
    """End the replicas' actors that no record knows: they were started just as the controller died."""
    for actor in list_named_actors(all_namespaces=True):
        assert isinstance(actor, dict)
        name = actor["name"]
        if actor["namespace"] == NAMESPACE and name.startswith(ACTOR_PREFIX) and name not in known:
            logger.warning("%s is unknown to the controller, and is ended", name)
            with contextlib.suppress(ValueError):
                retinue.kill(retinue.get_actor(name, NAMESPACE))


def find_controller() -> Any:
    """The running controller's handle; None if there is none. One that is shutting down is waited for."""
    while True:
        try:
            handle = retinue.get_actor(CONTROLLER_NAME, NAMESPACE)
            retinue.get(handle.wait_ended.remote())
        except ValueError:
            return None
        except ActorDiedError:
            continue  # its name is free now
        return handle


def start_controller(
    http_options: HTTPOptions | None = None,
    grpc_options: gRPCOptions | None = None,
    proxy_location: ProxyLocation | None = None,
    logging_config: LoggingConfig | None = None,
    *,
    env_vars: Mapping[str, str] | None = None,
    replica_class: str = REPLICA_CLASS,
    proxy_class: str = PROXY_CLASS,
) -> Any:
    """The controller's handle: of the running one, or of a new one with these options. It answers by then.

    `env_vars`: of the controller's process, and of those that it starts, unless they say otherwise.
    If serve runs already, options that are given are ignored with a warning.
    """
    handle = find_controller()
    if handle is not None:
        retinue.get(handle.ready.remote())
        given = (http_options, grpc_options, proxy_location, logging_config, env_vars)
        if any(option is not None for option in given):
            logger.warning("serve runs already: its options stay as they are until serve.shutdown()")
        return handle
    handle = (
        retinue.remote(ServeController)
        .options(
            name=CONTROLLER_NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            get_if_exists=True,
            runtime_env={"env_vars": dict(env_vars)} if env_vars else None,
        )
        .remote(replica_class, proxy_class)
    )
    retinue.get(
        handle.start_proxies.remote(
            (http_options or HTTPOptions()).model_dump_json().encode(),
            (grpc_options or gRPCOptions()).model_dump_json().encode(),
            (proxy_location or ProxyLocation.EveryNode).value,
            logging_config.model_dump_json().encode() if logging_config is not None else b"",
        )
    )
    return handle
