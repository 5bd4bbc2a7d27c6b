from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.core.client.tasks import TaskRecord
from retinue.core.ownership.table import ACTOR, ERROR, INLINE, LOST, PENDING, STORED, OwnershipTable
from retinue.core.wire.messages import Address

NODE, OTHER_NODE = b"n" * 16, b"o" * 16
OWNER = Address(b"owner".ljust(16), NODE, "/owner")
BORROWER = b"borrower".ljust(16)
ACTOR_ID = b"actor".ljust(16)


def oid(name: str) -> bytes:
    return name.encode().ljust(28, b"-")


A, B, C = oid("a"), oid("b"), oid("c")


def task(*deps: bytes, returns: int = 1) -> TaskRecord:
    return TaskRecord(
        b"t" * 24, None, args=b"arguments", deps=deps, num_returns=returns, live_returns=returns
    )


@pytest.fixture
def table():
    table = OwnershipTable()
    yield table
    table.check_invariants()


def test_put_lives_as_long_as_its_references(table):
    table.own_inline(A, b"blob")
    table.add_ref(A, None)
    table.drop_refs([A])
    assert A in table.entries
    table.drop_refs([A])
    assert A not in table.entries
    assert table.take_effects() is None


def test_stored_object_is_freed_where_it_lies(table):
    table.own_stored(A, 10, NODE)
    table.copy_added(A, OTHER_NODE)
    table.drop_refs([A])
    assert table.take_effects().free == [(A, (NODE, OTHER_NODE))]
    assert table.take_effects() is None


def test_use_keeps_an_object_without_references(table):
    table.own_inline(A, b"blob")
    table.use(A)
    table.drop_refs([A])
    assert A in table.entries
    table.unuse(A)
    assert not table.entries


def test_borrower_keeps_an_object_and_its_death_lets_it_go(table):
    table.own_inline(A, b"blob")
    table.own_inline(B, b"blob")
    for object_id in (A, B):
        assert table.add_borrower(object_id, BORROWER, 2)
    table.drop_refs([A, B])
    table.remove_borrower(A, BORROWER, 1)
    assert A in table.entries
    table.remove_borrower(A, BORROWER, 1)
    assert A not in table.entries
    table.borrower_gone(BORROWER)
    assert not table.entries
    table.remove_borrower(B, BORROWER, 1)
    assert not table.add_borrower(B, BORROWER, 1)


def test_count_that_arrives_before_the_removal_of_older_ones_survives_it(table):
    table.own_inline(A, b"blob")
    table.add_borrower(A, BORROWER, 1)
    table.add_borrower(A, BORROWER, 1)  # somebody hands it to the same process again
    table.drop_refs([A])
    table.remove_borrower(A, BORROWER, 1)  # sent before it got that
    assert A in table.entries


def test_container_holds_what_is_in_it(table):
    table.own_inline(A, b"inner")
    table.use(A)
    table.own_inline(B, b"outer", [A])
    table.drop_refs([A])
    assert A in table.entries
    table.drop_refs([B])
    assert not table.entries


def test_waiters_are_returned_once(table):
    table.own(A, None).waiters = ["waiter"]
    assert table.resolve(A, INLINE, blob=b"x") == ["waiter"]
    assert table.resolve(A, ERROR, blob=b"y") == []
    assert table.entries[A].blob == b"x"


def test_result_that_nobody_wants_is_let_go_of_with_what_it_holds(table):
    table.own(A, task())
    table.drop_refs([A])
    table.own_inline(B, b"inner")
    table.use(B)
    table.drop_refs([B])
    table.resolve(A, STORED, size=5, nodes=(NODE,), contained=[B])
    assert not table.entries
    assert table.take_effects().free == [(A, (NODE,))]


def test_second_result_of_a_task_that_ran_again_adds_its_copy(table):
    table.own(A, task())
    table.resolve(A, STORED, size=5, nodes=(NODE,))
    table.resolve(A, STORED, size=5, nodes=(OTHER_NODE,))
    table.resolve(A, STORED, size=5, nodes=(OTHER_NODE,))
    assert table.entries[A].nodes == (NODE, OTHER_NODE)


