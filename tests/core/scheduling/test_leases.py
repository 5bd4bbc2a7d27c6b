from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from retinue.core.scheduling.leases import (
    ACTOR_SHAPE_ID,
    MIN_LEASE_S,
    SENT_AWAY_S,
    Decision,
    DropNeed,
    EndWorker,
    FreeWorker,
    Grant,
    LeaseTable,
    Lost,
    NeedWorker,
    Recall,
    Redirect,
    Refuse,
    Warn,
)
from retinue.core.scheduling.policies import NodeView
from retinue.core.scheduling.resources import NodeResources, to_units
from retinue.core.wire.messages import Shape, WorkerEnv

ENV = WorkerEnv(b"job1")
ONE_CPU = Shape({"CPU": 1}, ENV)
HOME = b"home"


class Node:
    """A lease table whose pool has a worker at once."""

    def __init__(self, **total: float) -> None:
        self.table = LeaseTable(node_id=HOME, resources=NodeResources(total), rng=random.Random(0))
        self.now = 100.0
        self.workers = 0

    def demand(
        self, client: str, wanted: int, shape: Shape = ONE_CPU, shape_id: int = 1, hops: int = 0
    ) -> list[Decision]:
        return self.served(self.table.demand(client, shape_id, wanted, now=self.now, shape=shape, hops=hops))

    def place(self, actor: str, resources: dict[str, float], placement: dict[str, float]) -> list[Decision]:
        return self.served(self.table.place_actor(actor, Shape(resources, ENV), placement, now=self.now))

    def give_back(self, grant: Decision) -> list[Decision]:
        assert isinstance(grant, Grant)
        return self.served(
            self.table.returned(grant.client_id, grant.lease_id, is_reusable=True, now=self.now)
        )

    def served(self, decisions: list[Decision]) -> list[Decision]:
        out: list[Decision] = []
        for decision in decisions:
            if isinstance(decision, NeedWorker):
                self.workers += 1
                worker_id = b"w%d" % self.workers
                out += self.served(self.table.worker_ready(decision.lease_id, worker_id, now=self.now))
            elif not isinstance(decision, FreeWorker):
                out.append(decision)
        return out

    def later(self, seconds: float) -> list[Decision]:
        self.now += seconds
        return self.served(self.table.tick(now=self.now))


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node(CPU=2)
    yield node
    node.table.check_invariants()


def grants(decisions: list[Decision]) -> list[str]:
    return [str(d.client_id) for d in decisions if isinstance(d, Grant)]


def only(decisions: list[Decision]) -> Grant:
    (grant,) = decisions
    assert isinstance(grant, Grant)
    return grant


def test_demand_is_granted_while_there_is_room_and_goes_on_when_a_lease_comes_back(node: Node) -> None:
    first = node.demand("a", 3)
    assert grants(first) == ["a", "a"]
    assert node.table.waiting_shapes() == [({"CPU": 1.0}, 1)]
    assert grants(node.give_back(first[0])) == ["a"]
    assert not node.table.is_waiting()


def test_a_new_demand_replaces_the_old_one_and_drops_workers_that_are_not_there_yet(node: Node) -> None:
    needs = node.table.demand("a", 1, 2, now=0.0, shape=ONE_CPU)
    assert [type(d) for d in needs] == [NeedWorker, NeedWorker]
    assert node.table.demand("a", 1, 1, now=0.0) == [DropNeed(2)]
    assert node.table.available() == {"CPU": 1.0}
    assert node.table.worker_ready(2, b"late", now=0.0) == [FreeWorker(b"late", True)]
    assert grants(node.table.worker_ready(1, b"w", now=0.0)) == ["a"]
    assert node.table.demand("a", 1, 0, now=0.0) == []


def test_a_demand_repeated_while_workers_start_is_not_counted_twice(node: Node) -> None:
    node.table.demand("a", 1, 2, now=0.0, shape=ONE_CPU)
    assert node.table.demand("a", 1, 2, now=0.0) == []


