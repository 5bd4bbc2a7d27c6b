from __future__ import annotations

import importlib

import pytest

import retinue.util
from retinue.exceptions import UnsupportedError


def test_every_public_name_is_there_and_documented() -> None:
    for name in retinue.util.__all__:
        assert getattr(retinue.util, name).__doc__, name
        assert name in dir(retinue.util)


def test_an_unsupported_name_says_what_to_use() -> None:
    with pytest.raises(UnsupportedError, match=r"retinue\.util\.collective does not exist: use torch"):
        _ = retinue.util.collective
    with pytest.raises(ImportError, match=r"retinue\.util\.collective does not exist: use torch"):
        from retinue.util import collective  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="there are no placement groups yet"):
        importlib.import_module("retinue.util.placement_group")
    with pytest.raises(UnsupportedError, match=r"use retinue\.init"):
        retinue.util.connect("localhost")
    with pytest.raises(AttributeError, match="no attribute"):
        _ = retinue.util.no_such_name


def test_no_module_hides_a_public_name() -> None:
    # A submodule that is imported becomes an attribute, in place of a function of the same name.
    for name in retinue.util.__all__:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"retinue.util.{name}")
