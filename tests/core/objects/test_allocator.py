"""Allocation over the arena's address space: examples, then a random run against plain sets of pages."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from retinue.core.objects.allocator import Allocation, Allocator, SizeBins
from retinue.core.objects.layout import HUGE, PAGE, round_up

MIB = 1 << 20


def test_budget_is_rounded_up_and_the_space_is_twice_that() -> None:
    allocator = Allocator(5 * MIB)
    assert (allocator.budget_bytes, allocator.size_bytes) == (6 * MIB, 12 * MIB)


def test_the_budget_is_what_runs_out() -> None:
    allocator = Allocator(8 * MIB)
    assert allocator.allocate(5 * MIB) == Allocation(0, 5 * MIB, is_warm=False)
    assert allocator.allocate(4 * MIB) is None
    assert allocator.allocate(3 * MIB) == Allocation(6 * MIB, 3 * MIB, is_warm=False)
    assert allocator.allocate(1) is None


def test_small_allocations_fill_the_gaps_that_large_ones_leave() -> None:
    allocator = Allocator(16 * MIB)
    allocator.allocate(3 * MIB)
    allocator.allocate(4 * MIB)
    small = allocator.allocate(100)
    assert small == Allocation(3 * MIB, PAGE, is_warm=False)


def test_warm_space_is_used_first() -> None:
    allocator = Allocator(64 * MIB)
    first, second = allocator.allocate(8 * MIB), allocator.allocate(8 * MIB)
    assert first
    assert second
    allocator.free(second.offset)
    assert allocator.allocate(6 * MIB) == Allocation(second.offset, 6 * MIB, is_warm=True)
    assert allocator.allocate(6 * MIB) == Allocation(second.offset + 6 * MIB, 6 * MIB, is_warm=False)


def test_shrinking_gives_the_rest_back() -> None:
    allocator = Allocator(8 * MIB)
    assert allocator.allocate(8 * MIB)
    assert allocator.shrink(0, MIB + 1) == 7 * MIB - PAGE
    assert allocator.shrink(0, MIB + 1) == 0
    assert allocator.used_bytes == MIB + PAGE
    allocator.check_invariants()


def test_cold_allocations_past_the_budget_punch_warm_ranges() -> None:
    allocator = Allocator(16 * MIB)
    for _ in range(4):
        allocator.allocate(4 * MIB)
    allocator.free(0)
    allocator.free(8 * MIB)
    assert allocator.allocate(6 * MIB) == Allocation(16 * MIB, 6 * MIB, is_warm=False)
    assert allocator.touched_bytes == 22 * MIB
    ranges = allocator.take_excess()
    assert sum(end - start for start, end in ranges) == 6 * MIB
    assert allocator.touched_bytes == 16 * MIB
    for start, _ in ranges:
        allocator.punched(start)
    allocator.check_invariants()


def test_ranges_taken_to_be_touched_are_warm_afterwards() -> None:
    allocator = Allocator(16 * MIB)
    assert allocator.take_cold(4 * MIB) == (0, 4 * MIB)
    assert allocator.take_cold(100 * MIB) == (4 * MIB, 16 * MIB)
    assert allocator.take_cold(4 * MIB) is None, "no more than the budget is touched"
    allocator.warmed(0)
    allocator.warmed(4 * MIB, is_warm=False)
    assert allocator.allocate(4 * MIB) == Allocation(0, 4 * MIB, is_warm=True)
    allocator.check_invariants()


def test_bins_find_an_extent_whenever_one_is_large_enough() -> None:
    rng = random.Random(1)
    bins, extents = SizeBins(), {}
    for step in range(3000):
        if extents and rng.random() < 0.45:
            start = rng.choice(list(extents))
            bins.discard(start, extents.pop(start))
        else:
            extents[step * PAGE] = PAGE * int(rng.lognormvariate(3, 3) + 1)
            bins.add(step * PAGE, extents[step * PAGE])
        wanted = PAGE * int(rng.lognormvariate(3, 3) + 1)
        found = bins.find(wanted)
        assert (found is not None) == any(size >= wanted for size in extents.values())
        assert found is None or extents[found] >= wanted
    assert dict(bins) == extents


@pytest.mark.parametrize(("median", "sigma"), [(1, 3.0), (64, 1.2)])
def test_ninety_percent_full_hardly_ever_fails_for_want_of_a_hole(median: float, sigma: float) -> None:
    """The notes' measurement, scaled down: random sizes and lifetimes, live bytes held at 90 %."""
    rng = random.Random(7)
    allocator = Allocator(8 << 30)
    live: list[int] = []
    failed = made = 0
    while made < 3000:
        size = int(min(max(rng.lognormvariate(0, sigma) * median * MIB, 1024), 1 << 30))
        while live and allocator.used_bytes + round_up(size, PAGE) > 0.9 * allocator.budget_bytes:
            index = rng.randrange(len(live))
            live[index], live[-1] = live[-1], live[index]
            allocator.free(live.pop())
        made += 1
        allocation = allocator.allocate(size)
        if allocation is None:
            failed += 1
        else:
            live.append(allocation.offset)
        for start, _ in allocator.take_excess():
            allocator.punched(start)
    assert failed <= 0.01 * made  # 0.5 % and none; the store then evicts or spills one more
    assert allocator.touched_bytes <= allocator.budget_bytes
    allocator.check_invariants()


