"""Where proxies run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.serve.controller.proxies import (
    UNHEALTHY_AFTER,
    FleetPlan,
    NodeView,
    ProxyHealth,
    Slot,
    plan_fleet,
    status_by_node,
    wanted_slots,
)
from retinue.serve.proxy_options import ProxyLocation
from retinue.serve.status_schema import ProxyStatus

NODES = [
    NodeView("head", is_head=True),
    NodeView("busy", has_replicas=True),
    NodeView("idle"),
    NodeView("leaving", has_replicas=True, is_draining=True),
]


@pytest.mark.parametrize(
    ("location", "nodes"),
    [
        (ProxyLocation.Disabled, set()),
        (ProxyLocation.HeadOnly, {"head"}),
        (ProxyLocation.EveryNode, {"head", "busy"}),
    ],
)
def test_a_location_means_nodes(location: ProxyLocation, nodes: set[str]) -> None:
    assert wanted_slots(location, NODES, 2) == {Slot(n, i) for n in nodes for i in range(2)}


def test_a_plan_starts_replaces_drains_and_forgets() -> None:
    observed = {
        Slot("a", 0): ProxyStatus.HEALTHY,
        Slot("a", 1): ProxyStatus.UNHEALTHY,
        Slot("b", 0): ProxyStatus.HEALTHY,
        Slot("b", 1): ProxyStatus.DRAINING,
        Slot("gone", 0): ProxyStatus.HEALTHY,
    }
    wanted = {Slot("a", 0), Slot("a", 1), Slot("a", 2)}
    assert plan_fleet(wanted, observed, {"a", "b"}) == FleetPlan(
        start=(Slot("a", 2),),
        replace=(Slot("a", 1),),
        drain=(Slot("b", 0),),
        forget=(Slot("gone", 0),),
    )


slots = st.builds(Slot, st.sampled_from("abc"), st.integers(0, 2))


@given(st.sets(slots), st.dictionaries(slots, st.sampled_from(ProxyStatus)), st.sets(st.sampled_from("abc")))
def test_a_plan_that_was_carried_out_leaves_nothing_to_plan(
    wanted: set[Slot], observed: dict[Slot, ProxyStatus], living: set[str]
) -> None:
    wanted = {slot for slot in wanted if slot.node_id in living}
    todo = plan_fleet(wanted, observed, living)
    after = {slot: status for slot, status in observed.items() if slot not in todo.forget}
    after |= dict.fromkeys((*todo.start, *todo.replace), ProxyStatus.STARTING)
    after |= dict.fromkeys(todo.drain, ProxyStatus.DRAINING)
    assert plan_fleet(wanted, after, living) == FleetPlan()


def test_a_node_has_its_worst_proxys_status() -> None:
    assert status_by_node(
        {
            Slot("a", 0): ProxyStatus.HEALTHY,
            Slot("a", 1): ProxyStatus.STARTING,
            Slot("b", 0): ProxyStatus.UNHEALTHY,
            Slot("b", 1): ProxyStatus.STARTING,
        }
    ) == {"a": ProxyStatus.STARTING, "b": ProxyStatus.UNHEALTHY}


def test_a_proxy_is_unhealthy_after_some_checks_in_a_row() -> None:
    health = ProxyHealth()
    health.is_ready()
    for _ in range(UNHEALTHY_AFTER - 1):
        health.missed("late")
    health.answered()
    for _ in range(UNHEALTHY_AFTER - 1):
        health.missed("late")
    assert health.status is ProxyStatus.HEALTHY
    health.missed("late again")
    assert (health.status, health.message) == (ProxyStatus.UNHEALTHY, "late again")
    health.died("killed")
    assert (health.status, health.failures) == (ProxyStatus.STARTING, 0)
