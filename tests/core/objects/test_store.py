"""The store's rules, one each. `test_store_random.py` checks that they hold together."""

from collections.abc import Iterator

import pytest

from retinue.core.objects.census import ObjectInfo
from retinue.core.objects.decisions import (
    FILE_KEYS,
    DeleteFile,
    Evicted,
    GetFailed,
    Grant,
    GrantFile,
    Holder,
    Located,
    LocatedInFile,
    Lost,
    MakeFile,
    Punch,
    RecallSlab,
    Refuse,
    Restore,
    Spill,
    SpillPart,
    Wanted,
    Warm,
)
from retinue.core.objects.layout import HUGE, PAGE
from retinue.core.objects.store import ObjectStore, StoreProtocolError

MIB = 1 << 20
BUDGET = 16 * MIB


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    store = ObjectStore(budget_bytes=BUDGET, reserve_bytes=0, spill_batch_bytes=4 * MIB)
    for client_id in ("agent", "a", "b"):
        store.client_joined(client_id)
    yield store
    store.check_invariants()


def put(store: ObjectStore, object_id: bytes, size: int, *, client: str = "a", **how: object) -> int:
    """Put an object of its own allocation; returns its offset."""
    (grant,) = store.request_single(client, object_id, size, now=0.0)
    assert isinstance(grant, Grant)
    assert store.seal(client, object_id, grant.offset, size, **how) == []  # type: ignore[arg-type]
    return grant.offset


def fill(store: ObjectStore, **how: object) -> list[int]:
    return [put(store, b"fill%d" % index, 4 * MIB, **how) for index in range(4)]


def spill_all(store: ObjectStore, decisions: list) -> list:
    """Finish every spill among the decisions; returns what the store says last."""
    last: list = []
    for spill in decisions:
        assert isinstance(spill, Spill)
        last = store.spill_done(spill.file_id)
    return last


# Putting and getting


def test_object_exists_once_it_is_sealed(store: ObjectStore) -> None:
    (grant,) = store.request_single("a", 1, 5 * MIB, now=0.0)
    assert grant == Grant("a", 1, 0, 5 * MIB, is_slab=False, is_warm=False)
    assert b"x" not in store
    store.seal("a", b"x", 0, 5 * MIB - 100)
    assert b"x" in store
    assert store.get("b", 7, b"x", now=0.0) == [Located("b", 7, b"x", 0, 5 * MIB - 100)]


def test_small_objects_share_a_slab(store: ObjectStore) -> None:
    (grant,) = store.request_slab("a", 1, HUGE, min_size=100, now=0.0)
    assert grant == Grant("a", 1, 0, HUGE, is_slab=True, is_warm=False)
    store.seal("a", b"x", 0, 100)
    store.seal("a", b"y", 128, 100)
    assert store.get("b", 1, b"y", now=0.0) == [Located("b", 1, b"y", 128, 100)]
    store.close_slab("a", 0, used=256)
    assert store.used_bytes == PAGE
    store.free([b"x"])
    assert store.used_bytes == PAGE
    store.free([b"y"])
    assert store.used_bytes == PAGE, "y is pinned"
    store.unpin("b", 128)
    assert store.used_bytes == 0


def test_get_waits_for_an_object_that_is_not_here(store: ObjectStore) -> None:
    assert store.get("b", 1, b"x", now=0.0) == [Wanted(b"x")]
    assert store.get("b", 2, b"x", now=0.0) == []
    assert store.get("a", 1, b"x", now=0.0) == []
    store.cancel_get("b", 2)
    (grant,) = store.request_single("agent", 1, PAGE, now=0.0)
    assert isinstance(grant, Grant)
    assert store.seal("agent", b"x", grant.offset, PAGE, is_primary=False) == [
        Located("b", 1, b"x", grant.offset, PAGE),
        Located("a", 1, b"x", grant.offset, PAGE),
    ]


def test_seal_can_pin_for_the_one_who_wrote(store: ObjectStore) -> None:
    offset = put(store, b"x", PAGE, pins=2)
    store.free([b"x"])
    store.unpin("a", offset, count=2)
    assert store.used_bytes == 0


def test_freed_object_stays_while_it_is_pinned(store: ObjectStore) -> None:
    offset = put(store, b"x", PAGE, pins=1)
    store.free([b"x"])
    assert b"x" not in store
    assert store.snapshot() == [ObjectInfo(b"x", PAGE, "freed", False, {"a": 1})]
    assert store.pinned_bytes == PAGE
    store.unpin("a", offset)
    assert store.snapshot() == []


def test_second_copy_of_an_object_is_dropped(store: ObjectStore) -> None:
    put(store, b"x", PAGE, is_primary=False)
    put(store, b"x", PAGE)
    assert store.used_bytes == PAGE
    info = store.info(b"x")
    assert info
    assert info.is_primary, "the copy that is here takes the role over"


