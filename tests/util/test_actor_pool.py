"""The pool over a fake of `wait` and `get`, and once over real actors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

import retinue
from retinue.util import ActorPool


class Died(Exception):
    pass


@dataclass(eq=False)
class Ref:
    value: Any
    is_ready: bool = True


@dataclass(eq=False)
class Actor:
    """Remembers what it was asked; `ready` says whether answers are there at once."""

    ready: bool = True
    asked: list[Any] = field(default_factory=list)

    def double(self, value: int) -> Ref:
        self.asked.append(value)
        return Ref(value * 2, self.ready)


def double(actor: Any, value: int) -> Any:
    return actor.double(value)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(refs: list[Ref], *, num_returns: int = 1, timeout: float | None = None) -> Any:
        ready = [ref for ref in refs if ref.is_ready][:num_returns]
        assert ready or timeout is not None, "this would wait for ever"
        return ready, [ref for ref in refs if ref not in ready]

    def get(ref: Any) -> Any:
        if isinstance(ref, list):
            return [get(part) for part in ref]
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value

    class Exceptions:
        ActorDiedError = Died

    monkeypatch.setattr(retinue, "wait", wait, raising=False)
    monkeypatch.setattr(retinue, "get", get, raising=False)
    monkeypatch.setattr(retinue, "exceptions", Exceptions, raising=False)


@pytest.mark.usefixtures("fake")
class TestActorPool:
    def test_map_returns_results_in_order_and_shares_the_work(self) -> None:
        actors = [Actor(), Actor()]
        assert list(ActorPool(actors).map(double, range(5))) == [0, 2, 4, 6, 8]
        assert all(actor.asked for actor in actors)

    def test_map_unordered_takes_what_is_ready_first(self) -> None:
        slow, quick = Actor(ready=False), Actor()
        pool = ActorPool([quick, slow])  # the last is taken first
        pool.submit(double, 1)
        pool.submit(double, 2)
        assert pool.get_next_unordered() == 4
        assert (slow.asked, quick.asked) == ([1], [2])

    def test_a_value_without_an_idle_actor_waits_until_a_result_is_taken(self) -> None:
        actor = Actor()
        pool = ActorPool([actor])
        pool.submit(double, 1)
        pool.submit(double, 2)
        assert actor.asked == [1]
        assert not pool.has_free()
        assert pool.get_next() == 2
        assert actor.asked == [1, 2]

    def test_a_late_result_stays_the_next_one(self) -> None:
        actor = Actor(ready=False)
        pool = ActorPool([actor])
        pool.submit(double, 1)
        with pytest.raises(TimeoutError):
            pool.get_next(timeout=0)
        with pytest.raises(TimeoutError):
            pool.get_next_unordered(timeout=0)
        assert pool.has_next()

    @pytest.mark.parametrize("take", [ActorPool.get_next, ActorPool.get_next_unordered])
    def test_an_ignored_late_result_frees_its_actor(self, take: Any) -> None:
        actor = Actor(ready=False)
        pool = ActorPool([actor])
        pool.submit(double, 1)
        pool.submit(double, 2)
        with pytest.raises(TimeoutError, match="ignored"):
            take(pool, timeout=0, ignore_if_timedout=True)
        assert actor.asked == [1, 2]

    def test_there_is_no_order_left_after_unordered(self) -> None:
        pool = ActorPool([Actor(), Actor(ready=False)])
        pool.submit(double, 1)  # goes to the slow one
        pool.submit(double, 2)
        assert pool.get_next_unordered() == 4
        with pytest.raises(ValueError, match="get_next_unordered"):
            pool.get_next()

    def test_without_results_there_is_nothing_to_get(self) -> None:
        pool = ActorPool([Actor()])
        for take in (pool.get_next, pool.get_next_unordered):
            with pytest.raises(StopIteration):
                take()

    def test_map_drops_results_that_nobody_took(self) -> None:
        pool = ActorPool([Actor(), Actor()])
        pool.submit(double, 100)
        assert list(pool.map(double, [1])) == [2]
        pool.submit(double, 100)
        assert list(pool.map_unordered(double, [1, 2, 3])) in ([2, 4, 6], [2, 6, 4], [4, 2, 6], [4, 6, 2])

    def test_a_list_of_references_is_one_result(self) -> None:
        pool = ActorPool([Actor()])
        pool.submit(lambda actor, value: [actor.double(value), actor.double(value + 1)], 1)
        pool.submit(lambda actor, value: [actor.double(value), actor.double(value + 1)], 5)
        assert pool.get_next(timeout=1) == [2, 4]
        assert pool.get_next_unordered(timeout=1) == [10, 12]

    def test_an_error_frees_the_actor_unless_it_died(self) -> None:
        pool = ActorPool([Actor()])
        pool.submit(lambda actor, value: Ref(KeyError(value)), 1)
        with pytest.raises(KeyError):
            pool.get_next()
        assert pool.has_free()
        pool.submit(lambda actor, value: Ref(Died()), 1)
        with pytest.raises(Died):
            pool.get_next()
        assert not pool.has_free()

    def test_actors_come_and_go(self) -> None:
        first, second = Actor(), Actor()
        pool = ActorPool([first])
        with pytest.raises(ValueError, match="already belongs"):
            pool.push(first)
        pool.push(second)
        assert {id(pool.pop_idle()), id(pool.pop_idle())} == {id(first), id(second)}
        assert pool.pop_idle() is None
        pool.submit(double, 3)
        pool.push(first)
        assert pool.get_next() == 6

    def test_a_busy_actor_cannot_be_pushed_again(self) -> None:
        actor = Actor()
        pool = ActorPool([actor])
        pool.submit(double, 1)
        with pytest.raises(ValueError, match="already belongs"):
            pool.push(actor)


@pytest.mark.e2e
@pytest.mark.usefixtures("cluster")
def test_over_real_actors() -> None:
    class Doubler:
        def double(self, value: int) -> int:
            if value < 0:
                raise KeyError(value)
            return value * 2

    doubler = retinue.remote(Doubler)
    pool = ActorPool([doubler.remote(), doubler.remote()])

    def call(actor: Any, value: int) -> Any:
        return actor.double.remote(value)

    assert list(pool.map(call, range(20))) == [2 * i for i in range(20)]
    assert sorted(pool.map_unordered(call, range(20))) == [2 * i for i in range(20)]
    pool.submit(call, -1)
    with pytest.raises(KeyError):
        pool.get_next(timeout=30)
    assert list(pool.map(call, [5])) == [10]
