"""Answers that come as items, and the items that go with a request.

Lives here: `RoutedStream`, a streamed answer that holds a slot until it ends; `Replayed`, items that can be
sent again as long as no replica has taken the request. Does not: which replica (`router`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import TYPE_CHECKING, Self

from retinue.core.doors import DoorCancelledError, DoorClosedError, DoorStream
from retinue.serve.exceptions import ReplicaUnavailableError, RequestCancelledError

if TYPE_CHECKING:
    from retinue.serve.routing.links import Link
    from retinue.serve.routing.router import Router


class RoutedStream:
    """The items of an answer: `async for`, or `read()` for all that there are by now (none: the end).

    Its slot counts as taken until it ends: read it to its end, or `aclose()` it, which cancels the handler.
    """

    __slots__ = ("_first", "_is_over", "_link", "_request_id", "_router", "_stream")

    def __init__(
        self, router: Router, link: Link, stream: DoorStream, first: list[bytes], request_id: str
    ) -> None:
        self._router = router
        self._link = link
        self._stream = stream
        self._first = first  # came already
        self._request_id = request_id
        self._is_over = False

    @property
    def replica_id(self) -> str:
        return self._link.info.replica_id

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._first:
            return self._first.pop(0)
        try:
            return await self._stream.__anext__()
        except BaseException as error:  # noqa: BLE001 - raised again
            self._over()
            raise self._translated(error) from None

    async def read(self) -> list[bytes]:
        if self._first:
            first, self._first = self._first, []
            return first
        try:
            items = await self._stream.read()
        except BaseException as error:  # noqa: BLE001 - raised again
            self._over()
            raise self._translated(error) from None
        if not items:
            self._over()
        return items

    async def aclose(self) -> None:
        """Cancel what is left of it."""
        self._first = []
        await self._stream.aclose()
        self._over()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def _over(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._router.stream_over(self._link, self._request_id)

    def _translated(self, error: BaseException) -> BaseException:
        if isinstance(error, DoorClosedError):
            return ReplicaUnavailableError(self.replica_id, str(error))
        if isinstance(error, DoorCancelledError):
            return RequestCancelledError(self._request_id)
        return error

    def __del__(self) -> None:
        if not self._is_over:
            # The collector may run on any thread; the door's stream cancels itself.
            self._router.dropped(self._link)


class Replayed:
    """The items of an exchange. Until a replica has `accepted`, what was read is kept, to be sent again."""

    def __init__(self, first: bytes, rest: AsyncIterable[bytes]) -> None:
        self._rest = rest.__aiter__()
        self._kept: list[bytes] | None = [first]
        self._pull: asyncio.Future[bytes] | None = None
        self._readers = 0  # one, or none; two while an attempt ends and the next begins

    def accepted(self) -> None:
        """Whoever reads now is the last."""
        self._kept = None
        if not self._readers:
            self.close()

    async def items(self) -> AsyncIterator[bytes]:
        """All items, from the first one."""
        self._readers += 1
        try:
            async for item in self._items():
                yield item
        finally:
            self._readers -= 1
            if self._kept is None and not self._readers:
                self.close()

    async def _items(self) -> AsyncIterator[bytes]:
        for item in self._kept or ():
            yield item
        while True:
            if self._pull is None:
                self._pull = asyncio.ensure_future(self._rest.__anext__())
            try:
                # The attempt may end while this waits; what comes then belongs to the next one.
                item = await asyncio.shield(self._pull)
            except StopAsyncIteration:
                return
            self._pull = None
            if self._kept is not None:
                self._kept.append(item)
            yield item

    def close(self) -> None:
        """The request is over: nobody reads on."""
        if self._pull is not None:
            self._pull.cancel()