def test_stored_result_of_a_call_that_was_given_up_is_freed(table):
    table.own(A, task())
    table.resolve(A, ERROR, blob=b"cancelled")
    table.resolve(A, STORED, size=5, nodes=(NODE,))
    assert table.take_effects().free == [(A, (NODE,))]


def test_answer_of_a_foreign_owner_frees_nothing(table):
    # The reference was dropped while its owner was asked: the object is not ours to free.
    table.add_ref(A, OWNER)
    table.drop_refs([A])
    assert table.located(A, STORED, size=5, nodes=(NODE,)) == []
    assert table.take_effects() is None
    table.add_ref(A, OWNER).waiters = ["waiter"]
    assert table.located(A, STORED, size=5, nodes=(NODE,)) == ["waiter"]
    assert table.located(A, STORED, size=5, nodes=(OTHER_NODE,)) == []
    assert table.entries[A].nodes == (NODE,)


def test_arguments_are_held_until_the_call_is_over(table):
    table.own_inline(A, b"argument")
    table.use(A)
    call = task(A)
    table.own(B, call)
    table.drop_refs([A])
    assert A in table.entries
    table.resolve(B, INLINE, blob=b"x")
    table.task_done(call, keep_lineage=False)
    assert A not in table.entries
    assert call.args == b"", "a result that is held keeps its call's arguments"


def test_lineage_holds_the_arguments_as_long_as_any_return_is_wanted(table):
    table.own_inline(A, b"argument")
    table.use(A)
    call = task(A, returns=2)
    table.own(B, call)
    table.own(C, call)
    table.drop_refs([A])
    for object_id in (B, C):
        table.resolve(object_id, STORED, nodes=(NODE,))
    table.task_done(call, keep_lineage=True)
    assert call.args
    table.drop_refs([B])
    assert A in table.entries
    table.drop_refs([C])
    assert not table.entries


def test_lineage_is_not_kept_for_returns_that_nobody_waited_for(table):
    table.own_inline(A, b"argument")
    table.use(A)
    call = task(A)
    table.own(B, call)
    table.drop_refs([A, B])
    table.task_done(call, keep_lineage=True)
    assert not table.entries


def test_list_of_references_longer_than_the_stack_is_let_go_of(table):
    previous: list[bytes] | None = None
    for i in range(20_000):
        object_id = oid(str(i))
        table.own_inline(object_id, b"node", previous)
        table.use(object_id)
        table.drop_refs([object_id])
        previous = [object_id]
    table.unuse_all(previous)
    assert not table.entries


def test_chain_of_tasks_longer_than_the_stack_is_let_go_of(table):
    previous: tuple[bytes, ...] = ()
    for i in range(20_000):
        object_id = oid(str(i))
        call = task(*previous)
        table.own(object_id, call)
        table.resolve(object_id, STORED, nodes=(NODE,))
        table.task_done(call, keep_lineage=True)
        table.use(object_id)
        table.drop_refs([object_id])
        previous = (object_id,)
    table.unuse_all(previous)
    assert not table.entries
    assert len(table.take_effects().free) == 20_000


def test_borrowed_reference_returns_all_its_counts_at_once(table):
    table.add_ref(A, OWNER)
    table.counted(A, OWNER)
    table.counted(A, OWNER, 2)
    table.drop_refs([A])
    assert table.take_effects().uncount == [(OWNER, A, 3)]


def test_count_that_comes_after_the_reference_went_is_returned(table):
    table.counted(A, OWNER)
    assert table.take_effects().uncount == [(OWNER, A, 1)]


def test_borrowed_reference_that_nobody_counted_tells_nobody(table):
    table.add_ref(A, OWNER)
    table.drop_refs([A])
    assert table.take_effects() is None


def test_unknown_object_of_ours_is_lost_instead_of_pending_for_ever(table):
    assert table.add_ref(A, None).state == LOST
    assert table.use(B).state == LOST
    assert table.use(C, OWNER).state == PENDING
    assert table.use(ACTOR_ID, OWNER).state == ACTOR


def test_last_copy_of_our_object_is_reported_lost(table):
    table.own_stored(A, 5, NODE)
    table.copy_added(A, OTHER_NODE)
    assert not table.copy_lost(A, NODE)
    assert not table.copy_lost(A, NODE)
    assert table.copy_lost(A, OTHER_NODE)
    table.make_pending(A)
    assert table.entries[A].state == PENDING
    assert not table.copy_lost(A, NODE)
    assert not table.copy_lost(B, NODE)


