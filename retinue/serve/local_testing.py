"""Local testing mode: all deployments of an application in this process, one replica each, without a cluster.

User code runs as in replicas, on a loop in a thread of its own; arguments and results are pickled as they
would be, and `max_ongoing_requests` holds. There is no HTTP. Lives here: replicas and routers that are local.
Does not: running user code (`replica`), handles (`handle`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Self

from retinue.core.doors import Address, DoorContext
from retinue.serve.build import build
from retinue.serve.config import DeploymentConfig
from retinue.serve.deployment import Application
from retinue.serve.exceptions import BackPressureError, DeploymentUnavailableError
from retinue.serve.handle import DeploymentHandle
from retinue.serve.messages import DeploymentSpec
from retinue.serve.replica.door import ReplicaDoor
from retinue.serve.replica.slots import Slots
from retinue.serve.replica.threads import ThreadPool
from retinue.serve.replica.user_code import UserCode
from retinue.serve.routing.router import RequestMeta

_HERE = Address(worker_id=b"local", node_id=b"local", path="")


def run_locally(app: Application, name: str) -> DeploymentHandle[Any]:
    """Run the constructors, which raise here what they raise, and return a handle of the ingress.

    An application of the same name is ended first.
    """
    replicas = _local_replicas()
    spec = build(app, name=name, handle_factory=LocalHandle)
    replicas.wait(replicas.end(name))
    for deployment in spec.deployments:
        replicas.wait(replicas.add(name, deployment))
    return LocalHandle(spec.ingress, name)


def end_all() -> None:
    """End all local applications, and their thread."""
    global _replicas
    with _lock:
        replicas, _replicas = _replicas, None
    if replicas is not None:
        replicas.close()


class LocalHandle(DeploymentHandle[Any]):
    """A handle of a deployment in this process. Copies, pickled ones too, are good in this process only."""

    def _routers(self) -> Any:
        return _local_replicas()

    def running_replicas_populated(self) -> bool:
        return self._key() in _local_replicas().replicas


class LocalReplicas:
    """The replicas, and the loop of user code; what handles use instead of the process's routers."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.replicas: dict[tuple[str, str], LocalReplica] = {}
        self._thread = threading.Thread(target=self._run, name="retinue-local-serve", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()

    def wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def get(self, app_name: str, deployment_name: str) -> LocalReplica | _Absent:
        return self.replicas.get((app_name, deployment_name)) or _Absent(f"{app_name}#{deployment_name}")

    get_soon = get

    async def add(self, app_name: str, spec: DeploymentSpec) -> None:
        replica = LocalReplica(app_name, spec)
        await replica.start()
        self.replicas[app_name, spec.name] = replica

    async def end(self, app_name: str | None = None) -> None:
        for key in [key for key in self.replicas if app_name in (None, key[0])]:
            await self.replicas.pop(key).end()

    def close(self) -> None:
        self.wait(self.end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()


_lock = threading.Lock()
_replicas: LocalReplicas | None = None


def _local_replicas() -> LocalReplicas:
    global _replicas
    with _lock:
        if _replicas is None:
            _replicas = LocalReplicas()
        return _replicas


class _Absent:
    """In the place of a deployment that does not run here: its calls fail, as others do, when awaited."""

    def __init__(self, deployment_id: str) -> None:
        self._id = deployment_id

    async def call(self, method: str, body: bytes, meta: RequestMeta) -> Any:
        raise DeploymentUnavailableError(self._id, "it does not run in this process")

    stream = broadcast = call


class _Call:
    """What a door knows of a call."""

    def __init__(self, meta: RequestMeta) -> None:
        self.deadline = meta.deadline
        self.request_id = meta.request_id
        self.trace = meta.trace


class LocalReplica:
    """A deployment's only replica and router at once."""

    def __init__(self, app_name: str, spec: DeploymentSpec) -> None:
        self.config = DeploymentConfig.model_validate_json(spec.config)
        limit = self.config.max_ongoing_requests
        self._pool = ThreadPool(limit, f"local-{spec.name}")
        self._user = UserCode(spec, self._pool)
        self._door = ReplicaDoor(self._user, Slots(limit), app_name)
        self._room = asyncio.Semaphore(limit)
        self._waiting = 0

    async def start(self) -> None:
        await self._user.construct()
        reconfigure = self._user.hook("reconfigure")
        if self.config.user_config is not None and reconfigure is not None:
            await self._user.run(reconfigure, (self.config.user_config,))

    async def end(self) -> None:
        await self._user.end()
        await asyncio.to_thread(self._pool.close)

    # --- as routing.router.Router

    async def call(self, method: str, body: bytes, meta: RequestMeta) -> bytes:
        async with asyncio.timeout(_seconds_left(meta)):
            await self._take_room()
            try:
                answer = await self._door.call(method, body, _context(meta))
            finally:
                self._room.release()
        assert isinstance(answer, bytes)
        return answer

    async def stream(self, method: str, body: bytes, meta: RequestMeta) -> LocalStream:
        await self._take_room()
        try:
            items = await self._door.stream(method, body, _context(meta))
        except BaseException:
            self._room.release()
            raise
        return LocalStream(items, self._room)

    async def broadcast(self, method: str, body: bytes, meta: RequestMeta) -> list[bytes | BaseException]:
        try:
            return [await self.call(method, body, meta)]
        except Exception as error:  # noqa: BLE001 - user code: the caller gets it
            return [error]

    async def _take_room(self) -> None:
        limit = self.config.max_queued_requests
        if self._room.locked() and 0 <= limit <= self._waiting:
            raise BackPressureError(self._waiting, limit)
        self._waiting += 1
        try:
            await self._room.acquire()
        finally:
            self._waiting -= 1


def _seconds_left(meta: RequestMeta) -> float | None:
    return max(0.0, meta.deadline - time.monotonic()) if meta.deadline else None


def _context(meta: RequestMeta) -> DoorContext:
    return DoorContext(_Call(meta), _HERE)  # type: ignore[arg-type]


class LocalStream:
    """The items of a streamed answer, as routing's RoutedStream gives them."""

    def __init__(self, items: AsyncIterator[bytes], room: asyncio.Semaphore) -> None:
        self._items = items
        self._room: asyncio.Semaphore | None = room

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._items)
        except BaseException:
            await self.aclose()
            raise

    async def read(self) -> list[bytes]:
        """The next item in a list; an empty one at the end."""
        async for item in self:
            return [item]
        return []

    async def aclose(self) -> None:
        room, self._room = self._room, None
        if room is None:
            return
        try:
            async with aclosing(self._items):  # type: ignore[type-var]
                pass
        finally:
            room.release()
