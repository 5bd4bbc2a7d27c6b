from collections.abc import Iterator

import pytest

from retinue.core.objects.cursor import MAX_SLAB_BYTES, ClosedSlab, SlabCursor, is_single
from retinue.core.objects.layout import HUGE, SINGLE_MIN

MIB = 1 << 20


@pytest.fixture
def cursor() -> Iterator[SlabCursor]:
    cursor = SlabCursor()
    yield cursor
    cursor.check_invariants()


def test_objects_above_four_mib_get_space_of_their_own() -> None:
    assert not is_single(SINGLE_MIN)
    assert is_single(SINGLE_MIN + 1)


def test_places_lie_one_behind_the_other_on_cache_lines(cursor: SlabCursor) -> None:
    assert cursor.take(1) is None
    cursor.granted(4 * MIB, HUGE)
    assert [cursor.take(size) for size in (100, 64, 1)] == [4 * MIB, 4 * MIB + 128, 4 * MIB + 192]
    assert cursor.take(HUGE) is None


def test_slabs_grow_with_use_to_sixteen_mib(cursor: SlabCursor) -> None:
    sizes = []
    for index in range(6):
        sizes.append(cursor.slab_size(100))
        cursor.granted(index * 32 * MIB, sizes[-1])
    assert sizes == [2 * MIB, 4 * MIB, 8 * MIB, 16 * MIB, 16 * MIB, MAX_SLAB_BYTES]


def test_first_slab_has_room_for_the_object_at_hand(cursor: SlabCursor) -> None:
    assert cursor.slab_size(3 * MIB) == 4 * MIB


def test_full_slab_is_closed_when_its_last_write_is_finished(cursor: SlabCursor) -> None:
    cursor.granted(0, HUGE)
    first, second = cursor.take(100), cursor.take(100)
    assert first is not None
    assert second is not None
    assert cursor.finished(second) == []
    assert cursor.granted(HUGE, HUGE) == []
    assert cursor.finished(first) == [ClosedSlab(0, HUGE, used=256)]
    assert cursor.take(10) == HUGE


def test_recalled_slab_takes_no_more_objects(cursor: SlabCursor) -> None:
    cursor.granted(0, HUGE)
    assert cursor.take(10) == 0
    assert cursor.retire(0) == []
    assert cursor.take(10) is None
    assert cursor.finished(0) == [ClosedSlab(0, HUGE, used=64)]


def test_recall_of_a_slab_that_was_closed_meanwhile_changes_nothing(cursor: SlabCursor) -> None:
    cursor.granted(0, HUGE)
    assert cursor.granted(HUGE, HUGE) == [ClosedSlab(0, HUGE, used=0)]
    assert cursor.retire(0) == []
    assert cursor.take(10) == HUGE