def test_a_second_driver_gets_its_share_beside_a_long_queue(node: Node) -> None:
    held = node.demand("a", 1000)
    node.later(2 * MIN_LEASE_S)
    assert node.demand("b", 1000) == [Recall("a", only(held[:1]).lease_id)]
    assert node.later(1.0) == []  # not again for the same lease, and none of a's last
    assert grants(node.give_back(held[0])) == ["b"]
    assert node.later(1.0) == []


def test_those_with_nothing_take_turns_where_there_are_more_clients_than_cpus() -> None:
    node = Node(CPU=1)
    lease = node.demand("a", 10)[0]
    node.demand("b", 10)
    turns = []
    for _ in range(4):
        assert isinstance(lease, Grant)
        assert node.later(2 * MIN_LEASE_S) == [Recall(lease.client_id, lease.lease_id)]
        (lease,) = node.give_back(lease)
        turns.append(grants([lease])[0])
    assert turns == ["b", "a", "b", "a"]


def test_a_shape_is_not_starved_by_another_of_the_same_client(node: Node) -> None:
    held = node.demand("a", 1000)
    node.later(2 * MIN_LEASE_S)
    other = Shape({"CPU": 1}, WorkerEnv(b"job1", {"X": "1"}))
    (recall,) = node.demand("a", 5, other, shape_id=2)
    assert isinstance(recall, Recall)
    (grant,) = node.give_back(next(g for g in held if isinstance(g, Grant) and g.lease_id == recall.lease_id))
    assert isinstance(grant, Grant)
    assert grant.shape_id == 2


def test_what_leases_hold_is_recallable_and_what_actors_hold_is_not(node: Node) -> None:
    node.place("x", {"CPU": 1}, {"CPU": 1})
    node.demand("a", 1)
    assert node.table.recallable() == {"CPU": 1.0}


def test_blocked_leases_lend_their_cpu_and_are_not_recalled() -> None:
    node = Node(CPU=1)
    parent = only(node.demand("driver", 1))
    node.later(1.0)
    assert grants(node.table.blocked(parent.worker_id, now=node.now)) == []
    child = only(node.demand("worker", 1))
    assert node.table.unblocked(parent.worker_id) == []
    assert node.table.available() == {"CPU": 0.0}
    assert node.demand("worker", 1) == []  # the driver has no more than the worker has
    node.give_back(child)
    node.table.check_invariants()


def test_children_of_blocked_tasks_go_before_more_parents() -> None:
    node = Node(CPU=1)
    parent = only(node.demand("driver", 100))
    assert node.served(node.table.demand(parent.worker_id, 1, 1, now=node.now, shape=ONE_CPU)) == []
    (grant,) = node.served(node.table.blocked(parent.worker_id, now=node.now))
    assert isinstance(grant, Grant)
    assert grant.client_id == parent.worker_id


def test_a_large_request_collects_what_small_ones_give_back() -> None:
    node = Node(CPU=4)
    held = node.demand("small", 100)
    node.later(2 * MIN_LEASE_S)
    recalled = node.demand("large", 1, Shape({"CPU": 4}, ENV))
    assert {type(d) for d in recalled} == {Recall}
    assert len(recalled) == 4
    got = [grants(node.give_back(lease)) for lease in held]
    assert got == [[], [], [], ["large"]]


def test_small_requests_go_on_when_what_a_large_one_waits_for_does_not_come() -> None:
    node = Node(CPU=2)
    node.place("actor", {"CPU": 1}, {"CPU": 1})
    node.demand("large", 1, Shape({"CPU": 2}, ENV))
    assert grants(node.demand("small", 1)) == ["small"]