def test_free_that_overtook_the_seal_still_counts(store: ObjectStore) -> None:
    store.free([b"x"])
    put(store, b"x", PAGE)
    assert (len(store), store.used_bytes) == (0, 0)


# Deaths


def test_death_drops_pins_and_unsealed_space_and_keeps_what_was_sealed(store: ObjectStore) -> None:
    store.request_slab("a", 1, 4 * MIB, min_size=100, now=0.0)
    store.seal("a", b"x", 64, 100)
    store.request_single("a", 2, 5 * MIB, now=0.0)
    offset = put(store, b"y", PAGE, client="b")
    store.get("a", 3, b"y", now=0.0)
    store.get("a", 4, b"absent", now=0.0)
    store.client_died("a")
    assert store.used_bytes == PAGE + PAGE
    assert store.pinned_bytes == 0
    assert b"x" in store
    store.free([b"x", b"y"])
    assert store.used_bytes == 0
    with pytest.raises(StoreProtocolError, match="has not joined"):
        store.unpin("a", offset)


def test_death_makes_room_for_those_who_wait(store: ObjectStore) -> None:
    store.request_single("a", 1, BUDGET, now=0.0)
    assert store.request_single("b", 1, MIB, now=0.0) == []
    assert store.client_died("a") == [Grant("b", 1, 0, MIB, is_slab=False, is_warm=True)]


# Full


def test_secondary_copies_go_first(store: ObjectStore) -> None:
    put(store, b"primary", 8 * MIB)
    put(store, b"old copy", 4 * MIB, is_primary=False)
    put(store, b"copy", 4 * MIB, is_primary=False)
    evicted, grant = store.request_single("a", 1, 4 * MIB, now=0.0)
    assert evicted == Evicted(b"old copy")
    assert isinstance(grant, Grant)


def test_pinned_copies_are_not_evicted(store: ObjectStore) -> None:
    offset = put(store, b"copy", BUDGET, is_primary=False, pins=1)
    assert store.request_single("b", 1, MIB, now=0.0) == []
    evicted, grant = store.unpin("a", offset)
    assert evicted == Evicted(b"copy")
    assert isinstance(grant, Grant)


def test_oldest_primaries_are_spilled_and_come_back(store: ObjectStore) -> None:
    offsets = fill(store)
    (spill,) = store.request_single("b", 1, MIB, now=0.0)
    assert spill == Spill(1, 4 * MIB, (SpillPart(b"fill0", offsets[0], 4 * MIB, 0),))
    (grant,) = store.spill_done(1)
    assert isinstance(grant, Grant)
    store.abort("b", grant.offset)
    (restore,) = store.get("b", 2, b"fill0", now=0.0)
    assert isinstance(restore, Restore)
    assert (restore.file_id, restore.file_offset, restore.size) == (1, 0, 4 * MIB)
    assert store.restore_done(restore.offset) == [Located("b", 2, b"fill0", restore.offset, 4 * MIB)]
    assert store.free([b"fill0"]) == [DeleteFile(1)], "the pinned copy in memory does not need it"


def test_restored_objects_leave_again_without_a_write(store: ObjectStore) -> None:
    fill(store)
    (grant,) = spill_all(store, store.request_single("b", 1, 4 * MIB, now=0.0))
    store.abort("b", grant.offset)
    (restore,) = store.get("b", 2, b"fill0", now=0.0)
    store.restore_done(restore.offset)
    store.unpin("b", restore.offset)
    (grant,) = store.request_single("b", 3, 4 * MIB, now=0.0)
    assert isinstance(grant, Grant)
    info = store.info(b"fill0")
    assert info
    assert info.state == "file"


def test_small_objects_are_fused_into_one_file(store: ObjectStore) -> None:
    store.request_slab("a", 1, 4 * MIB, min_size=100, now=0.0)
    for index in range(3):
        store.seal("a", b"%d" % index, index * 5120, 5000)
    store.close_slab("a", 0, used=4 * MIB)
    (spill,) = store.request_single("b", 1, BUDGET, now=0.0)
    assert isinstance(spill, Spill)
    assert spill.size == 3 * 2 * PAGE
    assert [part.file_offset for part in spill.parts] == [0, 2 * PAGE, 4 * PAGE]
    assert store.free([b"1", b"2"]) == []
    (grant,) = store.spill_done(spill.file_id)
    assert isinstance(grant, Grant)
    assert store.spilled_bytes == 5000
    assert store.free([b"0"]) == [DeleteFile(spill.file_id)]