def test_copy_of_an_object_that_is_gone_is_not_wanted(table):
    assert not table.copy_added(A, NODE)


def test_last_handle_of_an_actor_releases_it(table):
    table.own_actor(ACTOR_ID, refs=1)
    table.add_borrower(ACTOR_ID, BORROWER, 1)
    table.drop_refs([ACTOR_ID])
    assert table.take_effects() is None
    table.remove_borrower(ACTOR_ID, BORROWER, 1)
    assert table.take_effects().release_actors == [ACTOR_ID]


def test_foreign_owners_are_those_of_borrowed_references(table):
    table.own_inline(A, b"x")
    table.add_ref(B, OWNER)
    assert table.foreign_owners() == {OWNER.worker_id}


# --- references that arrive together, and many entries


def test_references_of_a_value_are_counted_together(table):
    table.add_ref(A, OWNER)
    table.counted(A, OWNER)
    assert table.add_refs([A, B, B], OWNER) == [B, B]
    assert (table.entries[A].refs, table.entries[B].refs) == (2, 2)
    assert table.entries[B].owner == OWNER
    table.drop_refs([A, B, A])
    assert list(table.entries) == [B]
    table.drop_refs([B])
    assert table.take_effects().uncount == [(OWNER, A, 1)]


def test_references_that_arrive_together_to_objects_let_go_of_are_lost(table):
    table.own_inline(A, b"blob")
    assert table.add_refs([A, B], None) == [B]
    assert table.entries[B].state == LOST
    assert table.add_refs([B], None) == [B]
    table.drop_refs([A, A, B, B])
    assert not table.entries


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans(), st.booleans()), max_size=40))
def test_counting_together_is_counting_one_by_one(steps):
    together, one_by_one = OwnershipTable(), OwnershipTable()
    for number, is_ours, is_counted in steps:
        object_id = oid(str(number) + "o" * is_ours)
        owner = None if is_ours else OWNER
        more = together.add_refs([object_id], owner)
        entry = one_by_one.add_ref(object_id, owner)
        assert bool(more) == (entry.state == LOST if is_ours else not entry.counted)
        if is_counted and not is_ours:
            together.counted(object_id, OWNER)
            one_by_one.counted(object_id, OWNER)
    assert dict(together.entries.items()) == dict(one_by_one.entries.items())
    together.check_invariants()


def test_entries_are_found_whichever_dict_they_lie_in(table):
    ids = [b"p" * 12 + number.to_bytes(8, "little") + b"j" * 8 for number in range(1000)]
    assert not table.entries
    assert len(table.entries) == 0
    for object_id in ids:
        table.own_inline(object_id, object_id)
    assert table.entries
    assert len(table.entries) == 1000
    assert [table.entries[i].blob for i in ids] == ids
    assert all(i in table.entries for i in ids)
    assert A not in table.entries
    assert table.entries.get(A) is None
    assert list(table.entries) == [entry.blob for entry in table.entries.values()]
    table.drop_refs(ids[:999])
    assert list(table.entries) == ids[999:]


def test_entries_of_calls_come_about_oldest_first(table):
    ids = [b"p" * 12 + number.to_bytes(8, "little") + b"j" * 8 for number in range(5000)]
    for object_id in ids:
        table.own(object_id, None)
    places = {object_id: place for place, object_id in enumerate(ids)}
    assert max(abs(place - places[i]) for place, i in enumerate(table.entries)) < 256


def test_an_error_that_nobody_asked_for_is_told_once_when_it_is_let_go_of(table):
    call = task(returns=2)
    for object_id in (A, B):
        table.own(object_id, call)
        table.resolve(object_id, ERROR, blob=b"error")
    table.drop_refs([A])
    assert table.take_effects().unread == [(call, b"error")]
    table.drop_refs([B])
    assert table.take_effects() is None


@pytest.mark.parametrize("flag", ["is_error_told", "is_cancelled"])
def test_an_error_that_somebody_saw_or_wanted_is_not_told(table, flag):
    call = task()
    table.own(A, call)
    table.resolve(A, ERROR, blob=b"error")
    setattr(call, flag, True)
    table.drop_refs([A])
    assert table.take_effects() is None
