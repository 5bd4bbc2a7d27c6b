from __future__ import annotations

import pytest

import retinue.util


def test_every_public_name_is_there_and_documented() -> None:
    for name in retinue.util.__all__:
        assert getattr(retinue.util, name).__doc__, name


def test_an_unsupported_name_says_what_to_use() -> None:
    with pytest.raises(ImportError, match=r"retinue\.util\.collective is not supported; use torch"):
        from retinue.util import collective  # noqa: F401
    with pytest.raises(retinue.exceptions.UnsupportedError, match=r"use retinue\.init"):
        retinue.util.connect("localhost")
    with pytest.raises(AttributeError, match="has no attribute"):
        _ = retinue.util.no_such_name
