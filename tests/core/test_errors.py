from __future__ import annotations

import pickle
import traceback

import pytest

from retinue import exceptions
from retinue.core import errors
from retinue.core.errors import (
    GetTimeoutError,
    ObjectLostError,
    OwnerDiedError,
    RetinueError,
    RetinueTaskError,
    format_remote_traceback,
    safe_repr,
)

EVERY = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, RetinueError)]


@pytest.mark.parametrize("cls", EVERY)
def test_every_error_says_whose_fault_it_is_and_survives_pickling(cls):
    assert cls.fault in ("caller", "user code", "system")
    assert isinstance(cls.is_retryable, bool)
    error = cls("text")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert str(again) == str(error)
    assert vars(again) == vars(error)


@pytest.mark.parametrize("cls", EVERY)
def test_every_error_has_a_docstring(cls):
    assert cls.__doc__


def test_lost_object_says_which_and_why():
    assert str(ObjectLostError("ab12")) == (
        "object ab12: all copies are lost and its task may not be run again."
    )
    error = OwnerDiedError("ab12", call_site="task f")
    assert str(error) == "object ab12: the process that owned it died. It was made by task f."
    assert str(ObjectLostError(message="text.")) == "text."


def test_timeout_of_get_is_a_timeout_error():
    assert issubclass(GetTimeoutError, TimeoutError)


def test_task_error_says_where_it_happened():
    error = RetinueTaskError("f", "Traceback\n", ValueError("x"), 7, "10.0.0.1", "Actor()")
    assert str(error) == "f() (pid=7, ip=10.0.0.1, actor=Actor())\nTraceback"
    assert error.cause_repr == "ValueError('x')"


def test_error_without_a_cause_stays_plain():
    error = RetinueTaskError("f", "Traceback")
    assert error.as_instanceof_cause() is error
    nested = RetinueTaskError("g", "Traceback", error)
    assert nested.as_instanceof_cause() is nested


def test_class_that_refuses_to_be_combined_leaves_the_plain_error():
    class Final(Exception):
        def __init_subclass__(cls) -> None:
            raise TypeError("no subclasses")

    error = RetinueTaskError("f", "Traceback", Final("x"))
    assert error.as_instanceof_cause() is error
    assert isinstance(error.cause, Final)


def test_traceback_begins_where_the_users_code_does():
    def ours() -> None:
        theirs()

    def theirs() -> None:
        raise ValueError("x")

    try:
        ours()
    except ValueError as error:
        text = format_remote_traceback(error, skip_frames=2)
        all_of_it = format_remote_traceback(error, skip_frames=0)
        last = format_remote_traceback(error, skip_frames=99)
    assert "in theirs" in text
    assert "in ours" not in text
    assert "in ours" in all_of_it
    assert "in theirs" in last


def test_repr_that_raises_is_replaced():
    class Half:
        def __repr__(self) -> str:
            return self.missing  # type: ignore[attr-defined, no-any-return]

    assert "Half" in safe_repr(Half())
    assert "AttributeError" in safe_repr(Half())
    assert safe_repr(3) == "3"


@pytest.mark.parametrize("cls", EVERY)
def test_tracebacks_name_the_public_home(cls):
    assert cls.__module__ == "retinue.exceptions"
    assert getattr(exceptions, cls.__name__) is cls
    combined = RetinueTaskError("f", "", ValueError("x")).as_instanceof_cause()
    assert traceback.format_exception_only(combined)[0].startswith(
        "retinue.exceptions.RetinueTaskError(ValueError)"
    )
