from __future__ import annotations

import io
import threading
from typing import Any

import pytest

from retinue.util import inspect_serializability


def inspect(obj: Any, **kwargs: Any) -> tuple[bool, list[Any], str]:
    out = io.StringIO()
    ok, failures = inspect_serializability(obj, print_file=out, **kwargs)
    return ok, sorted(failures, key=lambda f: f.path), out.getvalue()


def test_a_good_value_has_no_failures() -> None:
    ok, failures, text = inspect({"a": [1, 2]}, name="good")
    assert (ok, failures) == (True, [])
    assert "Checking" in text


def test_the_variable_in_a_closure_is_found() -> None:
    lock = threading.Lock()

    def uses_lock() -> Any:
        return lock

    ok, [failure], text = inspect(uses_lock)
    assert not ok
    assert failure.name == "lock"
    assert failure.obj is lock
    assert failure.parent is uses_lock
    assert "lock" in text
    assert "retinue.util.register_serializer" in text


def test_the_attribute_of_an_instance_is_found_with_its_path() -> None:
    class Inner:
        def __init__(self) -> None:
            self.lock = threading.Lock()

    class Outer:
        def __init__(self) -> None:
            self.inner = Inner()
            self.harmless = 1

    _, [failure], _ = inspect(Outer(), name="outer")
    assert failure.path == ("outer", "inner", "lock")
    assert "outer -> inner -> lock" in repr(failure)


def test_items_slots_and_partials_are_looked_into() -> None:
    import functools

    class Slotted:
        __slots__ = ("lock",)

        def __init__(self) -> None:
            self.lock = threading.Lock()

    names = {
        inspect(value, depth=4)[1][0].name
        for value in (
            {"k": threading.Lock()},
            [0, threading.Lock()],
            Slotted(),
            functools.partial(print, end=threading.Lock()),
        )
    }
    assert names == {"['k']", "[1]", "lock", "['end']"}


def test_each_culprit_is_reported_once() -> None:
    lock, other = threading.Lock(), threading.Lock()
    ok, failures, _ = inspect({"a": lock, "b": [lock], "c": other})
    assert not ok
    assert [failure.name for failure in failures] == ["['a']", "['c']"]


def test_the_class_of_a_method_that_uses_its_own_class() -> None:
    lock = threading.Lock()

    class Recursive:
        def method(self) -> Any:
            return Recursive, lock

    _, failures, _ = inspect(Recursive, depth=3)
    assert [failure.obj for failure in failures] == [lock]


def test_depth_bounds_the_search() -> None:
    _, [failure], _ = inspect({"a": {"b": threading.Lock()}}, name="top", depth=1)
    assert failure.path == ("top", "['a']")
    _, [failure], _ = inspect({"a": threading.Lock()}, name="top", depth=0)
    assert failure.path == ("top",)


def test_a_whole_that_fails_without_a_part_to_blame() -> None:
    class Stubborn:
        def __reduce__(self) -> Any:
            raise RuntimeError("no")

    value = Stubborn()
    _, [failure], text = inspect(value)
    assert failure.obj is value
    assert "no" in text


def test_it_prints_to_standard_output_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    inspect_serializability(1)
    assert "Checking" in capsys.readouterr().out