def test_an_actor_needs_its_placement_free_and_holds_only_its_resources(node: Node) -> None:
    assert [d.shape_id for d in node.place("x", {}, {"CPU": 2}) if isinstance(d, Grant)] == [ACTOR_SHAPE_ID]
    assert node.table.available() == {"CPU": 2.0}
    node.demand("a", 2)
    assert node.place("y", {}, {"CPU": 1}) == []
    (recall,) = node.later(2 * MIN_LEASE_S)
    assert isinstance(recall, Recall)
    assert grants(node.give_back(Grant("a", 1, recall.lease_id, b"", {}))) == ["y"]


def test_a_withdrawn_actor_gets_no_worker_and_a_dead_one_frees_its_resources(node: Node) -> None:
    (need,) = node.table.place_actor("x", ONE_CPU, {}, now=0.0)
    assert isinstance(need, NeedWorker)
    assert node.table.withdraw_actor("x", now=0.0) == [DropNeed(need.lease_id)]
    grant = only(node.place("y", {"CPU": 2}, {}))
    assert node.table.worker_died(grant.worker_id, now=0.0) == [Lost("y", grant.lease_id, grant.worker_id)]
    assert node.table.available() == {"CPU": 2.0}


def test_a_dead_worker_is_reported_and_its_room_given_to_the_next(node: Node) -> None:
    held = node.demand("a", 3)
    grant = only(held[:1])
    died = node.served(node.table.worker_died(grant.worker_id, now=node.now))
    assert died[0] == Lost("a", grant.lease_id, grant.worker_id)
    assert grants(died) == ["a"]
    assert node.table.returned("a", grant.lease_id, is_reusable=True, now=0.0) == []


def test_the_workers_of_a_dead_client_end_before_their_room_is_free(node: Node) -> None:
    first, second = node.demand("a", 5)
    assert isinstance(first, Grant)
    assert isinstance(second, Grant)
    ended = node.table.client_gone("a", now=node.now)
    assert {d.worker_id for d in ended if isinstance(d, EndWorker)} == {first.worker_id, second.worker_id}
    assert node.demand("b", 1) == []
    assert grants(node.served(node.table.worker_died(first.worker_id, now=node.now))) == ["b"]
    assert node.table.worker_died(second.worker_id, now=node.now) == []
    assert node.table.available() == {"CPU": 1.0}


def test_a_finished_job_leaves_nothing(node: Node) -> None:
    node.demand("a", 5)
    node.place("x", {}, {"CPU": 1})
    ended = node.table.job_finished(b"job1", now=node.now)
    for decision in ended:
        assert isinstance(decision, EndWorker)
        node.table.worker_died(decision.worker_id, now=node.now)
    assert node.table.available() == {"CPU": 2.0}
    assert not node.table.is_waiting()


@pytest.mark.parametrize(
    "shape", [Shape({"CPU": -1}, ENV), Shape({"CPU": 1}, ENV, "strange"), Shape({"CPU": 1}, ENV, "node:x")]
)
def test_what_can_never_be_is_refused_at_once(node: Node, shape: Shape) -> None:
    (refusal,) = node.demand("a", 1, shape)
    assert isinstance(refusal, Refuse)
    assert refusal.kind == "TaskUnschedulableError"


def test_what_no_node_has_waits_with_a_warning_now_and_then(node: Node) -> None:
    assert node.demand("a", 1, Shape({"GPU": 1}, ENV)) == []
    (warning,) = node.later(1.0)
    assert isinstance(warning, Warn)
    assert "it needs {GPU: 1}" in warning.message
    assert "1 x {CPU: 2}" in warning.message
    assert node.later(10.0) == []
    assert len(node.later(30.0)) == 1
    assert node.table.waiting_shapes() == [({"GPU": 1.0}, 1)]


def test_hard_affinity_to_a_node_that_is_gone_is_refused(node: Node) -> None:
    node.table.cluster_changed([], now=0.0)
    (refusal,) = node.demand("a", 1, Shape({"CPU": 1}, ENV, f"node:{b'gone'.hex()}"))
    assert isinstance(refusal, Refuse)


