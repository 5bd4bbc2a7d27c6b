from __future__ import annotations

import inspect

import pytest

from retinue.core.client import call_sites
from retinue.core.client.call_sites import CallSites, make_ids, user_line, wanted_call_sites
from retinue.core.ids import IdFactory, return_id

JOB = b"jobs"


def test_a_call_and_a_put_know_their_lines() -> None:
    sites = CallSites(dict[bytes, None]().items)
    ids = make_ids(JOB, sites)
    line = inspect.currentframe().f_lineno  # type: ignore[union-attr]
    task_id = ids.task_id()
    object_id = ids.put_id(task_id, 1)
    assert sites.of(return_id(task_id, 3)) == f"{__file__}:{line + 1}"
    assert sites.of(object_id) == f"{__file__}:{line + 2}"
    assert sites.of(b"x" * 28) == ""


def test_retinues_own_lines_are_passed_over() -> None:
    namespace: dict[str, object] = {"__name__": "retinue.core.somewhere", "user_line": user_line}
    exec("import sys\ndef own():\n    return user_line(sys._getframe())", namespace)
    own = namespace["own"]
    assert callable(own)
    assert str(own()).startswith(f"{__file__}:")


def test_lines_of_objects_that_nobody_knows_any_more_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_sites, "MIN_LINES", 4)
    known: dict[bytes, None] = {}
    sites = CallSites(known.items)
    ids = make_ids(JOB, sites)
    task_id = ids.task_id()
    known[return_id(task_id, 0)] = None
    lost = [ids.task_id() for _ in range(4)]
    assert sites.of(return_id(task_id, 0))
    assert not any(sites.of(return_id(task_id, 0)) for task_id in lost)


@pytest.mark.parametrize(("value", "is_wanted"), [("1", True), ("0", False), ("", False), (None, False)])
def test_nothing_is_recorded_unless_the_environment_asks(
    monkeypatch: pytest.MonkeyPatch, value: str | None, is_wanted: bool
) -> None:
    monkeypatch.delenv(call_sites.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(call_sites.VARIABLE, value)
    sites = wanted_call_sites(dict[bytes, None]().items)
    assert (sites is not None) == is_wanted
    assert (type(make_ids(JOB, sites)) is IdFactory) != is_wanted
