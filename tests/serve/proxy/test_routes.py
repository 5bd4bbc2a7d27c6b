from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.serve.messages import Route
from retinue.serve.proxy.routes import RouteFinder


def finder(*prefixes: str) -> RouteFinder:
    return RouteFinder([Route(prefix, prefix, "ingress") for prefix in prefixes])


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        ("/a", "/a"),
        ("/a/", "/a"),
        ("/a/b", "/a/b"),
        ("/a/b/c", "/a/b"),
        ("/a/bc", "/a"),
        ("/ab", "/"),
        ("/", "/"),
        ("", "/"),
    ],
)
def test_the_longest_prefix_wins_and_ends_at_a_slash(path: str, prefix: str) -> None:
    found = finder("/", "/a", "/a/b").find(path)
    assert found is not None
    assert found.prefix == prefix


def test_a_path_outside_of_every_prefix_has_no_route() -> None:
    assert finder("/a").find("/b") is None
    assert finder("/a").find("/") is None
    assert finder().find("/") is None


_segments = st.lists(st.sampled_from(["a", "b", "ab"]), max_size=4)


@given(st.lists(_segments, max_size=6), _segments)
def test_it_finds_what_trying_every_prefix_finds(prefixes: list[list[str]], segments: list[str]) -> None:
    written = {"/" + "/".join(p) for p in prefixes}
    path = "/" + "/".join(segments)
    fitting = [p for p in written if p == "/" or path == p or path.startswith(p + "/")]
    found = finder(*written).find(path)
    assert (found.prefix if found else None) == max(fitting, key=len, default=None)