class AllocatorMachine(RuleBasedStateMachine):
    """Every page is in one state, and the allocator agrees with a plain record of what was given out."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = Allocator(24 * MIB)
        self.live: dict[int, int] = {}
        self.warming: list[int] = []
        self.punching: list[int] = []

    @rule(size=st.sampled_from([1, PAGE, 300_000, HUGE, HUGE + 1, 3 * MIB, 7 * MIB, 20 * MIB]))
    def allocate(self, size: int) -> None:
        allocation = self.allocator.allocate(size)
        if allocation is None:
            return
        assert allocation.size == round_up(size, PAGE)
        assert allocation.offset % (HUGE if size >= HUGE else PAGE) == 0
        self.live[allocation.offset] = allocation.size

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.live)))
        assert self.allocator.free(offset) == self.live.pop(offset)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), share=st.floats(0, 1))
    def shrink(self, data: st.DataObject, share: float) -> None:
        offset = data.draw(st.sampled_from(sorted(self.live)))
        self.live[offset] -= self.allocator.shrink(offset, int(self.live[offset] * share))

    @rule(size=st.sampled_from([HUGE, 3 * HUGE, MIB]))
    def take_cold(self, size: int) -> None:
        if (cold := self.allocator.take_cold(size)) is not None:
            self.warming.append(cold[0])

    @precondition(lambda self: self.warming)
    @rule(is_warm=st.booleans())
    def warmed(self, is_warm: bool) -> None:
        self.allocator.warmed(self.warming.pop(0), is_warm=is_warm)

    @rule(keep=st.sampled_from([None, 0, 10 * MIB]))
    def take_excess(self, keep: int | None) -> None:
        self.punching += [start for start, _ in self.allocator.take_excess(keep)]

    @precondition(lambda self: self.punching)
    @rule(is_cold=st.booleans())
    def punched(self, is_cold: bool) -> None:
        self.allocator.punched(self.punching.pop(), is_cold=is_cold)

    @invariant()
    def books_agree(self) -> None:
        self.allocator.check_invariants()
        assert self.allocator.allocations() == self.live

    def teardown(self) -> None:
        for offset in self.live:
            self.allocator.free(offset)
        for start in self.warming:
            self.allocator.warmed(start)
        for start in self.punching:
            self.allocator.punched(start)
        self.allocator.check_invariants()
        assert self.allocator.used_bytes == 0
        assert self.allocator.allocate(self.allocator.budget_bytes) is not None


TestAllocatorMachine = AllocatorMachine.TestCase
TestAllocatorMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
