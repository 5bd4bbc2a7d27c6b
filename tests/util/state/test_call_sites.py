"""Lines of source in what `list_objects` and `retinue memory` tell."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import retinue
from retinue.util import state


@pytest.fixture
def recording_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RETINUE_TEMP_DIR", str(tmp_path))
    monkeypatch.setenv("RETINUE_RECORD_REF_CREATION_SITES", "1")
    retinue.init("local", num_cpus=1, object_store_memory=128 << 20)
    yield
    retinue.shutdown()


def site_of(ref: retinue.ObjectRef) -> set[str]:
    return {held.call_site for held in state.get_objects(ref.hex())}


@retinue.remote(num_cpus=0)
class Keeper:
    def __init__(self) -> None:
        self._kept = [retinue.put("mine")]

    def kept(self) -> list[retinue.ObjectRef]:
        return self._kept


@retinue.remote
def work() -> int:
    return 1


@pytest.mark.usefixtures("recording_cluster")
def test_objects_say_which_line_made_them() -> None:
    line = inspect.currentframe().f_lineno
    put = retinue.put(1)
    called = work.remote()
    (in_actor,) = retinue.get(Keeper.remote().kept.remote())
    assert site_of(put) == {f"put at {__file__}:{line + 1}"}
    assert {site.split(" at ")[1] for site in site_of(called)} == {f"{__file__}:{line + 2}"}
    assert any(site.startswith(f"put at {__file__}:") for site in site_of(in_actor))
    retinue.get(called)
