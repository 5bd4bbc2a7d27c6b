from __future__ import annotations

import gc
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import retinue
from retinue.core.admin.ask import Asker, find_target

MIB = 1 << 20


@retinue.remote
def make(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8)


@retinue.remote
def checksum(array: np.ndarray) -> int:
    return int(array.astype(np.uint64).sum())


def test_arrays_come_without_a_copy_and_read_only() -> None:
    array = np.arange(MIB, dtype=np.float64)
    ref = retinue.put(array)
    first, second = retinue.get(ref), retinue.get(ref)
    assert np.array_equal(first, array)
    assert not first.flags.writeable
    assert first.__array_interface__["data"][0] == second.__array_interface__["data"][0]


def test_large_arguments_and_results_cross_processes_bit_exact() -> None:
    refs = [make.remote(seed, 3 * MIB) for seed in range(6)]
    sums = retinue.get([checksum.remote(ref) for ref in refs])
    for ref, total in zip(refs, sums, strict=True):
        assert checksum._function(retinue.get(ref)) == total
    big = np.ones(2 * MIB, dtype=np.uint8)
    assert retinue.get(checksum.remote(big)) == 2 * MIB


def test_a_pin_lasts_as_long_as_any_derived_view() -> None:
    ref = retinue.put(np.full(4 * MIB, 7, dtype=np.uint8))
    views: list[Any] = []
    value = retinue.get(ref)
    views += [value[100:200][3:50], memoryview(value)[5:9], pa.py_buffer(value).slice(10, 20)]
    del ref, value
    gc.collect()
    for i in range(120):  # refill the store: what is not pinned is used again
        retinue.put(np.full(4 * MIB, i % 7, dtype=np.uint8))
    assert all(bytes(view)[:4] == b"\x07" * 4 for view in views[:2])
    assert views[2].to_pybytes() == b"\x07" * 20


def test_tables_of_arrow_come_without_a_copy() -> None:
    table = pa.table({"x": np.arange(MIB)})
    before = pa.total_allocated_bytes()
    found = retinue.get(retinue.put(table))
    assert found.equals(table)
    assert pa.total_allocated_bytes() - before < MIB


def test_tensors_of_torch_share_memory_and_may_be_written() -> None:
    torch = pytest.importorskip("torch")
    ref = retinue.put({"weights": torch.arange(MIB, dtype=torch.float32)})
    first = retinue.get(ref)["weights"]
    first[0] = -1
    assert retinue.get(ref)["weights"][0] == 0
    assert torch.equal(first[1:], torch.arange(1, MIB, dtype=torch.float32))


def test_ten_times_the_stores_size_is_produced_and_consumed() -> None:
    refs = [make.remote(seed, 16 * MIB) for seed in range(40)]
    expected = [checksum.remote(ref) for ref in refs]
    totals = retinue.get(expected, timeout=100)
    for seed in (0, 17, 39):
        value = retinue.get(refs[seed])
        assert np.array_equal(value, make._function(seed, 16 * MIB))
        assert checksum._function(value) == totals[seed]
        del value
    del refs
    for seed in range(120):
        assert retinue.get(checksum.remote(make.remote(seed, 16 * MIB)), timeout=60) > 0


def test_references_inside_objects_keep_what_they_name() -> None:
    inner = retinue.put(np.ones(MIB))
    outer = retinue.put([inner, {"again": inner}])
    del inner
    gc.collect()
    found = retinue.get(outer)
    del outer
    assert retinue.get(found[0]).sum() == MIB
    assert found[0] == found[1]["again"]


def test_a_task_returns_references_that_it_made() -> None:
    @retinue.remote
    def nest() -> list[Any]:
        return [retinue.put(np.full(MIB, 3)), retinue.put("small")]

    large, small = retinue.get(nest.remote())
    assert retinue.get(small) == "small"
    assert retinue.get(large).sum() == 3 * MIB


def test_bytes_strings_and_odd_arrays_arrive_as_they_were() -> None:
    values = [bytes(200_000), b"", "é" * 100_000, np.asfortranarray(np.eye(300)), np.eye(300)[::2, ::3], None]
    for value in values:
        found = retinue.get(retinue.put(value))
        assert np.array_equal(found, value) if isinstance(value, np.ndarray) else found == value


def is_stored(object_id: str) -> bool:
    answers = Asker(find_target(), timeout_s=20).ask_nodes("objects").answers
    return any(info["object_id"] == object_id for answer in answers for info in answer.document)


def wait_freed(object_id: str) -> float:
    """How long it takes until no node has the object."""
    started = time.monotonic()
    while is_stored(object_id):
        assert time.monotonic() < started + 20, "it is never freed"
    return time.monotonic() - started


def count_in_python(_: int) -> None:
    for _ in range(200_000):
        pass


def count_in_c(count: int) -> None:
    sum(range(count))  # holds the interpreter's lock until it is done


@pytest.mark.parametrize("compute", [None, count_in_python, count_in_c])
def test_a_dropped_reference_frees_memory_within_a_second(compute: Callable[[int], None] | None) -> None:
    is_stored("")  # nothing of this process's is alive: its I/O thread sleeps
    ref = retinue.put(np.ones(4 * MIB, dtype=np.uint8))
    object_id = ref.hex()
    assert is_stored(object_id)
    with ThreadPoolExecutor(1) as pool:
        del ref
        freed = pool.submit(wait_freed, object_id)
        while compute is not None and not freed.done():
            compute(300_000)  # 5 ms of C at a time: each look of `wait_freed` waits for the lock as well
        assert freed.result() < 1.0


def test_the_room_of_a_dropped_object_is_used_for_the_next() -> None:
    array = np.ones(8 * MIB, dtype=np.uint8)
    places = {retinue.get(retinue.put(array)).__array_interface__["data"][0] for _ in range(20)}
    assert len(places) < 3
