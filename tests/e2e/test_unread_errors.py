"""Errors whose results nobody asks for reach the log, once; those that somebody has seen do not."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import retinue
from retinue.exceptions import RetinueActorError


@retinue.remote(max_retries=0)
def fail(word: Any) -> None:
    raise KeyError(word)


@retinue.remote(max_retries=0)
def crash() -> None:
    os._exit(3)


@retinue.remote
def echo(value: Any) -> Any:
    return value


@retinue.remote
class Actor:
    def __init__(self, word: str = "") -> None:
        if word:
            raise KeyError(word)

    def fail(self, word: str) -> None:
        raise KeyError(word)


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def about(self, word: str) -> list[str]:
        return [line for line in self.lines if word in line]


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler = Lines()
    logging.getLogger("retinue").addHandler(handler)
    yield handler
    logging.getLogger("retinue").removeHandler(handler)


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def drop_after_its_end(ref: Any) -> None:
    retinue.wait([ref], timeout=20)


def test_a_result_that_is_dropped_at_once_or_after_a_wait(lines: Lines) -> None:
    fail.remote("at once")
    drop_after_its_end(fail.remote("after a wait"))
    drop_after_its_end(Actor.remote().fail.remote("in a method"))
    fail.options(num_returns=0).remote("no result at all")
    drop_after_its_end(crash.remote())
    for words in ("at once", "after a wait", "in a method", "no result at all", "WorkerCrashedError"):
        wait_for(lambda words=words: lines.about(words))  # type: ignore[misc]
        assert len(lines.about(words)) == 1
    assert "in fail" in lines.about("at once")[0]
    assert lines.about("in a method")[0].startswith("Actor.fail failed, and nobody asked for its result")


def test_what_somebody_has_seen_is_not_told(lines: Lines) -> None:
    with pytest.raises(KeyError):
        retinue.get(fail.remote("seen by get"))
    assert isinstance(fail.remote("seen by a future").future().exception(timeout=20), KeyError)
    with pytest.raises(KeyError):
        retinue.get(echo.remote(fail.remote("seen by another task")))
    with pytest.raises(KeyError):
        retinue.get(echo.remote([fail.remote("lent")]), timeout=20)[0].future().result(20)
    slow = echo.remote(fail.options(num_returns=2).remote("one of two")[0])
    with pytest.raises(KeyError):
        retinue.get(slow)
    del slow
    drop_after_its_end(fail.remote("the last"))
    wait_for(lambda: lines.about("the last"))
    assert not lines.about("seen by")
    assert not lines.about("lent")
    assert not lines.about("one of two")


def test_what_depends_on_a_failure_tells_for_it(lines: Lines) -> None:
    drop_after_its_end(echo.remote(fail.remote("first of two")))
    wait_for(lambda: lines.about("first of two"))
    (line,) = lines.about("first of two")
    assert line.startswith("echo failed")


def test_an_actor_that_never_came_to_be(lines: Lines) -> None:
    actor = Actor.remote("not made")
    wait_for(lambda: lines.about("not made"))
    with pytest.raises(RetinueActorError):
        retinue.get(actor.fail.remote(""))
    assert len(lines.about("not made")) == 1


def test_a_flood_is_counted(lines: Lines) -> None:
    for _ in range(60):
        fail.remote("flood")
    wait_for(lambda: lines.about("more calls failed"))
    assert len(lines.about("flood")) <= 20
