"""When batches begin: every rule with a clock of the test's own, then random histories."""

import random
from collections.abc import Iterator

import pytest

from retinue.serve.batching.batcher import Batcher, Waiting

INF = float("inf")


@pytest.fixture
def made() -> Iterator[list[Batcher]]:
    batchers: list[Batcher] = []
    yield batchers
    for batcher in batchers:
        batcher.check_invariants()


def new(
    made: list[Batcher], size: int = 4, wait_s: float = 1.0, concurrent: int = 1, **options: object
) -> Batcher:
    made.append(Batcher(size, wait_s, concurrent, **options))  # type: ignore[arg-type]
    return made[-1]


def add(batcher: Batcher, *items: object, now: float = 0.0, **options: object) -> list[Waiting]:
    waiting = [Waiting(item, **options) for item in items]  # type: ignore[arg-type]
    for each in waiting:
        batcher.add(each, now)
    return waiting


def begin(batcher: Batcher, now: float) -> list[object]:
    return [each.item for each in batcher.begin(now)]


def test_a_lone_item_begins_at_once_when_nothing_runs(made: list[Batcher]) -> None:
    batcher = new(made, wait_s=100.0)
    add(batcher, "a")
    assert begin(batcher, 0.0) == ["a"]
    assert begin(batcher, 0.0) == []


def test_items_that_came_together_are_one_batch(made: list[Batcher]) -> None:
    batcher = new(made)
    add(batcher, "a", "b", "c")
    assert begin(batcher, 0.0) == ["a", "b", "c"]


def test_the_next_batch_grows_while_one_runs(made: list[Batcher]) -> None:
    batcher = new(made)
    add(batcher, "a")
    begin(batcher, 0.0)
    add(batcher, *"bcdefg", now=0.1)
    assert begin(batcher, 50.0) == []
    assert batcher.next_tick == INF
    batcher.ended(1, began=0.0, now=60.0)
    assert begin(batcher, 60.0) == ["b", "c", "d", "e"]


def test_with_room_for_another_batch_a_part_waits_for_its_time(made: list[Batcher]) -> None:
    batcher = new(made, concurrent=2)
    add(batcher, "a")
    begin(batcher, 0.0)
    add(batcher, "b", now=0.5)
    assert begin(batcher, 1.0) == []
    assert batcher.next_tick == 1.5
    assert begin(batcher, 1.5) == ["b"]


def test_with_room_for_another_batch_a_full_one_begins(made: list[Batcher]) -> None:
    batcher = new(made, concurrent=2)
    add(batcher, "a")
    begin(batcher, 0.0)
    add(batcher, *"bcde")
    assert begin(batcher, 0.0) == ["b", "c", "d", "e"]


def test_callers_of_the_last_batch_are_waited_for_a_little(made: list[Batcher]) -> None:
    batcher = new(made, wait_s=1.0)
    add(batcher, *"abc")
    begin(batcher, 0.0)
    batcher.ended(3, began=0.0, now=2.0)
    add(batcher, "a", now=2.1)
    assert begin(batcher, 2.1) == []
    assert batcher.next_tick == 2.5  # a quarter of what the last took
    add(batcher, "b", "c", now=2.2)
    assert begin(batcher, 2.2) == ["a", "b", "c"]


def test_they_are_not_waited_for_beyond_the_wait_timeout(made: list[Batcher]) -> None:
    batcher = new(made, wait_s=0.1)
    add(batcher, *"abc")
    begin(batcher, 0.0)
    batcher.ended(3, began=0.0, now=2.0)
    add(batcher, "a", now=2.0)
    assert batcher.next_tick == 2.1
    assert begin(batcher, 2.1) == ["a"]


def test_one_caller_that_comes_again_does_not_wait(made: list[Batcher]) -> None:
    batcher = new(made, wait_s=100.0)
    for now in range(5):
        add(batcher, "a", now=now)
        assert begin(batcher, now) == ["a"]
        batcher.ended(1, began=now, now=now + 0.9)


def test_without_a_wait_timeout_nothing_waits_for_more(made: list[Batcher]) -> None:
    batcher = new(made, wait_s=0.0, concurrent=2)
    add(batcher, "a")
    begin(batcher, 0.0)
    add(batcher, "b")
    assert begin(batcher, 0.0) == ["b"]


