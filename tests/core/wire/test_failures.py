from __future__ import annotations

import pytest

from retinue.core import errors
from retinue.core.wire.failures import to_exception, to_failure
from retinue.core.wire.messages import Failure

EVERY = [
    cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.RetinueError)
]

# These are made of more than a message, and travel pickled.
NOT_BY_MESSAGE = (errors.RetinueTaskError, errors.UnserializableException)


@pytest.mark.parametrize("cls", EVERY)
def test_every_class_of_ours_can_be_named_in_a_failure(cls):
    error = to_exception(Failure(1, cls.__name__, "what went wrong"))
    assert type(error) is cls
    assert "what went wrong" in str(error)


@pytest.mark.parametrize("cls", [c for c in EVERY if c not in NOT_BY_MESSAGE])
def test_a_failure_travels_there_and_back_without_growing(cls):
    first = to_exception(Failure(1, cls.__name__, "what went wrong"))
    second = to_exception(to_failure(1, first))
    third = to_exception(to_failure(1, second))
    assert type(third) is cls
    assert str(third) == str(second)


@pytest.mark.parametrize(
    "error", [ValueError("x"), TypeError("x"), KeyError("x"), TimeoutError("x"), ConnectionError("x")]
)
def test_builtin_errors_keep_their_type(error):
    again = to_exception(to_failure(3, error))
    assert type(again) is type(error)
    assert again.args == error.args


def test_an_unknown_name_becomes_a_system_error_that_tells_it():
    error = to_exception(Failure(1, "NoSuchError", "text"))
    assert type(error) is errors.RetinueSystemError
    assert "NoSuchError: text" in str(error)


@pytest.mark.parametrize("name", ["Any", "traceback", "format_remote_traceback", "annotations", "__name__"])
def test_names_that_are_no_errors_are_not_called(name):
    assert type(to_exception(Failure(1, name, "text"))) is errors.RetinueSystemError
