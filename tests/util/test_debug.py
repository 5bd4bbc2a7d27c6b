from __future__ import annotations

from types import SimpleNamespace

import pytest

from retinue.util import debug, disable_log_once_globally, enable_periodic_logging, log_once


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debug, "_seen", set())
    monkeypatch.setattr(debug, "_is_disabled", False)
    monkeypatch.setattr(debug, "_is_periodic", False)


def test_only_the_first_time_counts() -> None:
    assert [log_once("a"), log_once("a"), log_once("b")] == [True, False, True]


def test_a_key_can_be_reset() -> None:
    log_once("a"), log_once("b")
    debug.reset_log_once("a")
    assert [log_once("a"), log_once("b")] == [True, False]
    debug.reset_log_once()
    assert log_once("b")


def test_disabled_it_is_always_false() -> None:
    disable_log_once_globally()
    assert not log_once("a")


def test_periodically_messages_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(debug, "time", SimpleNamespace(monotonic=lambda: now))
    enable_periodic_logging()
    assert log_once("a")
    now += 30
    assert not log_once("a")
    now += 31
    log_once("a")  # notices that a minute has passed
    assert log_once("a")