def test_removed_items_are_in_no_batch(made: list[Batcher]) -> None:
    batcher = new(made)
    a, b = add(batcher, "a", "b")
    assert batcher.remove(a)
    assert begin(batcher, 0.0) == ["b"]
    assert not batcher.remove(b)
    assert not batcher.remove(a)


def test_late_items_are_in_no_batch(made: list[Batcher]) -> None:
    batcher = new(made)
    add(batcher, "a", deadline=1.0)
    add(batcher, "b", deadline=3.0)
    assert batcher.take_late(0.5) == []
    assert [each.item for each in batcher.take_late(1.0)] == ["a"]
    assert begin(batcher, 1.0) == ["b"]
    assert batcher.take_late(9.0) == ()


def test_a_deadline_is_something_to_wake_for_while_a_batch_runs(made: list[Batcher]) -> None:
    batcher = new(made)
    add(batcher, "a")
    begin(batcher, 0.0)
    add(batcher, "b", deadline=7.0)
    assert batcher.next_tick == 7.0


def test_models_are_not_mixed(made: list[Batcher]) -> None:
    batcher = new(made, concurrent=2, wait_s=0.0)
    add(batcher, "a1", key="a")
    add(batcher, "b1", key="b")
    add(batcher, "a2", key="a")
    assert begin(batcher, 0.0) == ["a1", "a2"]
    assert begin(batcher, 0.0) == ["b1"]


def test_sizes_are_what_the_user_counts(made: list[Batcher]) -> None:
    batcher = new(made, size=10, size_of=sum)
    add(batcher, 4, 5, 3, 2)
    assert begin(batcher, 0.0) == [4, 5]
    batcher.ended(2, began=0.0, now=0.0)
    assert begin(batcher, 0.0) == [3, 2]


def test_an_item_above_the_limit_is_told_apart(made: list[Batcher]) -> None:
    batcher = new(made, size=10, size_of=sum)
    add(batcher, 11, 5)
    oversized = batcher.take_oversized()
    assert oversized is not None
    assert oversized.item == 11
    assert batcher.take_oversized() is None
    assert begin(batcher, 0.0) == [5]


def test_other_settings_count_from_the_next_batch(made: list[Batcher]) -> None:
    batcher = new(made, size=4)
    add(batcher, *range(10))
    assert len(begin(batcher, 0.0)) == 4
    batcher.max_batch_size = 2
    batcher.max_concurrent_batches = 2
    assert len(begin(batcher, 0.0)) == 2


@pytest.mark.parametrize("seed", range(200))
def test_in_any_history_every_item_is_done_once_in_order_and_in_time(seed: int) -> None:
    rng = random.Random(seed)
    size, wait_s, concurrent = rng.randint(1, 5), rng.choice([0.0, 0.5, 2.0]), rng.randint(1, 3)
    batcher = Batcher(size, wait_s, concurrent)
    now, count = 0.0, 0
    running: list[tuple[float, float, int]] = []  # end, beginning, size
    waiting: dict[int, Waiting] = {}
    done: list[int] = []
    gone: set[int] = set()
    for _ in range(300):
        now += rng.choice([0.0, 0.1, 1.0])
        for end in [each for each in running if each[0] <= now]:
            running.remove(end)
            batcher.ended(end[2], began=end[1], now=now)
        if rng.random() < 0.6:
            waiting[count] = Waiting(count, deadline=rng.choice([0.0, now + 0.3, now + 5]))
            batcher.add(waiting[count], now)
            count += 1
        if waiting and rng.random() < 0.1:
            chosen = rng.choice(list(waiting))
            assert batcher.remove(waiting.pop(chosen))
            gone.add(chosen)
        for late in batcher.take_late(now):
            assert 0 < late.deadline <= now
            del waiting[late.item]
            gone.add(late.item)
        while batch := batcher.begin(now):
            assert len(batch) <= size
            assert len(running) < concurrent
            for each in batch:
                assert not 0 < each.deadline <= now
                del waiting[each.item]
                done.append(each.item)
            running.append((now + rng.choice([0.1, 0.5, 3.0]), now, len(batch)))
        batcher.check_invariants()
        assert len(batcher) == len(waiting)
        if waiting and len(running) < concurrent:
            oldest = min(waiting)
            # Work is conserved: nothing waits beside an idle model for longer than the wait timeout.
            assert now - waiting[oldest].arrived < wait_s or batcher.next_tick > now
            assert batcher.next_tick <= now + wait_s
    assert done == sorted(done)
    assert not gone & set(done)
