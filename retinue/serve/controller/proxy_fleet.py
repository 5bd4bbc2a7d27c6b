"""The proxies: an actor for each slot that shall have one, started, watched, replaced and drained.

Lives here: the actors. Does not: which slots there are (`proxies`), serving (`retinue.serve.proxy`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any

import msgspec

import retinue
from retinue.exceptions import RetinueError
from retinue.serve.config import HTTPOptions, gRPCOptions
from retinue.serve.controller.cluster_view import ClusterView, pinned_to
from retinue.serve.controller.proxies import (
    NodeView,
    ProxyHealth,
    Slot,
    plan_fleet,
    status_by_node,
    wanted_slots,
)
from retinue.serve.controller.watching import death_of, is_dead, reason_of
from retinue.serve.messages import NAMESPACE, PROXY_NAME_PREFIX
from retinue.serve.proxy_options import ProxyLocation
from retinue.serve.status_schema import ProxyStatus

logger = logging.getLogger(__name__)

HEALTH_PERIOD_S = 10.0
HEALTH_TIMEOUT_S = 10.0
DRAIN_TIMEOUT_S = 60.0
RETRY_S = 1.0


class Proxy:
    """One slot's proxy. The runtime starts its process again when it dies; it is told to serve again then."""

    def __init__(
        self,
        slot: Slot,
        actor_class: Any,
        arguments: tuple[str, str, str],
        changed: Callable[[], None],
    ):
        self.slot = slot
        self.health = ProxyHealth()
        self.started: Any = None
        self.actor_id: str | None = None
        self._actor_class = actor_class
        self._arguments = arguments
        self._log_options = arguments[2]
        self._changed = changed
        self._handle: Any = None
        self._logging: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def actor_name(self) -> str:
        return f"{PROXY_NAME_PREFIX}{self.slot.node_id}-{self.slot.index}"

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"proxy {self.slot}")

    async def _run(self) -> None:
        while True:
            try:
                await self._serve()
            except (RetinueError, ValueError, OSError) as error:
                self.health.died(reason_of(error))
                logger.warning("proxy %s: %s", self.actor_name, self.health.message)
                self._changed()
                if is_dead(error):
                    self._handle = None
                await asyncio.sleep(RETRY_S)

    async def _serve(self) -> None:
        """Have it serve, until it dies or does not answer any more."""
        if self._handle is None:
            self._handle = await asyncio.to_thread(self._create)
            self.actor_id = self._handle._actor_id.hex()
        self.started = await self._handle.ready.remote()
        if self._log_options != self._arguments[2]:  # what its constructor had
            self._follow_logging()
        self.health.is_ready()
        self._changed()
        death = asyncio.ensure_future(death_of(self._handle))
        checks = asyncio.ensure_future(self._check())
        try:
            await asyncio.wait((death, checks), return_when=asyncio.FIRST_COMPLETED)
        finally:
            death.cancel()
            checks.cancel()
        if death.done() and not death.cancelled():
            self.health.died(death.result())
            logger.warning("proxy %s died: %s", self.actor_name, self.health.message)
            self._changed()

    async def _check(self) -> None:
        while self.health.status is not ProxyStatus.UNHEALTHY:
            await asyncio.sleep(HEALTH_PERIOD_S)
            try:
                async with asyncio.timeout(HEALTH_TIMEOUT_S):
                    await self._handle.check_health.remote()
            except (RetinueError, TimeoutError) as error:
                self.health.missed(reason_of(error))
            else:
                self.health.answered()
        self._changed()
        await asyncio.Event().wait()  # the fleet replaces it

    def _create(self) -> Any:
        return self._actor_class.options(
            name=self.actor_name,
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            resources=pinned_to(self.slot.node_id),
            get_if_exists=True,
        ).remote(self.slot.node_id, self.slot.index, *self._arguments)

    def use_logging(self, options: str) -> None:
        """Have it log by these options (JSON of LoggingConfig)."""
        if options != self._log_options:
            self._log_options = options
            if self.started is not None:
                self._follow_logging()

    def _follow_logging(self) -> None:
        async def follow() -> None:
            try:
                log_file = await self._handle.configure_logs.remote(self._log_options)
            except RetinueError as error:
                logger.warning("proxy %s: %s", self.actor_name, reason_of(error))
            else:
                self.started = msgspec.structs.replace(self.started, log_file=log_file)

        self._logging = asyncio.create_task(follow())

    def restart(self) -> None:
        """End its process; the runtime starts another."""
        self.health.died(self.health.message)
        retinue.kill(self._handle, no_restart=False)

    async def end(self, *, is_graceful: bool) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        if self._handle is None:
            return
        if is_graceful:
            self.health.drains()
            self._changed()
            with contextlib.suppress(TimeoutError, RetinueError):
                async with asyncio.timeout(DRAIN_TIMEOUT_S):
                    await self._handle.drain.remote()
        death = asyncio.ensure_future(death_of(self._handle))
        await asyncio.to_thread(functools.partial(retinue.kill, self._handle))
        await death

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))


