from collections.abc import Iterator

import pytest

from retinue.core.head.nodes import NodeDied, NodeTable
from retinue.core.scheduling.resources import to_units
from retinue.core.wire.messages import Address, NodeInfo

A, B = b"a" * 16, b"b" * 16


def node(node_id: bytes = A, cpus: float = 4.0) -> NodeInfo:
    return NodeInfo(node_id, Address(node_id, node_id, "/agent"), {"CPU": cpus}, {"CPU": cpus})


@pytest.fixture
def table() -> Iterator[NodeTable]:
    table = NodeTable(grace_s=1.0)
    yield table
    table.check_invariants()


def free(table: NodeTable, node_id: bytes = A) -> float:
    return next(v for v in table.views() if v.node_id == node_id).free.get("CPU", 0) / 10_000


def report(table: NodeTable, cpus: float, *, starts: int = 0, waiting: int = 0) -> bool:
    return table.reported(A, {"CPU": cpus}, waiting=waiting, demand=[], starts=starts)


def test_a_lost_agent_has_a_grace_and_takes_nothing_meanwhile(table: NodeTable) -> None:
    table.registered(node())
    table.connection_lost(A, now=5.0)
    assert table.views() == []
    assert table.is_alive(A)
    assert table.next_deadline() == 6.0
    assert table.tick(now=5.9, wall_time=9.0) == []
    [died] = table.tick(now=6.0, wall_time=9.0)
    assert died.node_id == A
    assert not table.is_alive(A)
    assert table.tick(now=7.0, wall_time=9.0) == []


def test_an_agent_that_comes_back_in_time_stays(table: NodeTable) -> None:
    table.registered(node())
    table.connection_lost(A, now=5.0)
    table.registered(node())
    assert table.tick(now=99.0, wall_time=9.0) == []
    assert len(table.views()) == 1


def test_a_dead_node_is_told_once_and_shown_with_its_reason(table: NodeTable) -> None:
    table.registered(node())
    assert table.died(A, "its agent ended", wall_time=9.0) == [NodeDied(A, "its agent ended")]
    assert table.died(A, "again", wall_time=9.0) == []
    [info] = table.infos()
    assert (info.alive, info.death_reason, info.available) == (False, "its agent ended", {})
    assert info.end_time == 9.0


def test_a_node_thought_dead_may_come_back(table: NodeTable) -> None:
    table.registered(node())
    table.died(A, "its connection was lost", wall_time=9.0)
    table.registered(node())
    [info] = table.infos()
    assert info.alive
    assert info.end_time == 0.0


def test_room_for_an_actor_on_its_way_is_taken_until_a_report_counts_it(table: NodeTable) -> None:
    table.registered(node())
    table.take(A, b"x", to_units({"CPU": 1}))
    table.take(A, b"y", to_units({"CPU": 1}))
    assert free(table) == 2
    report(table, 4.0)  # sent before the agent had heard of either
    assert free(table) == 2
    report(table, 3.0, starts=1)
    assert free(table) == 2
    table.settle(A, b"y", is_placed=True)
    report(table, 2.0)
    assert free(table) == 2


def test_a_refused_actor_gives_its_room_back_at_once(table: NodeTable) -> None:
    table.registered(node())
    table.take(A, b"x", to_units({"CPU": 3}))
    table.settle(A, b"x", is_placed=False)
    assert free(table) == 4
    table.settle(A, b"x", is_placed=False)
    assert free(table) == 4


def test_only_changes_are_pushed(table: NodeTable) -> None:
    table.registered(node())
    assert [info.node_id for info in table.take_changes()] == [A]
    assert not report(table, 4.0)
    assert not table.has_changes()
    assert report(table, 3.0)
    assert report(table, 3.0, waiting=2)
    [info] = table.take_changes()
    assert (info.available, info.waiting) == ({"CPU": 3.0}, 2)


def test_a_draining_node_takes_no_work_also_after_it_registers_again(table: NodeTable) -> None:
    table.registered(node())
    assert table.drain(A)
    assert not table.drain(B)
    table.registered(node())
    assert not table.views()[0].takes_work()
    assert table.infos()[0].draining


def test_recovery_lasts_until_all_known_nodes_are_here(table: NodeTable) -> None:
    table.await_nodes([A, B], until=5.0)
    table.registered(node(A))
    assert table.is_recovering(now=1.0)
    table.registered(node(B))
    assert not table.is_recovering(now=1.0)
    assert table.give_up_awaited() == []


def test_recovery_gives_up_on_nodes_that_stay_away(table: NodeTable) -> None:
    table.await_nodes([A, B], until=5.0)
    table.registered(node(A))
    assert table.next_deadline() == 5.0
    assert not table.is_recovering(now=5.0)
    assert table.give_up_awaited() == [B]
