"""The routers of this process, and the loop that they live on.

Replicas and proxies say `use_this_loop()` when they start: their routers share the loop of their requests.
Everywhere else (drivers, tasks, other actors) a thread of its own has a loop for them, begun by the first
handle that is used.

Lives here: that, what is watched of the key-value table (routes, routing, the controller's address), and the
controller's news of queues. Does not: routing (`router`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import uvloop

import retinue
from retinue.core import doors
from retinue.core.doors import AsyncKeyValue, DoorConnection, DoorError
from retinue.serve.context import find_replica_context
from retinue.serve.measures import add_source, remove_source
from retinue.serve.messages import (
    CONTROLLER_DOOR,
    CONTROLLER_KEY,
    NAMESPACE,
    ROUTES_KEY,
    ControllerInfo,
    DeploymentRouting,
    RouterStats,
    RouteTable,
    decode,
    encode,
    routing_key,
)
from retinue.serve.routing.measures import samples
from retinue.serve.routing.router import Router
from retinue.util.metrics import Sample

logger = logging.getLogger(__name__)

REPORT_S = 0.1
# What has not changed is told again so often.
UNCHANGED_REPORTS = 5


class RouterSet:
    """The routers of a process, all on one loop. `get` and `routes` are for that loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        # The hex of the doors' node id, as ReplicaInfo has it.
        self.node_id = retinue.get_runtime_context().get_node_id()
        self.router_id = os.urandom(8).hex()
        self.source = ""  # for the controller: "proxy", or a replica's id
        self.routes: RouteTable | None = None
        self.is_over = False
        self._routers: dict[tuple[str, str], Router] = {}
        self._on_routes: list[Callable[[RouteTable], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._reporter = _Reporter(self)
        add_source(self._samples)

    def get(self, app_name: str, deployment_name: str) -> Router:
        """The router of a deployment; its connections are made in the background."""
        router = self._routers.get((app_name, deployment_name))
        if router is None:
            router = self._routers[app_name, deployment_name] = Router(self, app_name, deployment_name)
            self._spawn(self._watch_routing(router))
        return router

    def get_soon(self, app_name: str, deployment_name: str) -> Router:
        """As `get`, for threads: waits for the loop."""
        router = self._routers.get((app_name, deployment_name))
        if router is not None or asyncio._get_running_loop() is self.loop:
            return router or self.get(app_name, deployment_name)

        async def get() -> Router:
            return self.get(app_name, deployment_name)

        return asyncio.run_coroutine_threadsafe(get(), self.loop).result()

    def on_routes(self, callback: Callable[[RouteTable], None]) -> None:
        """Call it with the table of routes, once there is one and whenever it changes."""
        self._on_routes.append(callback)
        if len(self._on_routes) == 1:
            self._spawn(self._watch_routes())
        elif self.routes is not None:
            callback(self.routes)

    @property
    def routers(self) -> list[Router]:
        return list(self._routers.values())

    # --- what is watched

    async def _watch_routing(self, router: Router) -> None:
        key = routing_key(router.app_name, router.deployment_name)
        async with AsyncKeyValue(NAMESPACE).watch(key) as watch:
            async for event in watch:
                if event.key != key:
                    continue  # of a deployment whose name begins as ours
                if event.value is not None:
                    routing = decode(DeploymentRouting, event.value)
                else:
                    routing = DeploymentRouting(router.app_name, router.deployment_name, is_deleted=True)
                router.update(routing)
        self.close()  # the process has left the cluster

    async def _watch_routes(self) -> None:
        async with AsyncKeyValue(NAMESPACE).watch(ROUTES_KEY) as watch:
            async for event in watch:
                if event.key == ROUTES_KEY and event.value is not None:
                    self.routes = decode(RouteTable, event.value)
                    for callback in self._on_routes:
                        callback(self.routes)
        self.close()

    def _spawn(self, coroutine: Any) -> None:
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of the routers failed: %r", error, exc_info=error)

    @property
    def told_source(self) -> str:
        """Who this is: "proxy", a replica's id, "driver"."""
        context = find_replica_context()
        return self.source or (context.replica_id if context is not None else "driver")

    def _samples(self) -> list[Sample]:
        source = self.told_source
        return [sample for router in self.routers for sample in samples(router, source)]

    # --- what the controller is told

    def report_soon(self) -> None:
        """A router that was idle has a request."""
        self._reporter.begin()

    def report_now(self, router: Router) -> None:
        """Requests begin to wait: the controller may have to start replicas."""
        self._reporter.tell(router)

    def close(self) -> None:
        """End all connections; requests that wait fail."""
        if self.is_over:
            return
        self.is_over = True
        remove_source(self._samples)
        self._reporter.close()
        for router in self._routers.values():
            router.close()
        for task in list(self._tasks):
            task.cancel()


class _Reporter:
    """Tells the controller how many requests wait and run, as long as there are any."""

    def __init__(self, routers: RouterSet) -> None:
        self._routers = routers
        self._connection: DoorConnection | None = None
        self._controller: asyncio.Task[None] | None = None  # follows its address
        self._timer: asyncio.TimerHandle | None = None
        self._told: dict[Router, tuple[int, int, int]] = {}  # queued, ongoing, since how many reports
        self._calls: set[asyncio.Task[None]] = set()

    def begin(self) -> None:
        if self._controller is None:
            self._controller = self._routers.loop.create_task(self._follow_controller())
        if self._timer is None and not self._routers.is_over:
            self._timer = self._routers.loop.call_later(REPORT_S, self._report)

    def _report(self) -> None:
        self._timer = None
        is_busy = False
        for router in self._routers.routers:
            queued, ongoing = router.queued, router.scheduler.ongoing
            was = self._told.get(router)
            if not (queued or ongoing):
                if was is not None and self._send(router, 0, 0):
                    del self._told[router]
                router.reported(is_idle=True)
                continue
            is_busy = True
            if was is None or was[:2] != (queued, ongoing) or was[2] >= UNCHANGED_REPORTS:
                self.tell(router)
            else:
                self._told[router] = (queued, ongoing, was[2] + 1)
        if is_busy:
            self.begin()

    def tell(self, router: Router) -> None:
        queued, ongoing = router.queued, router.scheduler.ongoing
        self.begin()
        if self._send(router, queued, ongoing):
            self._told[router] = (queued, ongoing, 1)

    def _send(self, router: Router, queued: int, ongoing: int) -> bool:
        connection = self._connection
        if connection is None or connection.is_closed:
            return False
        routers = self._routers
        stats = RouterStats(
            routers.router_id,
            router.app_name,
            router.deployment_name,
            queued,
            ongoing,
            routers.node_id,
            routers.told_source,
        )
        task = routers.loop.create_task(self._call(connection, encode(stats)))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return True

    async def _call(self, connection: DoorConnection, body: bytes) -> None:
        try:
            await connection.call(CONTROLLER_DOOR, "router_stats", body)
        except DoorError as error:
            logger.debug("the controller was not told of queues: %s", error)  # the next report is due soon

    async def _follow_controller(self) -> None:
        async with AsyncKeyValue(NAMESPACE).watch(CONTROLLER_KEY) as watch:
            async for event in watch:
                if event.key != CONTROLLER_KEY or event.value is None:
                    continue
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
                try:
                    self._connection = await doors.connect(decode(ControllerInfo, event.value).address)
                except (OSError, DoorError) as error:
                    # It publishes itself again once it is back.
                    logger.debug("the controller cannot be reached: %s", error)
                    continue
                self._told.clear()  # this one knows nothing yet
                for router in self._routers.routers:
                    if router.queued:
                        self.tell(router)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._controller is not None:
            self._controller.cancel()
        if self._connection is not None:
            self._connection.close()


# --- this process's

_lock = threading.Lock()
_routers: RouterSet | None = None
_thread: threading.Thread | None = None


def use_this_loop(source: str = "") -> RouterSet:
    """Have the process's routers on the running loop, from now on: for replicas and proxies, when they start.

    `source` says who this is when the controller is told of queues.
    """
    global _routers
    loop = asyncio.get_running_loop()
    with _lock:
        if _routers is not None and not _routers.is_over:
            if _routers.loop is loop:
                return _routers
            _routers.loop.call_soon_threadsafe(_routers.close)
        _routers = RouterSet(loop)
        _routers.source = source
        return _routers


def routers() -> RouterSet:
    """The routers of this process; a thread with a loop for them is started if there are none yet."""
    found = _routers
    if found is not None and not found.is_over and not found.loop.is_closed():
        return found
    return _start_thread()


def _start_thread() -> RouterSet:
    global _routers, _thread
    with _lock:
        if _routers is not None and not _routers.is_over and not _routers.loop.is_closed():
            return _routers
        loop = uvloop.new_event_loop()
        _routers = RouterSet(loop)
        _thread = threading.Thread(target=_run, args=(loop, _routers), name="retinue-routers", daemon=True)
        _thread.start()
        return _routers


def _run(loop: asyncio.AbstractEventLoop, routers: RouterSet) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(_until_over(loop, routers))
    finally:
        loop.close()


async def _until_over(loop: asyncio.AbstractEventLoop, routers: RouterSet) -> None:
    """Serve until the process leaves the cluster, which the end of a watch tells."""
    async with AsyncKeyValue(NAMESPACE).watch(CONTROLLER_KEY) as watch:
        async for _ in watch:
            pass
    routers.close()
    others = [task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=1.0)
    await loop.shutdown_default_executor()
