"""Asks a user's request router where requests go.

Lives here: loading it, its view of the replicas, asking it again while there is no room. Does not: limits and
credits, which the scheduler keeps (`claim`).
"""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from retinue.core.doors import DoorTimeoutError
from retinue.serve.config import RequestRouterConfig
from retinue.serve.request_router import (
    FIFOMixin,
    PendingRequest,
    ReplicaResult,
    RequestMetadata,
    RequestRouter,
    RunningReplica,
)
from retinue.serve.routing.links import Link
from retinue.serve.routing.names import DeploymentID
from retinue.serve.routing.scheduler import Replica

if TYPE_CHECKING:
    from retinue.serve.routing.router import RequestMeta, Router


class Policy:
    """A deployment's user-written router, in this process."""

    def __init__(self, router: Router, config: str, node_id: str) -> None:
        self.config = config
        self.waiting = 0
        parsed = RequestRouterConfig.model_validate_json(config)
        self._deployment_id = DeploymentID(router.deployment_name, router.app_name)
        self._router = router
        self.request_router: RequestRouter = parsed.get_request_router_class()(
            deployment_id=self._deployment_id,
            self_node_id=node_id,
            initial_backoff_s=parsed.initial_backoff_s,
            backoff_multiplier=parsed.backoff_multiplier,
            max_backoff_s=parsed.max_backoff_s,
        )
        self.request_router.initialize_state(**parsed.request_router_kwargs)
        self._replicas: dict[str, RunningReplica] = {}
        self._turn: Any = asyncio.Lock() if isinstance(self.request_router, FIFOMixin) else nullcontext()
        self._wakers: set[asyncio.Future[None]] = set()

    def update(self) -> None:
        """Other replicas can be reached."""
        usable = {r.replica_id: r.link for r in self._router.scheduler.usable_replicas()}
        self._replicas = {
            replica_id: self._replicas.get(replica_id) or RunningReplica(link, self._deployment_id)
            for replica_id, link in usable.items()
        }
        self.request_router.update_replicas(list(self._replicas.values()))
        self.wake()

    def wake(self) -> None:
        """There may be room."""
        for waker in self._wakers:
            if not waker.done():
                waker.set_result(None)

    async def choose(self, meta: RequestMeta, no_replica_s: float) -> Replica:
        """A replica, taken. Raises DoorTimeoutError at the request's deadline, LookupError if there has been
        no replica at all for `no_replica_s`."""
        metadata = RequestMetadata(
            meta.request_id,
            meta.request_id,
            meta.method,
            meta.model_id,
            meta.session_id,
            self._router.app_name,
        )
        pending = PendingRequest(list(meta.args), dict(meta.kwargs), metadata)
        self.waiting += 1
        self._router.scheduler.outside += 1
        try:
            async with self._turn:
                return await self._choose(pending, meta, time.monotonic() + no_replica_s)
        finally:
            self.waiting -= 1
            self._router.scheduler.outside -= 1

    async def _choose(self, pending: PendingRequest, meta: RequestMeta, give_up: float) -> Replica:
        attempt = 0
        while True:
            now = time.monotonic()
            if 0.0 < meta.deadline <= now:
                raise DoorTimeoutError("no replica had room for the request before its deadline")
            self._router.scheduler.ask_again(now)
            if self._replicas:
                chosen = await self._ask(pending)
                if chosen is not None:
                    return chosen
            elif now >= give_up:
                raise LookupError
            pause_s = self.request_router.backoff_s(attempt)
            await self._pause(min(pause_s, meta.deadline - now) if meta.deadline else pause_s)
            attempt += 1

    async def _ask(self, pending: PendingRequest) -> Replica | None:
        candidates = list(self._replicas.values())
        for rank in await self.request_router.choose_replicas(candidates, pending):
            for running in sorted(rank, key=_ongoing):
                replica = running._link.replica
                if self._router.scheduler.claim(replica):
                    result = ReplicaResult(running.replica_id, pending.metadata.request_id)
                    try:
                        self.request_router.on_request_routed(pending, running.replica_id, result)
                    except BaseException:
                        self._router.over(replica.link, is_known=False)
                        raise
                    return replica
        return None

    async def _pause(self, seconds: float) -> None:
        """Until something has changed, at most so long."""
        loop = asyncio.get_running_loop()
        waker: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(max(0.0, seconds), _wake, waker)
        self._wakers.add(waker)
        try:
            await waker
        finally:
            timer.cancel()
            self._wakers.discard(waker)

    def completed(self, link: Link, request_id: str) -> None:
        running = self._replicas.get(link.info.replica_id)
        if running is not None:
            self.request_router.on_request_completed(running.replica_id, request_id)
        self.wake()


def _wake(waker: asyncio.Future[None]) -> None:
    if not waker.done():
        waker.set_result(None)


def _ongoing(running: RunningReplica) -> int:
    return running.num_ongoing_requests
