from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from retinue.core import references
from retinue.core.client.ownership import OwnershipService
from retinue.core.client.streams import StreamState
from retinue.core.ids import return_id
from retinue.core.ownership.table import ERROR, INLINE, STORED, OwnershipTable
from retinue.core.serialization import serialize, serialize_error
from retinue.core.wire.messages import Address, RefCount, Reply, ReturnInfo, StreamItem

TASK = b"t" * 24
US, OTHER = Address(b"u" * 16, b"n" * 16, ""), Address(b"o" * 16, b"n" * 16, "")
INNER = b"i" * 28


@pytest.fixture
def runtime() -> Iterator[Any]:
    peers = SimpleNamespace(handlers={})
    runtime = SimpleNamespace(table=OwnershipTable(), peers=peers, address=US)
    runtime.ownership = OwnershipService(runtime)  # type: ignore[arg-type]
    references.bind(runtime)
    yield runtime
    references.bind(None)
    runtime.table.drop_refs(references.dropped)
    references.dropped.clear()
    runtime.table.check_invariants()


def item(index: int, *, node_id: bytes = b"", contained: list[RefCount] | None = None) -> StreamItem:
    return StreamItem(TASK, index, ReturnInfo(10, node_id, False, contained or []))


BLOB = serialize("item").to_bytes()


def test_a_repeated_item_is_not_given_twice_and_its_references_are_let_go_of(runtime: Any) -> None:
    state = StreamState(TASK)
    inner = [RefCount(INNER, OTHER)]
    state.item(runtime, item(0, contained=inner), BLOB)
    state.item(runtime, item(0, contained=inner), BLOB)
    assert len(state.items) == 1
    assert runtime.table.entries[INNER].uses == 1
    assert runtime.table.entries[INNER].counted == 2
    state.items.clear()
    runtime.table.drop_refs(references.dropped)
    references.dropped.clear()
    assert runtime.table.take_effects().uncount == [(OTHER, INNER, 2)]


def test_a_repeated_item_on_another_node_is_a_copy_or_is_freed(runtime: Any) -> None:
    state = StreamState(TASK)
    state.item(runtime, item(0, node_id=b"first"), b"")
    state.item(runtime, item(0, node_id=b"second"), b"")
    object_id = return_id(TASK, 1)
    assert set(runtime.table.entries[object_id].nodes) == {b"first", b"second"}
    state.items.clear()
    runtime.table.drop_refs(references.dropped)
    references.dropped.clear()
    runtime.table.take_effects()
    state.item(runtime, item(0, node_id=b"third"), b"")
    assert runtime.table.take_effects().free == [(object_id, (b"third",))]


def test_the_end_comes_once(runtime: Any) -> None:
    state = StreamState(TASK)
    blob = serialize_error(ValueError("cancelled"))
    state.finished(blob)
    state.finished(blob)
    state.finished(None)
    assert len(state.items) == 1
    state.item(runtime, item(5), BLOB)
    assert len(state.items) == 1, "nothing comes behind the end"


def test_an_error_at_the_end_holds_the_references_inside_it(runtime: Any) -> None:
    state = StreamState(TASK)
    runtime.ownership.take_contained([RefCount(INNER, OTHER)])
    state.finished(serialize_error(ValueError("with a reference")), [INNER])
    runtime.table.unuse(INNER)
    assert runtime.table.entries[INNER].uses == 1
    state.items.clear()
    runtime.table.drop_refs(references.dropped)
    references.dropped.clear()
    assert INNER not in runtime.table.entries


def test_returns_of_a_call_that_nobody_waits_for_are_let_go_of(runtime: Any) -> None:
    infos = [ReturnInfo(10, b"node"), ReturnInfo(5, b"", False, [RefCount(INNER, OTHER)])]
    runtime.ownership.refuse_returns(Reply(TASK, 0, 0, infos))
    effects = runtime.table.take_effects()
    assert effects.free == [(return_id(TASK, 0), (b"node",))]
    assert effects.uncount == [(OTHER, INNER, 1)]
    assert not runtime.table.entries


def test_a_late_copy_of_what_is_being_made_again_is_kept(runtime: Any) -> None:
    object_id = return_id(TASK, 0)
    runtime.table.own(object_id, None)
    runtime.ownership.refuse_return(object_id, ReturnInfo(10, b"late"))
    runtime.ownership.take_return(object_id, ReturnInfo(10, b"again"), b"")
    entry = runtime.table.entries[object_id]
    assert entry.state == STORED
    assert set(entry.nodes) == {b"again", b"late"}


def test_a_return_is_a_value_an_error_or_a_place(runtime: Any) -> None:
    for index, (info, state) in enumerate(
        [(ReturnInfo(4), INLINE), (ReturnInfo(4, b"", True), ERROR), (ReturnInfo(4, b"node"), STORED)]
    ):
        object_id = return_id(TASK, index)
        runtime.table.own(object_id, None)
        runtime.ownership.take_return(object_id, info, BLOB)
        assert runtime.table.entries[object_id].state == state
