"""Whose log files are meant."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable

import pytest

from retinue.serve.cli.logs import Selection
from tests.serve.cli.conftest import SERVE, Foreground, Run, fetch

FILES = [
    "controller.log",
    "proxy_0.log",
    "replica_shop_Search_0a1b2c3d.log",
    "replica_shop_Search_ffffffff.log",
    "replica_shop_Index_0a1b2c3e.log",
    "replica_shopping_Cart_00000000.log",
]


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        (Selection(), [0, 1, 2, 3, 4, 5]),
        (Selection(component="proxy"), [1]),
        (Selection("shop"), [2, 3, 4]),
        (Selection("shop#Search"), [2, 3]),
        (Selection("shop#Search#ffffffff"), [3]),
        (Selection("shop#Nothing"), []),
        (Selection("shop", "controller"), []),
    ],
)
def test_a_target_chooses_files_by_whole_names(selection: Selection, chosen: list[int]) -> None:
    assert [name for name in FILES if selection.has(name)] == [FILES[i] for i in chosen]


def test_following_shows_what_is_added(foreground: Callable[..., Foreground], serve: Run) -> None:
    url = foreground("greeting_app:app", "--http-port", "0").url()
    fetch(f"{url}first")
    words = [*SERVE, "logs", "--component", "proxy", "--follow"]
    follower = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    timer = threading.Timer(60.0, follower.kill)
    timer.start()
    try:
        assert follower.stdout is not None
        assert "GET /first 200" in follower.stdout.readline()
        fetch(f"{url}second")
        assert "GET /second 200" in follower.stdout.readline()
    finally:
        timer.cancel()
        follower.kill()
        follower.wait()
        assert follower.stdout is not None
        follower.stdout.close()
    assert "no logs of nobody" in serve("logs", "nobody", code=1).stderr
