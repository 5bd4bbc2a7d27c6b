"""`Signature.check` says what `inspect.signature(...).bind` says, for any function and any arguments."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.core.remote_function import Signature

NAMES = "abcdef"


@st.composite
def functions(draw: st.DrawFn) -> Any:
    """A function with any kinds of parameters, in the order that Python allows."""
    kinds = [draw(st.integers(0, 2)) for _ in range(3)]
    names = iter(NAMES)
    parts: list[str] = []
    has_default = False
    for index in range(kinds[0] + kinds[1]):
        has_default = has_default or draw(st.booleans())
        parts.append(next(names) + ("=0" if has_default else ""))
        if index + 1 == kinds[0]:
            parts.append("/")
    if draw(st.booleans()):
        parts.append("*rest")
    elif kinds[2]:
        parts.append("*")
    parts += [next(names) + draw(st.sampled_from(["", "=0"])) for _ in range(kinds[2])]
    if draw(st.booleans()):
        parts.append("**more")
    namespace: dict[str, Any] = {}
    exec(
        f"def function({', '.join(parts)}): pass\ndef method({', '.join(['self', *parts])}): pass", namespace
    )
    return namespace["function"], namespace["method"]


ARGS = st.lists(st.integers(), max_size=5)
KWARGS = st.dictionaries(st.sampled_from([*NAMES, "other"]), st.integers(), max_size=3)


def accepts(check: Any, args: list[int], kwargs: dict[str, int]) -> bool:
    try:
        check(*args, **kwargs)
    except TypeError:
        return False
    return True


@given(functions(), ARGS, KWARGS)
def test_check_agrees_with_bind(both, args, kwargs):
    function, method = both
    expected = accepts(inspect.signature(function).bind, args, kwargs)
    checked = Signature(function)
    assert accepts(lambda *a, **k: checked.check(a, k), args, kwargs) == expected
    # A method without its first parameter takes the same.
    if "/" not in str(inspect.signature(method)):
        checked = Signature(method, skip_first=True)
        assert accepts(lambda *a, **k: checked.check(a, k), args, kwargs) == expected


def test_error_is_pythons_own():
    def function(a: int, *, b: int) -> None: ...

    with pytest.raises(TypeError, match="missing a required"):
        Signature(function).check((1,), {})
    with pytest.raises(TypeError, match="too many positional"):
        Signature(function).check((1, 2), {"b": 1})


def test_builtins_without_a_signature_take_anything():
    for function in (max, dict, range):
        Signature(function).check((1, 2, 3, 4), {"x": 1})


def test_class_without_an_init_takes_nothing():
    class Plain:
        pass

    signature = Signature(Plain.__init__, skip_first=True)
    signature.check((), {})
