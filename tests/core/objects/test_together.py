"""All parts together on real memory and a real disk: what users rely on."""

import gc
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.core.objects.mini_agent import MiniAgent, StoreFullError

MIB = 1 << 20
BUDGET = 16 * MIB


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[MiniAgent]:
    agent = MiniAgent(tmp_path, BUDGET)
    yield agent
    agent.settle()
    agent.store.check_invariants()
    agent.stop()
    assert list(tmp_path.iterdir()) == [], "files are left"


def content(index: int, size: int) -> bytes:
    return random.Random(index).randbytes(size)


@pytest.mark.parametrize("size", [100, 70_000, 2 * MIB + 100, 5 * MIB + 1])
def test_ten_times_the_store_is_produced_and_consumed_bit_for_bit(agent: MiniAgent, size: int) -> None:
    # Small ones: enough to fill many slabs, not the store ten times (that takes long in a test).
    count = min(10 * BUDGET // size, 500)
    for index in range(count):
        agent.put(b"%d" % index, content(index, size))
    for index in range(count):
        assert agent.get(b"%d" % index) == content(index, size)
        agent.unpin_released()
    if size > 100:
        assert agent.store.counters.spilled_bytes > 0
        assert agent.store.counters.restored_bytes > 0
    assert agent.store.counters.refused == 0
    agent.settle()
    assert agent.arena.resident_bytes() <= BUDGET


def _numpy_slice(view: memoryview) -> Any:
    np = pytest.importorskip("numpy")
    return np.frombuffer(view, dtype=np.uint8)[100:200].reshape(10, 10)


def _arrow_slice(view: memoryview) -> Any:
    pa = pytest.importorskip("pyarrow")
    return pa.py_buffer(view).slice(100, 100)


@pytest.mark.parametrize("derive", [lambda view: view[100:200], _numpy_slice, _arrow_slice])
@pytest.mark.parametrize("size", [3 * MIB, 6 * MIB])
def test_derived_views_survive_a_refill_of_the_store(
    agent: MiniAgent, derive: Callable[[memoryview], Any], size: int
) -> None:
    agent.put(b"x", content(7, size))
    derived = derive(agent.get(b"x"))
    agent.free(b"x")
    gc.collect()
    for index in range(12):
        agent.put(b"%d" % index, content(index, 5 * MIB))
    assert bytes(derived) == content(7, size)[100:200]
    del derived
    gc.collect()
    assert list(agent.released)
    agent.unpin_released()
    assert b"x" not in {info.object_id for info in agent.store.snapshot()}


def test_store_full_of_pins_goes_on_in_files(agent: MiniAgent) -> None:
    held = []
    for index in range(8):
        agent.put(b"%d" % index, content(index, 4 * MIB + 100))
        held.append(agent.get(b"%d" % index))
    assert [bytes(view) for view in held] == [content(index, 4 * MIB + 100) for index in range(8)]
    assert agent.store.counters.file_fallbacks >= 4
    agent.put(b"small", content(99, 1000))
    assert agent.get(b"small") == content(99, 1000)


def test_full_disk_is_told_and_passes(agent: MiniAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    agent.put(b"x", content(1, 10 * MIB))
    held = agent.get(b"x")
    monkeypatch.setattr(agent.spill, "_min_free_share", 1.0)
    with pytest.raises(StoreFullError, match="of the disk would be free"):
        agent.put(b"y", content(2, 10 * MIB))
    del held
    monkeypatch.undo()
    agent.put(b"y", content(2, 10 * MIB))
    assert agent.get(b"x") == content(1, 10 * MIB)


def test_freed_memory_is_used_again_warm(agent: MiniAgent) -> None:
    for index in range(20):
        agent.put(b"x%d" % index, content(index, 6 * MIB))
        agent.free(b"x%d" % index)
    agent.settle()
    assert agent.arena.resident_bytes() <= 10 * MIB
    assert agent.store.used_bytes == 0
    assert agent.store.counters.spilled_bytes == 0
