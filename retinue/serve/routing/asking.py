"""A request without a task of its own: the shortest way, for proxies.

While a replica has room, and answers, a request costs two function calls here: one that sends it, one with
its answer. A task is made only for one that has to wait, or to be sent again.

Lives here: that. Does not: what waiting and sending again mean (`router`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from retinue.core.doors import DoorStream
from retinue.serve.messages import REPLICA_DOOR
from retinue.serve.routing.streams import RoutedStream

if TYPE_CHECKING:
    from retinue.core.doors import Then
    from retinue.serve.routing.links import Link
    from retinue.serve.routing.router import RequestMeta, Router
    from retinue.serve.routing.scheduler import Replica

OnAnswer = Callable[[bytes | RoutedStream | None, BaseException | None], None]


class Asking:
    """A request under way. `then(answer, error)` is called once, unless it is cancelled before."""

    __slots__ = ("_body", "_call", "_link", "_meta", "_method", "_router", "_task", "_then", "_turn")

    def __init__(self, router: Router, method: str, body: bytes, meta: RequestMeta, then: OnAnswer) -> None:
        self._router = router
        self._method = method
        self._body = body
        self._meta = meta
        self._then: OnAnswer | None = then
        self._call: Then | None = None
        self._task: asyncio.Task[None] | None = None
        self._link: Link | None = None
        self._turn = 0

    def begin(self, replica: Replica | None, turn: int) -> None:
        """Send it to a replica that was taken for it; None: it has to wait."""
        self._turn = turn
        link: Link | None = replica.link if replica is not None else None
        connection = link.connection if link is not None else None
        if connection is None:
            self._go_on(replica, 0)
            return
        self._link = link
        meta = self._meta
        try:
            self._call = connection.ask_soon(
                REPLICA_DOOR,
                self._method,
                self._body,
                self._answered,
                deadline=meta.deadline,
                request_id=meta.request_id,
                trace=meta.trace,
            )
        except Exception as error:  # noqa: BLE001 - told, or the request is repeated
            self._failed(error)

    def _answered(self, answer: bytes | DoorStream | None, error: BaseException | None) -> None:
        self._call = None
        if error is not None:
            self._failed(error)
            return
        link = self._link
        assert link is not None
        if type(answer) is bytes:
            self._router.answered(link, self._meta)
            self._tell(answer, None)
        elif isinstance(answer, DoorStream):
            self._tell(RoutedStream(self._router, link, answer, [], self._meta.request_id), None)

    def _failed(self, error: BaseException) -> None:
        assert self._link is not None
        try:
            lost = self._router.failed(self._link, error, self._meta, 0)
        except BaseException as final:  # noqa: BLE001 - told
            self._tell(None, final)
        else:
            self._go_on(None, lost)

    def _go_on(self, replica: Replica | None, lost: int) -> None:
        self._task = asyncio.get_running_loop().create_task(self._wait(replica, lost))

    async def _wait(self, replica: Replica | None, lost: int) -> None:
        try:
            answer = await self._router.ask_from(
                replica, self._turn, lost, self._method, self._body, self._meta
            )
        except asyncio.CancelledError:
            if self._then is not None:  # the loop ends
                raise
        except BaseException as error:  # noqa: BLE001 - told
            self._tell(None, error)
        else:
            if self._then is None and isinstance(answer, RoutedStream):
                await answer.aclose()  # cancelled in this very turn
            self._tell(answer, None)

    def _tell(self, answer: bytes | RoutedStream | None, error: BaseException | None) -> None:
        then, self._then = self._then, None
        if then is not None:
            then(answer, error)

    def cancel(self) -> None:
        """The client has left: user code is told."""
        self._then = None
        if self._task is not None:
            self._task.cancel()
        elif self._call is not None:
            assert self._link is not None
            self._call.cancel()
            self._router.over(self._link, is_known=False)
