"""Share a fixed set of actors between many calls, one call per actor at a time.

Lives here: `ActorPool`, which says who is idle, who works on what, and what still waits for an actor.
Does not: create or end actors (the caller owns them), threads, callbacks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from msgspec import Struct

import retinue

Submit = Callable[[Any, Any], Any]


class _Call(Struct, frozen=True):
    """One submitted call: its place in the order of submission, its actor, and what `fn` returned."""

    index: int
    actor: Any
    result: Any

    @property
    def watched(self) -> Any:
        """Return the reference whose readiness stands for the whole call.

        Several returns of one call become ready together, so that the last stands for all.
        """
        return self.result[-1] if isinstance(self.result, (list, tuple)) else self.result


class ActorPool:
    """Operate on a fixed pool of actors; results come in order of submission or of completion.

    `fn(actor, value)` must return the ObjectRef (or the list of ObjectRefs) of one call on that actor. A
    value submitted while every actor is busy waits, and is sent when a result is taken by `get_next` or
    `get_next_unordered`: nothing runs behind the caller's back.

        pool = ActorPool([Worker.remote(), Worker.remote()])
        doubled = list(pool.map(lambda actor, value: actor.double.remote(value), [1, 2, 3, 4]))

    An actor that died is dropped from the pool; the ActorDiedError reaches whoever takes its result.
    """

    def __init__(self, actors: Iterable[Any]) -> None:
        self._idle: list[Any] = list(actors)
        self._running: dict[int, _Call] = {}
        self._waiting: deque[tuple[Submit, Any]] = deque()
        self._next_call_index = 0
        self._next_return_index = 0

    def map(self, fn: Submit, values: Iterable[Any]) -> Iterator[Any]:
        """Submit `fn` for every value now; return an iterator over the results in the order of `values`.

        Results of earlier submissions that nobody has taken are dropped. The iterator must be consumed to
        the end for the values that found no idle actor to run at all.
        """
        self._drop_earlier_results()
        for value in values:
            self.submit(fn, value)
        return self._take_all(self.get_next)

    def map_unordered(self, fn: Submit, values: Iterable[Any]) -> Iterator[Any]:
        """Do as `map`, and return the results in the order in which they finish."""
        self._drop_earlier_results()
        for value in values:
            self.submit(fn, value)
        return self._take_all(self.get_next_unordered)

    def submit(self, fn: Submit, value: Any) -> None:
        """Call `fn(actor, value)` on an idle actor, or remember it until one is idle."""
        if not self._idle:
            self._waiting.append((fn, value))
            return
        actor = self._idle.pop()
        self._running[self._next_call_index] = _Call(self._next_call_index, actor, fn(actor, value))
        self._next_call_index += 1

    def has_next(self) -> bool:
        """Say whether a result is left to take."""
        return bool(self._running)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """Return the next result in the order of submission.

        Waits up to `timeout` seconds (None: without limit), then raises TimeoutError. The late call stays
        the next one, unless `ignore_if_timedout`: then its result is given up and its actor counts as idle.
        Raises StopIteration if no result is left, ValueError if the result next in order was already taken
        by `get_next_unordered`.
        """
        self._check_has_next()
        call = self._running.get(self._next_return_index)
        if call is None:
            raise ValueError("get_next() after get_next_unordered(): the next in order is taken already")
        if timeout is not None and not self._ready([call], timeout):
            self._refuse_late(call, ignore_if_timedout)
        return self._take(call)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """Return whichever result is ready first.

        Waits up to `timeout` seconds (None: without limit), then raises TimeoutError; with
        `ignore_if_timedout` the oldest call is given up and its actor counts as idle. Raises StopIteration
        if no result is left.
        """
        self._check_has_next()
        ready = self._ready(self._running.values(), timeout)
        if not ready:
            self._refuse_late(next(iter(self._running.values())), ignore_if_timedout)
        return self._take(ready[0])

    def has_free(self) -> bool:
        """Say whether an actor is idle and no submitted value waits for it."""
        return bool(self._idle) and not self._waiting

    def pop_idle(self) -> Any | None:
        """Take an idle actor out of the pool and return it; None if there is none to spare."""
        return self._idle.pop() if self.has_free() else None

    def push(self, actor: Any) -> None:
        """Add an actor to the pool. Raises ValueError if the pool has it already."""
        if actor in self._idle or any(call.actor == actor for call in self._running.values()):
            raise ValueError(f"{actor!r} already belongs to this ActorPool")
        self._give_back(actor)

    def _check_has_next(self) -> None:
        if not self._running:
            raise StopIteration("no result is left in this ActorPool")

    def _ready(self, calls: Iterable[_Call], timeout: float | None) -> list[_Call]:
        by_ref = {call.watched: call for call in calls}
        ready, _ = retinue.wait(list(by_ref), num_returns=1, timeout=timeout)
        return [by_ref[ref] for ref in ready]

    def _refuse_late(self, call: _Call, ignore: bool) -> None:
        if not ignore:
            raise TimeoutError("no result of this ActorPool was ready in time")
        self._forget(call)
        self._give_back(call.actor)
        raise TimeoutError(f"no result of this ActorPool was ready in time; {call.result} is ignored")

    def _take(self, call: _Call) -> Any:
        self._forget(call)
        try:
            value = retinue.get(call.result)
        except retinue.exceptions.ActorDiedError:
            self._send_waiting()
            raise
        except BaseException:
            self._give_back(call.actor)
            raise
        self._give_back(call.actor)
        return value

    def _forget(self, call: _Call) -> None:
        del self._running[call.index]
        self._next_return_index = max(self._next_return_index, call.index + 1)

    def _give_back(self, actor: Any) -> None:
        self._idle.append(actor)
        self._send_waiting()

    def _send_waiting(self) -> None:
        if self._waiting and self._idle:
            self.submit(*self._waiting.popleft())

    def _take_all(self, take: Callable[[], Any]) -> Iterator[Any]:
        while self.has_next():
            yield take()

    def _drop_earlier_results(self) -> None:
        while self.has_next():
            try:
                self.get_next_unordered(timeout=0, ignore_if_timedout=True)
            except TimeoutError:
                pass