def test_object_pinned_while_it_is_spilled_stays_in_memory(store: ObjectStore) -> None:
    put(store, b"x", BUDGET)
    (spill,) = store.request_single("b", 1, MIB, now=0.0)
    (located,) = store.get("b", 2, b"x", now=0.0)
    assert store.spill_done(spill.file_id) == []
    (grant,) = store.unpin("b", located.offset)
    assert isinstance(grant, Grant), "it is on disk already"


def test_requests_are_served_in_order(store: ObjectStore) -> None:
    offset = put(store, b"x", BUDGET, pins=1)
    assert store.request_single("b", 1, 12 * MIB, now=0.0) == []
    assert store.request_single("a", 2, PAGE, now=0.1) == []
    store.free([b"x"])
    granted = store.unpin("a", offset)
    assert [decision.request_id for decision in granted] == [1, 2]


def test_open_slabs_are_asked_back_when_nothing_else_is_left(store: ObjectStore) -> None:
    store.request_slab("a", 1, BUDGET, min_size=100, now=0.0)
    store.seal("a", b"x", 0, 100, pins=1)
    assert store.request_single("b", 1, MIB, now=0.0) == [RecallSlab("a", 0)]
    assert store.request_single("b", 2, MIB, now=0.0) == []
    granted = store.close_slab("a", 0, used=128)
    assert [decision.request_id for decision in granted] == [1, 2]


def test_slab_is_smaller_when_space_is_short(store: ObjectStore) -> None:
    put(store, b"x", 13 * MIB, pins=1)
    (grant,) = store.request_slab("a", 1, 8 * MIB, min_size=100_000, now=0.0)
    assert isinstance(grant, Grant)
    assert grant.size == HUGE


def test_put_that_waited_a_second_is_made_in_a_file(store: ObjectStore) -> None:
    put(store, b"x", BUDGET, pins=1)
    store.request_slab("b", 1, 4 * MIB, min_size=5000, now=5.0)
    assert store.next_deadline() == 6.0
    assert store.tick(now=5.9) == []
    assert store.tick(now=6.0) == [MakeFile(1, 2 * PAGE)]
    (grant,) = store.file_made(1)
    assert isinstance(grant, GrantFile)
    assert grant.key >= FILE_KEYS
    store.get("a", 2, b"y", now=6.0)
    (located,) = store.seal("b", b"y", grant.key, 5000)
    assert located == LocatedInFile("a", 2, b"y", grant.key, 1, 0, 5000)
    assert store.free([b"y"]) == [], "pinned"
    assert store.unpin("a", grant.key) == [DeleteFile(1)]


def test_object_larger_than_the_store_is_made_in_a_file_at_once(store: ObjectStore) -> None:
    (make,) = store.request_single("a", 1, 2 * BUDGET, now=0.0)
    assert isinstance(make, MakeFile)
    (grant,) = store.file_made(make.file_id)
    store.seal("a", b"x", grant.key, 2 * BUDGET)
    (located,) = store.get("b", 1, b"x", now=0.0)
    assert isinstance(located, LocatedInFile)


def test_spilled_object_is_mapped_where_it_lies_when_it_cannot_come_back(store: ObjectStore) -> None:
    put(store, b"x", BUDGET)
    (grant,) = spill_all(store, store.request_single("a", 1, BUDGET, now=0.0))
    store.seal("a", b"y", grant.offset, BUDGET, pins=1)
    assert store.get("b", 1, b"x", now=0.0) == []
    (located,) = store.tick(now=1.0)
    assert isinstance(located, LocatedInFile)
    assert store.free([b"x"]) == []
    assert store.unpin("b", located.key) == [DeleteFile(located.file_id)]


def test_full_disk_refuses_and_names_the_largest_holders(store: ObjectStore) -> None:
    put(store, b"x", 10 * MIB, pins=1)
    put(store, b"y", 4 * MIB, client="b", pins=1)
    store.request_single("b", 1, 2 * MIB, now=0.0)
    store.request_single("a", 2, 3 * MIB, now=0.0)
    (make,) = store.tick(now=1.0)
    assert store.file_failed(make.file_id, "no space left on device") == [
        Refuse(
            "a",
            2,
            3 * MIB,
            "no space left on device",
            (Holder("a", 10 * MIB, 0), Holder("b", 4 * MIB, 2 * MIB)),
        ),
        DeleteFile(make.file_id),
    ]


def test_nothing_is_spilled_for_a_second_after_the_disk_was_full(store: ObjectStore) -> None:
    put(store, b"x", BUDGET)
    (spill,) = store.request_single("b", 1, MIB, now=0.0)
    assert store.spill_failed(spill.file_id, now=0.2) == [DeleteFile(spill.file_id)]
    assert store.tick(now=0.9) == []
    again, make = store.tick(now=1.2)
    assert isinstance(again, Spill)
    assert isinstance(make, MakeFile)