def other_node(name: bytes, free: float, total: float | None = None) -> NodeView:
    return NodeView(name, to_units({"CPU": free if total is None else total}), to_units({"CPU": free}))


def test_what_does_not_fit_here_is_sent_where_it_does(node: Node) -> None:
    node.table.cluster_changed([other_node(b"n1", 2)], now=0.0)
    decisions = node.demand("a", 6)
    assert grants(decisions) == ["a", "a"]
    assert sum(d.count for d in decisions if isinstance(d, Redirect)) == 2
    assert node.table.waiting_shapes() == [({"CPU": 1.0}, 2)]
    assert node.table.cluster_changed([other_node(b"n1", 1)], now=0.0) == [Redirect("a", 1, 1, b"n1")]


def test_spread_demand_goes_round_the_nodes(node: Node) -> None:
    node.table.cluster_changed([other_node(b"a", 8), other_node(b"z", 1)], now=0.0)
    decisions = node.demand("a", 6, Shape({"CPU": 1}, ENV, "SPREAD"))
    turns = {d.node_id: d.count for d in decisions if isinstance(d, Redirect)}
    assert (turns, grants(decisions)) == ({b"a": 3, b"z": 1}, ["a", "a"])


def test_spread_demand_waits_at_all_nodes_where_none_has_room(node: Node) -> None:
    node.table.cluster_changed([other_node(b"a", 0, 1), other_node(b"z", 0, 1)], now=0.0)
    decisions = node.demand("a", 11, Shape({"CPU": 1}, ENV, "SPREAD"))
    turns = {d.node_id: d.count for d in decisions if isinstance(d, Redirect)}
    assert (turns, grants(decisions)) == ({b"a": 3, b"z": 3}, ["a", "a"])
    assert node.table.waiting_shapes() == [({"CPU": 1.0}, 3)]
    assert node.later(1.0) == []
    assert node.table.cluster_changed([other_node(b"a", 1)], now=0.0) == [Redirect("a", 1, 1, b"a")]


def test_redirected_demand_stays_after_two_hops(node: Node) -> None:
    node.table.cluster_changed([other_node(b"n1", 8)], now=0.0)
    assert grants(node.demand("a", 2, hops=1)) == ["a", "a"]
    assert node.demand("b", 1, hops=2) == []
    assert [type(d) for d in node.demand("c", 1, hops=1)] == [Redirect]


def test_a_draining_node_begins_nothing_and_sends_work_away(node: Node) -> None:
    node.table.drain(now=0.0)
    assert node.demand("a", 1) == []
    assert node.table.cluster_changed([other_node(b"n1", 1)], now=0.0) == [Redirect("a", 1, 1, b"n1")]


def test_workers_that_cannot_start_refuse_the_demand_after_a_few_tries(node: Node) -> None:
    decisions = node.table.demand("a", 1, 1, now=0.0, shape=ONE_CPU)
    for _ in range(3):
        (need,) = decisions
        assert isinstance(need, NeedWorker)
        decisions = node.table.worker_failed(need.lease_id, "RuntimeEnvSetupError", "no such folder", now=0.0)
    assert decisions == [Refuse("a", 1, "RuntimeEnvSetupError", "no such folder")]
    assert node.table.available() == {"CPU": 2.0}


def test_a_node_that_work_was_sent_to_is_believed_again_when_no_news_of_it_come(node: Node) -> None:
    """Its report may be the same as before: what was sent began, and lends its CPU already."""
    node.table.cluster_changed([other_node(b"n1", 1)], now=0.0)
    decisions = node.demand("a", 6)
    assert [d.count for d in decisions if isinstance(d, Redirect)] == [1]
    assert node.later(SENT_AWAY_S / 2) == []
    assert node.later(SENT_AWAY_S / 2) == [Redirect("a", 1, 1, b"n1")]
    assert node.later(SENT_AWAY_S / 2) == []
