"""A first-in-first-out queue that tasks, actors and drivers share.

Lives here: `Queue`, a picklable client, and the async actor that holds the items.
The items live in the actor's process; large ones are better put first and queued as references.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import retinue

# Each blocked put or get occupies one concurrent call of the actor. With the usual 1,000, that many
# consumers waiting on an empty queue would keep out the put that could wake them.
MAX_WAITING_CALLS = 100_000


class Empty(queue.Empty):
    """The queue had no item (or not enough of them) in time. Also a `queue.Empty`."""


class Full(queue.Full):
    """The queue had no room (or not enough of it) in time. Also a `queue.Full`."""


class Queue:
    """A queue in an actor of its own, with the interface of `asyncio.Queue` in blocking and async form.

    A Queue may be passed to tasks and actors: every copy talks to the same actor, which ends when the last
    copy is gone or at `shutdown()`. With several producers or consumers waiting, their order is not
    guaranteed.

    `maxsize` zero or less means without bound. `actor_options` are the options of the actor, for example
    `{"num_cpus": 1, "name": "work"}`.
    """

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None) -> None:
        self.maxsize = maxsize
        options = {"max_concurrency": MAX_WAITING_CALLS, **(actor_options or {})}
        self.actor: Any = retinue.remote(_QueueActor).options(**options).remote(maxsize)

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        """Return how many items the queue holds."""
        return int(retinue.get(self.actor.qsize.remote()))

    def qsize(self) -> int:
        """Return how many items the queue holds."""
        return self.size()

    def empty(self) -> bool:
        """Say whether the queue holds nothing."""
        return bool(retinue.get(self.actor.empty.remote()))

    def full(self) -> bool:
        """Say whether the queue holds `maxsize` items; never true without a bound."""
        return bool(retinue.get(self.actor.full.remote()))

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add an item at the end, waiting for room for up to `timeout` seconds (None: without limit).

        Raises Full if there was none in time, or at once with `block=False`; ValueError for a negative
        timeout. The item was not added then.
        """
        with _plain_errors():
            retinue.get(self._put(item, block, timeout))

    async def put_async(self, item: Any, block: bool = True, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Do as `put`, without blocking the event loop."""
        with _plain_errors():
            await self._put(item, block, timeout)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Remove and return the oldest item, waiting for one for up to `timeout` seconds (None: no limit).

        Raises Empty if none came in time, or at once with `block=False`; ValueError for a negative timeout.
        """
        with _plain_errors():
            return retinue.get(self._get(block, timeout))

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        """Do as `get`, without blocking the event loop."""
        with _plain_errors():
            return await self._get(block, timeout)

    def put_nowait(self, item: Any) -> None:
        """Add an item at the end, or raise Full at once."""
        self.put(item, block=False)

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Add all items in order in one call, or raise Full and add none of them."""
        if not isinstance(items, Iterable):
            raise TypeError(f"items must be an iterable, not {type(items).__name__}")
        with _plain_errors():
            retinue.get(self.actor.put_nowait_batch.remote(list(items)))

    def get_nowait(self) -> Any:
        """Remove and return the oldest item, or raise Empty at once."""
        return self.get(block=False)

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Remove and return the `num_items` oldest items in order, or raise Empty and remove none."""
        if not isinstance(num_items, int):
            raise TypeError(f"num_items must be an int, not {type(num_items).__name__}")
        if num_items < 0:
            raise ValueError(f"num_items must not be negative: {num_items}")
        with _plain_errors():
            return list(retinue.get(self.actor.get_nowait_batch.remote(num_items)))

    def shutdown(self, force: bool = False, grace_period_s: float = 5) -> None:
        """End the queue's actor; the items in it are lost, and every other copy of the Queue stops working.

        Calls already sent finish first, for up to `grace_period_s`; with `force` the actor is killed at
        once. A second shutdown does nothing.
        """
        actor, self.actor = self.actor, None
        if actor is None:
            return
        if not force:
            done, _ = retinue.wait([actor.__ray_terminate__.remote()], timeout=grace_period_s)
            if done:
                return
        retinue.kill(actor, no_restart=True)

    def _put(self, item: Any, block: bool, timeout: float | None) -> Any:
        if not block:
            return self.actor.put_nowait.remote(item)
        return self.actor.put.remote(item, _checked(timeout))

    def _get(self, block: bool, timeout: float | None) -> Any:
        if not block:
            return self.actor.get_nowait.remote()
        return self.actor.get.remote(_checked(timeout))


class _QueueActor:
    """Holds the items. An async actor: a put or get that waits does not stop the others."""

    def __init__(self, maxsize: int) -> None:
        self._items: asyncio.Queue[Any] = asyncio.Queue(maxsize)

    def qsize(self) -> int:
        return self._items.qsize()

    def empty(self) -> bool:
        return self._items.empty()

    def full(self) -> bool:
        return self._items.full()

    async def put(self, item: Any, timeout: float | None = None) -> None:  # noqa: ASYNC109
        try:
            await asyncio.wait_for(self._items.put(item), timeout)
        except TimeoutError:
            raise Full(f"the queue still held {self.qsize()} items after {timeout} s") from None

    async def get(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        try:
            return await asyncio.wait_for(self._items.get(), timeout)
        except TimeoutError:
            raise Empty(f"the queue was still empty after {timeout} s") from None

    def put_nowait(self, item: Any) -> None:
        self.put_nowait_batch([item])

    def put_nowait_batch(self, items: list[Any]) -> None:
        maxsize = self._items.maxsize
        if maxsize > 0 and len(items) + self.qsize() > maxsize:
            raise Full(f"{len(items)} items do not fit into a queue that holds {self.qsize()} of {maxsize}")
        for item in items:
            self._items.put_nowait(item)

    def get_nowait(self) -> Any:
        return self.get_nowait_batch(1)[0]

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        if num_items > self.qsize():
            raise Empty(f"{num_items} items were asked for and the queue holds {self.qsize()}")
        return [self._items.get_nowait() for _ in range(num_items)]


def _checked(timeout: float | None) -> float | None:
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout must not be negative: {timeout}")
    return timeout


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise the actor's Empty and Full as themselves, without the remote traceback around them."""
    try:
        yield
    except Full as error:
        raise Full(_message(error)) from None
    except Empty as error:
        raise Empty(_message(error)) from None


def _message(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    return str(cause)