def test_object_that_cannot_be_read_back_is_lost(store: ObjectStore) -> None:
    fill(store)
    (grant,) = spill_all(store, store.request_single("b", 1, 4 * MIB, now=0.0))
    store.abort("b", grant.offset)
    (restore,) = store.get("b", 2, b"fill0", now=0.0)
    assert store.restore_failed(restore.offset, "input/output error") == [
        Lost(b"fill0", "input/output error"),
        GetFailed("b", 2, b"fill0", "input/output error"),
        DeleteFile(restore.file_id),
    ]


# Memory


def test_cold_space_past_the_budget_is_paid_for_with_warm_space(store: ObjectStore) -> None:
    fill(store)
    store.free([b"fill0", b"fill2"])
    grant, *punches = store.request_single("a", 1, 6 * MIB, now=0.0)
    assert grant == Grant("a", 1, 16 * MIB, 6 * MIB, is_slab=False, is_warm=False)
    assert {type(punch) for punch in punches} == {Punch}
    assert sum(punch.size for punch in punches) == 6 * MIB
    assert store.touched_bytes == BUDGET


def test_range_that_could_not_be_punched_is_tried_again_with_the_next_fact(store: ObjectStore) -> None:
    fill(store)
    store.free([b"fill0"])
    punch = store.request_single("a", 1, 3 * MIB, now=0.0)
    assert [type(decision) for decision in punch] == [Grant], "warm space was used"
    (grant, *punches) = [*store.request_single("a", 2, MIB - PAGE, now=0.0), *store.free([b"fill2"])]
    assert isinstance(grant, Grant)
    assert punches == []
    grant, punch, *_ = store.request_single("a", 3, 4 * MIB + PAGE, now=0.0)
    assert isinstance(punch, Punch)
    assert store.finished(punch, "in use", now=0.0) == []
    assert punch in store.tick(now=0.0)


def test_a_reserve_is_touched_ahead_from_the_first_grant_on() -> None:
    store = ObjectStore(budget_bytes=128 * MIB, reserve_bytes=24 * MIB)
    store.client_joined("a")
    grant, warm = store.request_single("a", 1, MIB, now=0.0)
    assert isinstance(grant, Grant)
    assert warm == Warm(HUGE, 16 * MIB)
    (rest,) = store.warmed(warm.offset)
    assert isinstance(rest, Warm)
    assert rest.size == 8 * MIB
    assert store.warmed(rest.offset) == []
    (grant,) = store.request_single("a", 2, 20 * MIB, now=0.0)[:1]
    assert isinstance(grant, Grant)
    assert grant.is_warm
    store.check_invariants()


# What clients may not say


def test_contradictions_are_refused_and_change_nothing(store: ObjectStore) -> None:
    store.request_slab("a", 1, HUGE, min_size=100, now=0.0)
    store.request_single("a", 2, 5 * MIB, now=0.0)
    offset = put(store, b"x", PAGE, client="b")
    store.seal("a", b"y", 0, 100)
    used = store.used_bytes
    wrong = [
        lambda: store.client_joined("a"),
        lambda: store.seal("a", b"z", offset, PAGE),  # not its space
        lambda: store.seal("a", b"z", HUGE - 50, 100),  # past the slab's end
        lambda: store.seal("a", b"z", HUGE + 64, 100),  # inside a single
        lambda: store.seal("a", b"z", 0, 100),  # twice
        lambda: store.seal("a", b"z", 64, 0),
        lambda: store.seal("a", b"z", FILE_KEYS + 9, 10),
        lambda: store.unpin("a", offset),
        lambda: store.close_slab("a", HUGE, used=0),
        lambda: store.abort("a", 0),
        lambda: store.request_single("a", 3, 0, now=0.0),
        lambda: store.request_slab("a", 3, 10, min_size=20, now=0.0),
        lambda: store.get("nobody", 1, b"x", now=0.0),
    ]
    for call in wrong:
        with pytest.raises(StoreProtocolError):
            call()
        store.check_invariants()
    assert store.used_bytes == used


def test_counters_add_up(store: ObjectStore) -> None:
    fill(store)
    put_bytes = 4 * 4 * MIB
    (grant,) = spill_all(store, store.request_single("b", 1, 4 * MIB, now=0.0))
    store.abort("b", grant.offset)
    (restore,) = store.get("b", 2, b"fill0", now=0.0)
    store.restore_done(restore.offset)
    counters = store.counters
    assert (counters.put_objects, counters.put_bytes) == (4, put_bytes)
    assert (counters.spilled_objects, counters.spilled_bytes) == (1, 4 * MIB)
    assert (counters.restored_objects, counters.restored_bytes) == (1, 4 * MIB)
