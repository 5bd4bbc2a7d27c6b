from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.core.scheduling.resources import (
    UNIT,
    Allocation,
    NodeResources,
    ResourceError,
    describe,
    to_floats,
    to_units,
)


@pytest.mark.parametrize(
    "amounts",
    [
        {"CPU": -1},
        {"": 1},
        {"CPU": float("nan")},
        {"CPU": float("inf")},
        {"GPU": 1.5},
        {"x": 0.00001},
        {"x": True},
    ],
)
def test_what_can_never_be_is_refused(amounts: dict[str, float]) -> None:
    with pytest.raises(ResourceError):
        to_units(amounts)


def test_zero_amounts_are_left_out_and_floats_come_back() -> None:
    assert to_units({"CPU": 0, "GPU": 0.5, "memory": 1e9}) == {"GPU": 5_000, "memory": 10**13}
    assert to_floats(to_units({"x": 0.1})) == {"x": 0.1}


def test_ten_tenths_are_one() -> None:
    node = NodeResources({"CPU": 1})
    held = [node.allocate(to_units({"CPU": 0.1})) for _ in range(10)]
    assert all(held)
    assert node.allocate(to_units({"CPU": 0.1})) is None
    for allocation in held:
        assert allocation is not None
        node.release(allocation)
    assert node.free == node.total


def test_a_fraction_of_a_gpu_goes_to_the_fullest_index_that_has_room() -> None:
    node = NodeResources({"GPU": 2})
    first = node.allocate(to_units({"GPU": 0.5}))
    second = node.allocate(to_units({"GPU": 0.25}))
    third = node.allocate(to_units({"GPU": 0.5}))
    assert first
    assert second
    assert third
    assert first.instances(node.total) == {"GPU": [0.5, 0.0]}
    assert second.instances(node.total) == {"GPU": [0.25, 0.0]}
    assert third.instances(node.total) == {"GPU": [0.0, 0.5]}


def test_whole_gpus_take_whole_indices_only() -> None:
    node = NodeResources({"GPU": 2})
    half = node.allocate({"GPU": UNIT // 2})
    assert half is not None
    assert node.allocate({"GPU": 2 * UNIT}) is None
    whole = node.allocate({"GPU": UNIT})
    assert whole is not None
    assert whole.shares == {"GPU": {1: UNIT}}


def test_halves_left_on_two_gpus_are_not_one_gpu() -> None:
    node = NodeResources({"GPU": 2})
    taken = [node.allocate({"GPU": 6_000}), node.allocate({"GPU": 6_000})]
    assert all(taken)
    assert not node.fits({"GPU": 5_000})
    assert node.fits({"GPU": 4_000})


def test_lent_cpus_are_free_for_others_and_may_be_overdrawn_when_taken_back() -> None:
    node = NodeResources({"CPU": 1})
    parent = node.allocate({"CPU": UNIT})
    assert parent is not None
    assert node.lend(parent)
    assert not node.lend(parent)
    child = node.allocate({"CPU": UNIT})
    assert child is not None
    assert node.take_back(parent)
    assert not node.take_back(parent)
    assert node.free["CPU"] == -UNIT
    assert node.available() == {"CPU": 0}
    node.release(child)
    node.release(parent)
    assert node.free == node.total


def test_description_names_amounts_for_people() -> None:
    assert (
        describe(to_units({"GPU": 0.5, "CPU": 2, "memory": 2**30})) == "{CPU: 2, GPU: 0.5, memory: 1024 MiB}"
    )


@given(st.integers(0, 2**32))
def test_random_use_never_overdraws_and_everything_comes_back(seed: int) -> None:
    rng = random.Random(seed)
    node = NodeResources({"CPU": 4, "GPU": 3, "memory": 1000, "x": 0.5})
    held: list[Allocation] = []
    for _ in range(60):
        if held and rng.random() < 0.5:
            node.release(held.pop(rng.randrange(len(held))))
        else:
            request = {
                "CPU": rng.choice([0, 0.5, 1, 2]),
                "GPU": rng.choice([0, 0, 0.3, 0.5, 1, 2]),
                "x": rng.choice([0, 0.1]),
            }
            allocation = node.allocate(to_units(request))
            if allocation:
                held.append(allocation)
        node.check_invariants(held)
        assert all(value >= 0 for value in node.free.values())
    for allocation in held:
        node.release(allocation)
    assert node.free == node.total
