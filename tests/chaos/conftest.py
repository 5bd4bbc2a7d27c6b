"""Each chaos test has a cluster of its own in a folder of its own, and leaves nothing of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import retinue
from retinue.core import session as sessions
from tests.chaos.support import Node, children_of, leaves_nothing


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The folder of the test's clusters. Nothing of it, and no child of ours, is left at the end."""
    path = str(tmp_path / "r")
    monkeypatch.setenv(sessions.TEMP_DIR_VARIABLE, path)
    monkeypatch.delenv("RETINUE_ADDRESS", raising=False)
    sessions.temp_dir()
    before = set(children_of(os.getpid()))
    with leaves_nothing(path):
        yield path
    assert set(children_of(os.getpid())) <= before


@pytest.fixture
def node(base: str) -> Iterator[Node]:
    """This process is the driver of a cluster of its own, with one node."""
    retinue.init(address="local", num_cpus=4, object_store_memory=128 << 20)
    yield Node(base)
    retinue.shutdown()