class ProxyFleet:
    """All proxies. `reconcile` does one round, and never waits."""

    def __init__(
        self, actor_class: Callable[[], Any], cluster: ClusterView, changed: Callable[[], None]
    ) -> None:
        self._actor_class = actor_class
        self._cluster = cluster
        self._changed = changed
        self._ending: set[asyncio.Task[None]] = set()
        self.proxies: dict[Slot, Proxy] = {}
        self.location = ProxyLocation.Disabled
        self.http_options = HTTPOptions()
        self.grpc_options = gRPCOptions()
        self.logging = ""

    def use(
        self,
        location: ProxyLocation,
        http_options: HTTPOptions,
        grpc_options: gRPCOptions,
        logging: str = "",
    ) -> None:
        """Options for proxies that start; those of logging (JSON) also for those that run."""
        self.location, self.http_options, self.grpc_options = location, http_options, grpc_options
        self.logging = logging
        for proxy in self.proxies.values():
            proxy.use_logging(logging)

    def reconcile(self, nodes_with_replicas: set[str]) -> None:
        cluster = self._cluster
        views = [
            NodeView(n.node_id, n.is_head, n.node_id in cluster.draining, n.node_id in nodes_with_replicas)
            for n in cluster.nodes.values()
        ]
        wanted = wanted_slots(self.location, views, self.http_options.num_processes)
        todo = plan_fleet(wanted, self.statuses(), cluster.nodes)
        for slot in todo.start:
            self._start(slot)
        for slot in todo.replace:
            self.proxies[slot].restart()
        for slot in todo.drain:
            self._end(slot, is_graceful=True)
        for slot in todo.forget:
            self._end(slot, is_graceful=False)

    def statuses(self) -> dict[Slot, ProxyStatus]:
        return {slot: proxy.health.status for slot, proxy in self.proxies.items()}

    def by_node(self) -> dict[str, ProxyStatus]:
        return status_by_node(self.statuses())

    def _start(self, slot: Slot) -> None:
        arguments = (
            self.http_options.model_dump_json(),
            self.grpc_options.model_dump_json(),
            self.logging,
        )
        proxy = self.proxies[slot] = Proxy(slot, self._actor_class(), arguments, self._changed)
        proxy.start()

    def _end(self, slot: Slot, *, is_graceful: bool) -> None:
        async def end() -> None:
            await self.proxies[slot].end(is_graceful=is_graceful)
            del self.proxies[slot]
            self._changed()

        self.proxies[slot].health.drains()
        task = asyncio.create_task(end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def end_all(self) -> None:
        """Drain and end every proxy; returns when all are gone."""
        self.location = ProxyLocation.Disabled
        self.reconcile(set())
        while self._ending:
            await asyncio.wait(tuple(self._ending))

    async def close(self) -> None:
        for proxy in self.proxies.values():
            await proxy.close()
