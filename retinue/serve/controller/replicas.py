"""One replica, as the controller sees it: an actor that is started, watched, reconfigured and stopped.

Lives here: calling the replica's actor, and noticing what becomes of it. Does not: the actor itself
(`retinue.serve.replica`), how many there shall be (`deployments`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import retinue
from retinue.exceptions import RetinueError
from retinue.serve.controller.checkpoint import ReplicaRecord
from retinue.serve.controller.cluster_view import pinned_to
from retinue.serve.controller.measures import EVENTS
from retinue.serve.controller.reconciler import ReplicaStatus
from retinue.serve.controller.releases import Release
from retinue.serve.controller.replica_life import ENDING, RECOVERING, STARTING, Event, ReplicaLife
from retinue.serve.controller.watching import death_of, is_dead, reason_of
from retinue.serve.messages import NAMESPACE, ReplicaInfo, ReplicaStarted, encode
from retinue.util import state as state_api

logger = logging.getLogger(__name__)

ACTOR_PREFIX = "SERVE_REPLICA::"
UNHEALTHY_AFTER = 3  # health checks in a row that failed
LOG_TAIL_LINES = 30
FORCED_END_S = 5.0


@dataclass(frozen=True, slots=True)
class DeadReplica:
    replica_id: str
    node_id: str | None
    pid: int | None
    actor_id: str | None
    log_file: str
    start_time_s: float
    end_time_s: float
    reason: str
    log_tail: str


class Replica:
    """Owns the tasks about one replica. `on_change` is called after every change of it."""

    def __init__(
        self,
        replica_id: str,
        app_name: str,
        release: Release,
        *,
        rank: int,
        age: int,
        actor_class: Any,
        on_change: Callable[[Replica], None],
        state: ReplicaLife | None = None,
        wanted_node: str = "",
    ) -> None:
        self.replica_id = replica_id
        self.app_name = app_name
        self.release = release
        self.rank = rank
        self.world_size = 0
        self.wanted_node = wanted_node  # "": the scheduler's choice
        self.age = age
        self.life = state or ReplicaLife(STARTING)
        self.started: ReplicaStarted | None = None
        self.start_time_s = time.time()
        self.began_at = time.monotonic()
        self.ongoing = 0
        self.is_unplaced = False
        self.reason = ""  # why it ends, or ended
        self.failed_to = ""  # "start", "be healthy" or "reconfigure": what it was not able to
        self.log_tail = ""
        self._measured_as = (app_name, release.spec.name)
        self.actor_id: str | None = None
        self._handle: Any = None
        self._actor_class = actor_class
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None
        self._side: set[asyncio.Task[None]] = set()

    # what others ask

    @property
    def actor_name(self) -> str:
        return ACTOR_PREFIX + self.replica_id

    @property
    def is_over(self) -> bool:
        return self.life.state in ENDING

    def status(self) -> ReplicaStatus:
        return ReplicaStatus(
            replica_id=self.replica_id,
            version=self.release.version,
            state=self.life.state,
            config_id=self.release.config_id,
            is_unplaced=self.is_unplaced,
            ongoing=self.ongoing,
            age=self.age,
        )

    @property
    def node_id(self) -> str:
        """Where it runs, or is to run; "": not known yet."""
        return self.started.node_id if self.started is not None else self.wanted_node

    def info(self) -> ReplicaInfo:
        assert self.started is not None
        return ReplicaInfo(
            replica_id=self.replica_id,
            address=self.started.address,
            node_id=self.started.node_id,
            max_ongoing_requests=self.release.config.max_ongoing_requests,
            actor_name=self.actor_name,
        )

    def record(self) -> ReplicaRecord:
        return ReplicaRecord(
            self.replica_id,
            self.release.version,
            self.release.config_id,
            self.rank,
            self.start_time_s,
            self.started,
        )

    def obituary(self) -> DeadReplica:
        started = self.started
        return DeadReplica(
            self.replica_id,
            started.node_id if started else None,
            started.pid if started else None,
            self.actor_id,
            started.log_file if started else "",
            self.start_time_s,
            time.time(),
            self.reason,
            self.log_tail,
        )

    # what the deployment tells it

    def start(self, world_size: int) -> None:
        self.world_size = world_size
        self._task = asyncio.create_task(self._start_and_watch(), name=f"start {self.replica_id}")

    def recover(self, record: ReplicaRecord) -> None:
        """Find it again after the controller's own death."""
        self.life = ReplicaLife(RECOVERING)
        self.started = record.started
        self.start_time_s = record.start_time_s
        self._task = asyncio.create_task(self._recover_and_watch(), name=f"recover {self.replica_id}")

    def reconfigure(self, release: Release, world_size: int) -> None:
        """Apply other options in place; it serves meanwhile."""
        self.life.move(Event.RECONFIGURE)
        self.world_size = world_size
        self._beside(self._reconfigure(release))

    def tell_rank(self, rank: int, world_size: int) -> None:
        """It has another rank, or there are more or fewer of them."""
        self.rank, self.world_size = rank, world_size
        self._beside(self._apply(self.release))

    def migrate(self) -> None:
        self.life.move(Event.MIGRATE)
        self._on_change(self)

    def stop(
        self, reason: str, *, unpublished: Callable[[], Awaitable[None]], is_graceful: bool = True
    ) -> None:
        """Drain it and end it. `unpublished` returns when no router can learn of it any more."""
        was_started = self.started is not None
        self.life.move(Event.STOP)
        self.reason = self.reason or reason
        before, self._task = (
            self._task,
            asyncio.create_task(
                self._stop(unpublished, is_graceful=is_graceful and was_started),
                name=f"stop {self.replica_id}",
            ),
        )
        if before is not None:
            before.cancel()

    async def close(self) -> None:
        """Leave the replica alone from now on; its actor stays."""
        tasks = [t for t in (self._task, *self._side) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # its life

    async def _start_and_watch(self) -> None:
        try:
            self._handle = await asyncio.to_thread(self._create)
            self.actor_id = self._handle._actor_id.hex()
            self.started = await self._handle.initialize.remote()
            await self._handle.check_health.remote()
        except (RetinueError, ValueError, TypeError) as error:
            EVENTS.start_failures.add(self._measured_as)
            await self._fail("start", reason_of(error))
            return
        EVENTS.starts.add(self._measured_as, time.monotonic() - self.began_at)
        self._ready()
        await self._watch()

    def _create(self) -> Any:
        spec = self.release.spec
        options = json.loads(spec.actor_options or b"{}")
        options.setdefault("num_cpus", 1)
        if self.wanted_node:
            options["resources"] = {**(options.get("resources") or {}), **pinned_to(self.wanted_node)}
        else:
            options.setdefault("scheduling_strategy", "SPREAD")
        if spec.preload:
            environment = dict(options.get("runtime_env") or {})
            environment["preload"] = list(dict.fromkeys([*environment.get("preload", ()), *spec.preload]))
            options["runtime_env"] = environment
        options |= {
            "name": self.actor_name,
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "max_restarts": 0,
        }
        return self._actor_class.options(**options).remote(
            self.replica_id, self.app_name, encode(spec), self.rank, self.world_size
        )

    async def _recover_and_watch(self) -> None:
        timeout_s = self.release.config.health_check_timeout_s
        try:
            self._handle = await asyncio.to_thread(retinue.get_actor, self.actor_name, NAMESPACE)
            self.actor_id = self._handle._actor_id.hex()
            async with asyncio.timeout(timeout_s):
                await self._handle.check_health.remote()
        except (RetinueError, ValueError, TimeoutError) as error:
            await self._fail(
                "be healthy", f"the controller came back and did not find it well: {reason_of(error)}"
            )
            return
        self._ready()
        await self._watch()

    def _ready(self) -> None:
        self.is_unplaced = False
        self.life.move(Event.READY)
        self._on_change(self)

    async def _watch(self) -> None:
        """Until it dies or is found ill."""
        death = asyncio.ensure_future(death_of(self._handle))
        health = asyncio.ensure_future(self._illness())
        try:
            await asyncio.wait((death, health), return_when=asyncio.FIRST_COMPLETED)
            reason = death.result() if death.done() else health.result()
        finally:
            death.cancel()
            health.cancel()
        EVENTS.deaths.add(self._measured_as)
        await self._fail("be healthy", reason)

    async def _illness(self) -> str:
        """Return why it is ill, once enough health checks in a row have failed."""
        failures = 0
        while True:
            config = self.release.config
            await asyncio.sleep(config.health_check_period_s)
            reference = self._handle.check_health.remote()
            began = time.monotonic()
            try:
                async with asyncio.timeout(config.health_check_timeout_s):
                    await reference
                failures = 0
                EVENTS.checks.add(self._measured_as, time.monotonic() - began)
                continue
            except TimeoutError as error:
                retinue.cancel(reference)
                told = reason_of(error) if str(error) else "no answer"
                reason = f"check_health took over {config.health_check_timeout_s:g} s: {told}"
            except RetinueError as error:
                reason = reason_of(error)
                if is_dead(error):
                    return reason
            failures += 1
            EVENTS.checks.add(self._measured_as, time.monotonic() - began)
            EVENTS.failed_checks.add(self._measured_as)
            logger.warning("health check %s of replica %s failed: %s", failures, self.replica_id, reason)
            if failures >= UNHEALTHY_AFTER:
                return f"{failures} health checks in a row failed; the last: {reason}"

    async def _fail(self, what: str, reason: str) -> None:
        self.failed_to, self.reason = what, reason
        if self.life.may(Event.ENDED):
            await self._gather_log()
            await self._kill()
            self.life.move(Event.ENDED)
        self._on_change(self)

    async def _reconfigure(self, release: Release) -> None:
        try:
            await self._apply(release)
            self.release = release
        except RetinueError as error:
            if is_dead(error):
                return  # its watch tells
            self.failed_to, self.reason = "reconfigure", reason_of(error)
        if self.life.may(Event.READY):
            self.life.move(Event.READY)
        self._on_change(self)

    async def _apply(self, release: Release) -> None:
        await self._handle.reconfigure.remote(release.spec.config, self.rank, self.world_size)

    def _beside(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            try:
                await work
            except RetinueError as error:
                logger.warning("replica %s: %s", self.replica_id, reason_of(error))

        task = asyncio.create_task(run())
        self._side.add(task)
        task.add_done_callback(self._side.discard)

    async def _stop(self, unpublished: Callable[[], Awaitable[None]], *, is_graceful: bool) -> None:
        began = time.monotonic()
        if is_graceful:
            await unpublished()
            with contextlib.suppress(TimeoutError, RetinueError):
                async with asyncio.timeout(self.release.config.graceful_shutdown_timeout_s):
                    await self._handle.drain.remote()
        await self._kill()
        for task in tuple(self._side):
            task.cancel()
        EVENTS.ends.add(self._measured_as, time.monotonic() - began)
        self.life.move(Event.ENDED)
        self._on_change(self)

    async def _kill(self) -> None:
        """End its process and wait until that is gone, so that what it held is free."""
        handle = self._handle
        if handle is None:
            # The start was cancelled in mid-creation: the name may lead to it.
            with contextlib.suppress(ValueError):
                handle = await asyncio.to_thread(retinue.get_actor, self.actor_name, NAMESPACE)
        if handle is not None:
            death = asyncio.ensure_future(death_of(handle))
            await asyncio.to_thread(functools.partial(retinue.kill, handle))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FORCED_END_S):
                    await death

    async def _gather_log(self) -> None:
        if self.actor_id is not None:
            self.log_tail = await asyncio.to_thread(_tail, self.actor_id)


def _tail(actor_id: str) -> str:
    """The last that it printed, and the last that it logged: that is on stderr."""
    parts: list[str] = []
    try:
        for suffix in ("out", "err"):
            parts += state_api.get_log(
                actor_id=actor_id, tail=LOG_TAIL_LINES, suffix=suffix, errors="replace"
            )
    except (RetinueError, OSError, ValueError) as error:
        parts.append(f"(its log cannot be read: {error})")
    return "".join(parts)
