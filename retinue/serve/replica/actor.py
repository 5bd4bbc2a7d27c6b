"""The actor that a replica is; its methods are called by the controller alone.

Lives here: the order of a replica's life, and what it does each period. Does not: requests (`door`), running
user code (`user_code`).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

import retinue
from retinue.core import doors
from retinue.serve import logs, multiplexing
from retinue.serve.access_log import AccessLog
from retinue.serve.batching.decorator import set_home_loop
from retinue.serve.context import ReplicaContext, set_replica_context
from retinue.serve.exceptions import RetinueServeException
from retinue.serve.messages import REPLICA_DOOR, DeploymentSpec, ReplicaStarted, ReplicaStats, decode
from retinue.serve.replica.asgi import Lifespan
from retinue.serve.replica.controller_link import ControllerLink
from retinue.serve.replica.door import ReplicaDoor
from retinue.serve.replica.measures import RequestMeasures
from retinue.serve.replica.progress import Progress
from retinue.serve.replica.slots import Slots
from retinue.serve.replica.threads import ThreadPool
from retinue.serve.replica.user_code import UserCode
from retinue.serve.routing.process import use_this_loop

logger = logging.getLogger("retinue.serve")

DEBUG_ERRORS_SETTING = "RETINUE_SERVE_DEBUG_ERRORS"
# Requests may take long by right, so that a replica in which none finishes is only logged, unless this is
# set: then it is unhealthy after so many seconds.
STUCK_SETTING = "RETINUE_SERVE_UNHEALTHY_WITHOUT_PROGRESS_S"
LOG_STUCK_AFTER_S = 60.0
HOOK_THREADS = 2


class RouterSettings(msgspec.Struct):
    request_routing_stats_period_s: float = 10.0


class AutoscalingSettings(msgspec.Struct):
    metrics_interval_s: float = 10.0


class Settings(msgspec.Struct):
    """What a replica needs of config.DeploymentConfig."""

    max_ongoing_requests: int = 5
    user_config: Any = None
    logging_config: logs.LogSettings | None = None
    request_router_config: RouterSettings = msgspec.field(default_factory=RouterSettings)
    autoscaling_config: AutoscalingSettings | None = None


class ReplicaActor:
    """One replica. `initialize()` before anything else; `drain()` before the end."""

    def __init__(self, replica_id: str, app_name: str, spec: bytes, rank: int, world_size: int) -> None:
        self._spec = decode(DeploymentSpec, spec)
        self._settings = msgspec.json.decode(self._spec.config or b"{}", type=Settings)
        self._replica_id = replica_id
        limit = self._settings.max_ongoing_requests
        self._slots = Slots(limit)
        self._pool = ThreadPool(limit, "user-code")
        # Of their own, so that checks are answered while every thread is busy with requests.
        self._hook_pool = ThreadPool(HOOK_THREADS, "user-hook")
        self._user = UserCode(self._spec, self._pool)
        self._context = ReplicaContext(replica_id, app_name, self._spec.name, None, rank, world_size)
        self._lifespan: Lifespan | None = None
        self._door: doors.Door | None = None
        self._link: ControllerLink | None = None
        self._periodic: list[asyncio.Task[None]] = []
        self._progress = Progress()
        self._measures = RequestMeasures(
            app_name, self._spec.name, self._context.replica_tag, lambda: self._slots.load
        )
        self._last_told_stuck = 0.0
        self._drained: asyncio.Future[None] | None = None
        set_replica_context(self._context)
        self._log_file = self._configure_logs()

    def _configure_logs(self) -> logs.LogFile:
        """Have log and access log follow the options. Raises OSError where the file cannot be made."""
        settings = self._settings.logging_config or logs.LogSettings()
        name = self._replica_id.replace("#", "_").replace("/", "_")
        file = logs.configure(
            settings, file_name=f"replica_{name}.log", component="replica", component_id=self._replica_id
        )
        self._measures.access_log = None
        self._measures.logs_proxied = self._settings.logging_config is not None
        if settings.enable_access_log:
            form = logs.replica_access_form(settings, "replica", self._replica_id)
            self._measures.access_log = AccessLog(file, form=form)
        return file

    async def initialize(self) -> ReplicaStarted:
        """Run the user's constructor, `reconfigure` and lifespan; open the door. Raises what these do."""
        set_home_loop(asyncio.get_running_loop())
        began = time.monotonic()
        use_this_loop(self._replica_id)  # handles in user code share it
        multiplexing.registry.listener = self._slots.models_changed
        await self._user.construct()
        self._context.servable_object = self._user.instance
        if self._settings.user_config is not None or self._wants_rank():
            await self._run_reconfigure()
        app = self._user.make_app()
        state: dict[str, Any] = {}
        if app is not None:
            self._lifespan = Lifespan(app)
            await self._lifespan.start()
            state = self._lifespan.state
        door = ReplicaDoor(
            self._user,
            self._slots,
            self._context.app_name,
            measures=self._measures,
            app=app,
            state=state,
            shows_errors=os.environ.get(DEBUG_ERRORS_SETTING, "").lower() in {"1", "true"},
        )
        self._link = ControllerLink()
        self._start_periodic()
        self._measures.started.add((), time.monotonic() - began)
        self._measures.publish()
        self._door = doors.open(REPLICA_DOOR, door)
        return ReplicaStarted(
            address=doors.own_address(),
            node_id=retinue.get_runtime_context().get_node_id(),
            pid=os.getpid(),
            is_asgi=app is not None,
            log_file=str(self._log_file.path),
            docs_path=self._spec.docs_path or getattr(app, "docs_url", None) or "",
            model_ids=multiplexing.registry.loaded(),
        )

    # --- reconfiguring

    async def reconfigure(self, config: bytes, rank: int, world_size: int) -> None:
        """Take another config of the same version. Raises what the user's `reconfigure` raises."""
        old, self._settings = self._settings, msgspec.json.decode(config, type=Settings)
        is_other_rank = rank != self._context.rank
        self._context.rank, self._context.world_size = rank, world_size
        if self._settings.logging_config != old.logging_config:
            self._measures.flush_log()
            self._log_file = self._configure_logs()
        if self._settings.max_ongoing_requests != old.max_ongoing_requests:
            self._pool.limit = self._settings.max_ongoing_requests
            self._slots.resize(self._settings.max_ongoing_requests)
        if self._settings.user_config != old.user_config or (is_other_rank and self._wants_rank()):
            await self._run_reconfigure()

    def _wants_rank(self) -> bool:
        method = self._user.hook("reconfigure")
        return method is not None and "rank" in inspect.signature(method.function).parameters

    async def _run_reconfigure(self) -> None:
        method = self._user.hook("reconfigure")
        if method is None:
            if self._settings.user_config is None:
                return
            raise RetinueServeException(
                f"deployment {self._spec.name!r} has a user_config, but no method reconfigure(user_config)"
            )
        kwargs = {"rank": self._context.rank} if self._wants_rank() else {}
        await self._user.run(method, (self._settings.user_config,), kwargs, pool=self._hook_pool)

    # --- health

    async def check_health(self) -> None:
        """Raise if the user's `check_health` does, or, where the setting asks for it, if nothing finishes."""
        self._look_at_progress(time.monotonic())
        method = self._user.hook("check_health")
        if method is not None:
            await self._user.run(method, pool=self._hook_pool)

    def _look_at_progress(self, now: float) -> None:
        self._progress.look(moved=self._slots.moved, ongoing=self._slots.load, now=now)
        stuck_s = self._progress.stuck_for(now)
        limit_s = float(os.environ.get(STUCK_SETTING, "0"))
        text = f"{self._slots.load} requests run, and none has finished nor sent anything for {stuck_s:.0f} s"
        if limit_s and stuck_s > limit_s:
            raise RetinueServeException(f"{text} ({STUCK_SETTING} is {limit_s:g})")
        if stuck_s > LOG_STUCK_AFTER_S and now - self._last_told_stuck > LOG_STUCK_AFTER_S:
            self._last_told_stuck = now
            logger.warning("replica %s: %s", self._replica_id, text)

    # --- what is reported

    async def stats(self) -> ReplicaStats:
        return ReplicaStats(self._replica_id, self._slots.load, await self._custom_stats())

    async def _custom_stats(self) -> dict[str, float]:
        method = self._user.hook("record_autoscaling_stats")
        if method is None:
            return {}
        return dict(await self._user.run(method, pool=self._hook_pool))

    def _start_periodic(self) -> None:
        if self._user.hook("record_autoscaling_stats") is not None:
            self._every(
                lambda: (self._settings.autoscaling_config or AutoscalingSettings()).metrics_interval_s,
                self._push,
            )
        if self._user.hook("record_routing_stats") is not None:
            self._every(
                lambda: self._settings.request_router_config.request_routing_stats_period_s,
                self._push_routing_stats,
            )

    def _every(self, period_s: Callable[[], float], function: Callable[[], Awaitable[None]]) -> None:
        async def repeat() -> None:
            while True:
                try:
                    await function()
                except Exception:
                    logger.exception("replica %s: a hook failed", self._replica_id)
                await asyncio.sleep(period_s())

        self._periodic.append(asyncio.create_task(repeat()))

    async def _push(self) -> None:
        assert self._link is not None
        await self._link.report("replica_stats", await self.stats())

    async def _push_routing_stats(self) -> None:
        method = self._user.hook("record_routing_stats")
        assert method is not None
        self._slots.routing_stats(dict(await self._user.run(method, pool=self._hook_pool)))

    # --- the end

    async def drain(self) -> None:
        """Refuse what comes, wait for what runs, end the user's code. Called twice, both wait for that."""
        if self._drained is None:
            self._drained = asyncio.ensure_future(self._drain())
        await asyncio.shield(self._drained)

    async def _drain(self) -> None:
        self._slots.drain()
        await self._slots.wait_idle()
        for task in self._periodic:
            task.cancel()
        try:
            if self._lifespan is not None:
                await self._lifespan.end()
            await multiplexing.registry.unload_all()
            await self._user.end()
        except Exception:
            logger.exception("replica %s: its code failed at its end", self._replica_id)
        await asyncio.to_thread(self._close_pools)
        self._slots.end()
        self._measures.close()
        if self._link is not None:
            self._link.close()
        if self._door is not None:
            self._door.close()

    def _close_pools(self) -> None:
        self._pool.close()
        self._hook_pool.close()
