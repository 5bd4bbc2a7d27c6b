"""Routes the requests of one process to one deployment: the shell of `scheduler`.

Lives here: connections to the replicas, what becomes of a request whose replica refuses or is lost, the
timer while requests wait, what the controller is told. Does not: the choice (`scheduler`), values (`handle`).

Measured by `loadtests/routing.py` on a busy machine, us a call, one after the other / 64 at once:
    a door's call 31 / 8.8; through a router 31.4 / 9.3; through a handle 46 / 21
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Any

from retinue.core.doors import (
    DoorCancelledError,
    DoorClosedError,
    DoorRefusedError,
    DoorStream,
    DoorTimeoutError,
)
from retinue.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)
from retinue.serve.messages import (
    REFUSED_DRAINING,
    REPLICA_DOOR,
    DeploymentRouting,
    ReplicaInfo,
)
from retinue.serve.routing.asking import Asking, OnAnswer
from retinue.serve.routing.links import Link
from retinue.serve.routing.measures import Waits
from retinue.serve.routing.scheduler import Replica, ReplicaScheduler, Waiting
from retinue.serve.routing.streams import Replayed, RoutedStream

if TYPE_CHECKING:
    from retinue.serve.routing.policy import Policy
    from retinue.serve.routing.process import RouterSet

logger = logging.getLogger(__name__)

# Calls to every replica are not admitted: they pass the queue.
BROADCAST_SUFFIX = ":all"
TICK_S = 0.02  # while requests wait
# Requests wait so long at most for a deployment that has no replica at all.
NO_REPLICA_S = 30.0
# A request that may be repeated, and that its replicas did not survive, is given up after so many.
LOST_REPLICAS = 3


class _NoConnection:
    """Stands for the connection of a replica that was lost between the choice and the call."""

    loads: dict[str, int] = {}  # noqa: RUF012 - never written

    async def call(self, *args: object, **options: object) -> bytes:
        raise DoorClosedError("the connection to the replica was lost", is_retryable=True)

    async def ask(self, *args: object, **options: object) -> bytes:
        raise DoorClosedError("the connection to the replica was lost", is_retryable=True)

    def stream(self, *args: object, **options: object) -> DoorStream:
        raise DoorClosedError("the connection to the replica was lost", is_retryable=True)

    exchange = stream


_NO_CONNECTION = _NoConnection()


def _none_ready() -> str:
    return f"none of its replicas became ready within {NO_REPLICA_S:.0f} s"


_NO_KWARGS: dict[str, Any] = {}


class RequestMeta:
    """What a router must know of a request. `deadline` reads as `time.monotonic()`, 0 is none;
    `may_repeat`: it may be executed twice."""

    __slots__ = (
        "args",
        "deadline",
        "kwargs",
        "may_repeat",
        "method",
        "model_id",
        "request_id",
        "session_id",
        "trace",
        "waits_since",
    )

    def __init__(
        self,
        request_id: str = "",
        trace: str = "",
        deadline: float = 0.0,
        model_id: str = "",
        session_id: str = "",
        may_repeat: bool = False,
    ) -> None:
        self.request_id = request_id
        self.trace = trace
        self.deadline = deadline
        self.model_id = model_id
        self.session_id = session_id
        self.may_repeat = may_repeat
        self.waits_since = 0.0  # the router's: when it was first queued, or refused; 0: never yet
        # Of a handle's call, for users' routers.
        self.method = "__call__"
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = _NO_KWARGS


class Router:
    """One per process, application and deployment. All of it is for the routers' loop.

    `ask`, `call`, `stream` and `exchange` raise BackPressureError, DeploymentUnavailableError,
    ReplicaUnavailableError (the replica died in mid-request; not repeated), TimeoutError (the deadline), and
    what the user's code raised.
    """

    def __init__(self, routers: RouterSet, app_name: str, deployment_name: str) -> None:
        self.app_name = app_name
        self.deployment_name = deployment_name
        self.routing: DeploymentRouting | None = None  # None: nothing is known yet
        self.scheduler = ReplicaScheduler(
            random.random, max_queued=DeploymentRouting("", "").max_queued_requests
        )
        self._routers = routers
        self._loop = routers.loop
        self._links: dict[str, Link] = {}
        self._ticker: asyncio.TimerHandle | None = None
        self._is_reported = False  # the controller is being told
        self._policy: Policy | None = None  # the user's own choice
        self.waits = Waits()

    # --- requests

    async def call(self, method: str, body: bytes, meta: RequestMeta) -> bytes:
        """One answer to one request."""
        replica = self._take(meta)
        turn = self.scheduler.turn
        lost = 0
        while True:
            if replica is None:
                replica = await self._wait(turn, meta)
            link: Link = replica.link
            connection = link.connection or _NO_CONNECTION
            try:
                reply = await connection.call(
                    REPLICA_DOOR,
                    method,
                    body,
                    deadline=meta.deadline,
                    request_id=meta.request_id,
                    trace=meta.trace,
                )
            except BaseException as error:  # noqa: BLE001 - raised again, or the request is repeated
                lost = self.failed(link, error, meta, lost)
                replica = None
            else:
                self.answered(link, meta)
                return reply

    async def ask(self, method: str, body: bytes, meta: RequestMeta) -> bytes | RoutedStream:
        """As `call`; where the replica answers with items, a stream of them."""
        replica = self._take(meta)
        return await self.ask_from(replica, self.scheduler.turn, 0, method, body, meta)

    def ask_soon(self, method: str, body: bytes, meta: RequestMeta, then: OnAnswer) -> Asking:
        """As `ask`, for those who have no task: `then(answer, error)` is called once, unless it is cancelled.

        It must not raise. It may be called before this returns.
        """
        asking = Asking(self, method, body, meta, then)
        replica = self._take(meta)
        asking.begin(replica, self.scheduler.turn)
        return asking

    async def ask_from(
        self, replica: Replica | None, turn: int, lost: int, method: str, body: bytes, meta: RequestMeta
    ) -> bytes | RoutedStream:
        """The rest of `ask`: with a replica that was taken, or in the queue at its `turn`."""
        while True:
            if replica is None:
                replica = await self._wait(turn, meta)
            link: Link = replica.link
            connection = link.connection or _NO_CONNECTION
            try:
                answer = await connection.ask(
                    REPLICA_DOOR,
                    method,
                    body,
                    deadline=meta.deadline,
                    request_id=meta.request_id,
                    trace=meta.trace,
                )
            except BaseException as error:  # noqa: BLE001 - raised again, or the request is repeated
                lost = self.failed(link, error, meta, lost)
                replica = None
            else:
                if type(answer) is not bytes:
                    return RoutedStream(self, link, answer, [], meta.request_id)  # type: ignore[arg-type]
                self.answered(link, meta)
                return answer

    def answered(self, link: Link, meta: RequestMeta) -> None:
        """A request there has its answer."""
        scheduler = self.scheduler
        scheduler.done(link.replica, link.load)
        if scheduler.queued:
            self._assign()
        if self._policy is not None:
            self._policy.completed(link, meta.request_id)

    async def stream(self, method: str, body: bytes, meta: RequestMeta) -> RoutedStream:
        """A streamed answer; returns once its first item, or its end, has come."""

        def begin(link: Link) -> DoorStream:
            return (link.connection or _NO_CONNECTION).stream(
                REPLICA_DOOR,
                method,
                body,
                deadline=meta.deadline,
                request_id=meta.request_id,
                trace=meta.trace,
            )

        return await self._stream(begin, meta)

    async def exchange(
        self, method: str, first: bytes, rest: AsyncIterable[bytes], meta: RequestMeta
    ) -> RoutedStream:
        """Items both ways; returns once the first item of the answer, or its end, has come."""
        replayed = Replayed(first, rest)

        def begin(link: Link) -> DoorStream:
            return (link.connection or _NO_CONNECTION).exchange(
                REPLICA_DOOR,
                method,
                replayed.items(),
                deadline=meta.deadline,
                request_id=meta.request_id,
                trace=meta.trace,
            )

        try:
            return await self._stream(begin, meta)
        except BaseException:
            replayed.close()
            raise
        finally:
            replayed.accepted()

    async def _stream(self, begin: Any, meta: RequestMeta) -> RoutedStream:
        replica = self._take(meta)
        turn = self.scheduler.turn
        lost = 0
        while True:
            if replica is None:
                replica = await self._wait(turn, meta)
            link: Link = replica.link
            try:
                stream = begin(link)
                first = await stream.read()
            except BaseException as error:  # noqa: BLE001 - raised again, or the request is repeated
                lost = self.failed(link, error, meta, lost)
                replica = None
            else:
                return RoutedStream(self, link, stream, first, meta.request_id)

    async def reserve(self, meta: RequestMeta) -> Link:
        """Choose a replica as for a request, and count one more there until `over`."""
        replica = self._take(meta)
        turn = self.scheduler.turn
        if replica is None:
            replica = await self._wait(turn, meta)
        link: Link = replica.link
        return link

    async def call_at(self, link: Link, method: str, body: bytes, meta: RequestMeta) -> bytes:
        """Call the replica that was reserved, and no other. If others were quicker, it is asked again."""
        while True:
            try:
                return await self._call_one(link, method, body, meta)
            except DoorRefusedError as refusal:
                if refusal.reason == REFUSED_DRAINING:
                    raise ReplicaUnavailableError(link.info.replica_id, "it is stopping") from None
                await asyncio.sleep(TICK_S)

    async def stream_at(self, link: Link, method: str, body: bytes, meta: RequestMeta) -> RoutedStream:
        """As `call_at`, for a streamed answer; the reservation is over when that has ended."""
        while True:
            stream = (link.connection or _NO_CONNECTION).stream(
                REPLICA_DOOR,
                method,
                body,
                deadline=meta.deadline,
                request_id=meta.request_id,
                trace=meta.trace,
            )
            try:
                return RoutedStream(self, link, stream, await stream.read(), meta.request_id)
            except DoorClosedError as error:
                raise ReplicaUnavailableError(link.info.replica_id, str(error)) from None
            except DoorRefusedError as refusal:
                if refusal.reason == REFUSED_DRAINING:
                    raise ReplicaUnavailableError(link.info.replica_id, "it is stopping") from None
                await asyncio.sleep(TICK_S)

    async def broadcast(self, method: str, body: bytes, meta: RequestMeta) -> list[bytes | BaseException]:
        """Ask every replica, past the queue; what each answers or raises. Waits for a first one."""
        if not self.scheduler.usable_replicas():
            self.over((await self._wait(self.scheduler.turn, meta)).link, is_known=False)
        for link in self.links:  # a router that is new has connections to some of them first
            await link.was_tried.wait()
        links: list[Link] = [replica.link for replica in self.scheduler.usable_replicas()]
        return list(
            await asyncio.gather(
                *(self._call_one(link, method + BROADCAST_SUFFIX, body, meta) for link in links),
                return_exceptions=True,
            )
        )

    async def _call_one(self, link: Link, method: str, body: bytes, meta: RequestMeta) -> bytes:
        try:
            return await (link.connection or _NO_CONNECTION).call(
                REPLICA_DOOR,
                method,
                body,
                deadline=meta.deadline,
                request_id=meta.request_id,
                trace=meta.trace,
            )
        except DoorClosedError as error:
            raise ReplicaUnavailableError(link.info.replica_id, str(error)) from None

    def _take(self, meta: RequestMeta) -> Replica | None:
        if not self._is_reported:
            self._is_reported = True
            self._routers.report_soon()
        if self._policy is not None:
            return None
        if meta.model_id or meta.session_id:
            return self.scheduler.take_for(meta.model_id, meta.session_id)
        return self.scheduler.take()

    async def _wait(self, turn: int, meta: RequestMeta) -> Replica:
        """Queue up."""
        self._raise_if_unavailable()
        now = time.monotonic()
        if 0.0 < meta.deadline <= now:
            self._assign()
            raise DoorTimeoutError("the request's deadline passed before a replica had room for it")
        if self._policy is not None:
            return await self._wait_for_policy(self._policy, meta, now)
        token: asyncio.Future[Replica | None] = self._loop.create_future()  # None: ask the policy instead
        scheduler = self.scheduler
        since = meta.waits_since = meta.waits_since or now
        waiting = scheduler.wait(
            turn,
            now,
            token,
            since,
            deadline=meta.deadline,
            model_id=meta.model_id,
            session_id=meta.session_id,
        )
        if waiting is None:
            raise self._overload(now)
        if scheduler.queued == 1:
            self._routers.report_now(self)
        self._assign()
        if self._ticker is None and scheduler.queued:
            self._tick_soon()
        try:
            replica = await token
        except asyncio.CancelledError:
            if token.done() and not token.cancelled() and token.exception() is None:
                if (given := token.result()) is not None:
                    self.over(given.link, is_known=False)
            else:
                scheduler.cancel(waiting)
                self._tell_leaving()
            raise
        self.waits.times.add((), time.monotonic() - now)
        return await self._wait(turn, meta) if replica is None else replica

    async def _wait_for_policy(self, policy: Policy, meta: RequestMeta, now: float) -> Replica:
        limit = self.scheduler.max_queued
        if 0 <= limit <= policy.waiting:
            raise self._overload(now)
        self.waits.by_policy += 1
        if not policy.waiting:
            self._loop.call_soon(self._routers.report_now, self)
        try:
            return await policy.choose(meta, NO_REPLICA_S)
        except LookupError:
            raise self._unavailable(_none_ready()) from None

    @property
    def queued(self) -> int:
        """Requests that wait for a replica."""
        return self.scheduler.queued + self.scheduler.outside

    def _overload(self, now: float) -> BackPressureError:
        routing = self.routing or DeploymentRouting(self.app_name, self.deployment_name)
        scheduler = self.scheduler
        retry_after_s = routing.backpressure_retry_after_s
        if retry_after_s is None:
            retry_after_s = scheduler.retry_after_s(now)
        self._tell_leaving()
        self.waits.refused += 1
        return BackPressureError(
            self.queued, scheduler.max_queued, routing.backpressure_status, retry_after_s
        )

    def failed(self, link: Link, error: BaseException, meta: RequestMeta, lost: int) -> int:
        """Raise, or return how many replicas this request has lost: it goes to another one.

        It does exactly if nothing was executed, or if it may be executed twice.
        """
        replica = link.replica
        if self._policy is not None:
            self._policy.completed(link, meta.request_id)
        if isinstance(error, DoorRefusedError):
            if error.reason == REFUSED_DRAINING:
                self.over(link)
                self.drains(link)
            else:
                self.scheduler.refused(replica, time.monotonic(), link.load)
            return lost
        if isinstance(error, DoorClosedError):
            self.over(link, is_known=False)
            if link.connection is None or link.connection.is_closed or error.is_retryable:
                self.lost(link)
            if error.is_retryable:
                return lost
            if meta.may_repeat and lost + 1 < LOST_REPLICAS:
                return lost + 1
            raise ReplicaUnavailableError(link.info.replica_id, str(error)) from None
        self.over(link, is_known=not isinstance(error, asyncio.CancelledError | DoorTimeoutError))
        if isinstance(error, DoorCancelledError):
            raise RequestCancelledError(meta.request_id) from None
        raise error

    # --- events

    def stream_over(self, link: Link, request_id: str) -> None:
        """A streamed answer has ended."""
        self.over(link)
        if self._policy is not None:
            self._policy.completed(link, request_id)

    def over(self, link: Link, *, is_known: bool = True) -> None:
        """A request there has ended. `is_known`: the replica has just told its load."""
        self.scheduler.done(link.replica, link.load if is_known else -1)
        if link.replica.sent == 0 and link.replica.replica_id not in self._links:
            link.close()
        if self.scheduler.queued:
            self._assign()

    def dropped(self, link: Link) -> None:
        """As `over`, from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.over, link)

    def usable(self, link: Link) -> None:
        self.scheduler.usable(link.replica)
        self._replicas_changed()
        if self.scheduler.queued:
            self._assign()

    def lost(self, link: Link) -> None:
        self.scheduler.unusable(link.replica)
        self._replicas_changed()

    def drains(self, link: Link) -> None:
        self.lost(link)

    def _replicas_changed(self) -> None:
        if self._policy is not None:
            self._policy.update()

    def noticed(self, link: Link) -> None:
        self.scheduler.noticed(link.replica, time.monotonic())
        self._assign()
        if self._policy is not None:
            self._policy.wake()

    def models(self, link: Link, models: list[str], loading: list[str]) -> None:
        self.scheduler.models(link.replica, models, loading)
        if self.scheduler.queued:
            self._assign()

    def _assign(self) -> None:
        """Send on what can go."""
        scheduler = self.scheduler
        now = time.monotonic()
        for waiting, replica in scheduler.assign(now):
            if waiting.token.done():  # cancelled in this very turn
                self.over(replica.link, is_known=False)
            else:
                waiting.token.set_result(replica)
        if scheduler.leaving:
            self._tell_leaving()
        if scheduler.telling:
            telling, scheduler.telling = scheduler.telling, []
            for replica in telling:
                replica.link.tell_wait(now - replica.told)

    def _tell_leaving(self) -> None:
        leaving, self.scheduler.leaving = self.scheduler.leaving, []
        for replica in leaving:
            replica.link.leave()

    # --- while requests wait

    def _tick_soon(self) -> None:
        limit = self.scheduler.max_queue_wait_s
        self._ticker = self._loop.call_later(TICK_S if limit is None else min(TICK_S, limit / 5), self._tick)

    def _tick(self) -> None:
        self._ticker = None
        scheduler = self.scheduler
        now = time.monotonic()
        for waiting in scheduler.tick(now):
            self._fail(waiting, now)
        if not scheduler.replicas:
            for waiting in scheduler.waiting_longer_than(NO_REPLICA_S, now):
                self._fail(waiting, now)
        self._assign()
        if scheduler.queued:
            self._tick_soon()

    def _fail(self, waiting: Waiting, now: float) -> None:
        token: asyncio.Future[Replica | None] = waiting.token
        if token.done():
            return
        if 0.0 < waiting.deadline <= now:
            error: Exception = DoorTimeoutError("no replica had room for the request before its deadline")
        elif not self.scheduler.replicas:
            error = self._unavailable(_none_ready())
        else:
            error = self._overload(now)
        token.set_exception(error)

    # --- what the controller publishes

    def update(self, routing: DeploymentRouting) -> None:
        """The deployment as it is now."""
        self.routing = routing
        scheduler = self.scheduler
        self._update_policy(routing.router)
        scheduler.max_queued = routing.max_queued_requests
        scheduler.max_queue_wait_s = routing.max_queue_wait_s
        known = {info.replica_id: info for info in routing.replicas}
        for replica_id in [i for i in self._links if i not in known]:
            self._remove(replica_id)
        for info in routing.replicas:
            link = self._links.get(info.replica_id)
            if link is None:
                self._add(info)
            else:
                link.info = info
                scheduler.resize(link.replica, info.max_ongoing_requests)
        if not known and (routing.is_deleted or routing.problem):
            for waiting in scheduler.waiting_longer_than(-1.0, 0.0):
                if not waiting.token.done():
                    waiting.token.set_exception(self._unavailable(self._problem()))
        self._assign()

    def _update_policy(self, config: str) -> None:
        if config == (self._policy.config if self._policy is not None else ""):
            return
        self._policy = None
        if config:
            # Here, for it brings pydantic, which most processes with a handle do not need (90 ms).
            from retinue.serve.routing.policy import Policy

            try:
                self._policy = Policy(self, config, self._routers.node_id)
            except Exception:
                # Users' code: without it requests are routed all the same.
                logger.exception("the request router of %s#%s fails", self.app_name, self.deployment_name)
            else:
                self._policy.update()
                for waiting in self.scheduler.waiting_longer_than(-1.0, 0.0):
                    if not waiting.token.done():
                        waiting.token.set_result(None)

    def _add(self, info: ReplicaInfo) -> None:
        is_near = info.node_id == self._routers.node_id
        replica = self.scheduler.add(info.replica_id, info.max_ongoing_requests, is_near=is_near)
        link = replica.link = self._links[info.replica_id] = Link(self, info, replica)
        link.start()

    def _remove(self, replica_id: str) -> None:
        link = self._links.pop(replica_id)
        self.scheduler.remove(replica_id)
        self._replicas_changed()
        link.close_when_idle()

    def _problem(self) -> str:
        routing = self.routing
        if routing is None:
            return ""
        return "it was deleted" if routing.is_deleted else routing.problem

    def _unavailable(self, reason: str) -> DeploymentUnavailableError:
        return DeploymentUnavailableError(f"{self.app_name}#{self.deployment_name}", reason)

    def _raise_if_unavailable(self) -> None:
        problem = self._problem()
        if problem and not self._links:
            self._assign()
            raise self._unavailable(problem)

    # --- for the process's routers

    @property
    def links(self) -> list[Link]:
        return list(self._links.values())

    def reported(self, *, is_idle: bool) -> None:
        """The controller knows; nothing more is told of an idle router until it gets a request."""
        if is_idle:
            self._is_reported = False

    def close(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        for link in self._links.values():
            link.close()
        for waiting in self.scheduler.waiting_longer_than(-1.0, 0.0):
            if not waiting.token.done():
                waiting.token.set_exception(self._unavailable("this process leaves the cluster"))
