"""Waiting on one thread for what another brings."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from retinue.core.transport.answers import Answer
from retinue.core.wire.messages import Failure, Ok


def test_an_answer_that_came_before_the_wait_is_given_at_once() -> None:
    answer = Answer()
    answer(Ok(1), b"body")
    assert answer.wait("late") == (Ok(1), b"body")
    assert answer.has_come


def test_an_answer_from_another_thread_ends_the_wait() -> None:
    answer = Answer()
    thread = threading.Thread(target=answer, args=(Ok(1), b""))
    thread.start()
    assert answer.wait("late", 20.0)[0] == Ok(1)
    thread.join()


def test_a_failure_is_raised_as_the_error_that_it_names() -> None:
    answer = Answer()
    answer(Failure(1, "ValueError", "no such thing"), b"")
    with pytest.raises(ValueError, match="no such thing"):
        answer.wait("late")


@pytest.mark.parametrize("check", [None, lambda: None])
def test_an_answer_that_comes_too_late_goes_to_who_puts_it_back(check: Any) -> None:
    late: list[tuple[Any, bytes]] = []
    answer = Answer(lambda response, body: late.append((response, body)))
    with pytest.raises(TimeoutError, match="nobody said anything"):
        answer.wait("nobody said anything", 0.01, check=check, check_every_s=0.001)
    assert not answer.has_come
    answer(Ok(1), b"slab")
    assert late == [(Ok(1), b"slab")]


def test_a_wait_that_is_interrupted_ends_and_lets_go_of_its_answer() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    late: list[Any] = []
    answer = Answer(lambda response, body: late.append(response))
    with pytest.raises(KeyboardInterrupt):
        answer.wait("late", check=interrupt, check_every_s=0.001)
    answer(Ok(1), b"")
    assert late == [Ok(1)]
