"""Routing in simulated time. A failing run says its seed and sizes; the same arguments give the same run."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serve.routing.simulation import Simulation

SECONDS = 1.5
WARM_UP_S = 0.3
LIMITS = [[1], [1, 1], [5], [3, 7, 1], [20, 20], [1] * 4, [1] * 8, [2] * 8, [1] * 16]


def steady(rng: random.Random, number: int) -> float:
    return rng.uniform(0.008, 0.012)


def varied(rng: random.Random, number: int) -> float:
    """Fast and slow replicas, and work of all lengths."""
    return rng.expovariate(1.0 / (0.003 if number % 2 else 0.02))


def check(sim: Simulation) -> None:
    """What holds in every run."""
    for replica in sim.replicas:
        assert replica.most <= replica.admission.max_ongoing, sim.seed
        replica.admission.check_invariants()
    for router in sim.routers:
        router.scheduler.check_invariants()


def saturated(routers: int, limits: list[int], seed: int = 1, **options: object) -> Simulation:
    sim = Simulation(seed, routers=routers, limits=limits, service_s=steady, **options)  # type: ignore[arg-type]
    sim.closed_loop(max(2, 4 * sum(limits) // routers))
    sim.run(SECONDS)
    check(sim)
    return sim


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("routers", [1, 2, 4, 16])
def test_saturated_replicas_are_always_busy_and_no_request_waits_twice_its_fair_share(
    routers: int, limits: list[int]
) -> None:
    sim = saturated(routers, limits)
    # What is missing is a message there and back for each request, 0.1 to 0.4 ms of 10.
    assert sim.utilisation(SECONDS) > 0.95
    assert sim.unfairness(after=WARM_UP_S) < 2.0


@pytest.mark.parametrize("routers", [1, 4, 16])
@pytest.mark.parametrize("limits", [[5], [1] * 8, [2] * 8], ids=str)
def test_no_request_waits_twice_its_fair_share_in_open_load(routers: int, limits: list[int]) -> None:
    """Queues that grow, shrink and are empty at times."""
    sim = Simulation(2, routers=routers, limits=limits, service_s=varied)
    sim.open_loop(1.1 * sum(limits) / 0.0115 / routers, until=SECONDS)
    sim.run(SECONDS)
    check(sim)
    assert sim.unfairness(after=WARM_UP_S) < 2.0


@pytest.mark.parametrize("limits", [[1], [5], [20, 20], [1] * 8], ids=str)
@pytest.mark.parametrize("routers", [2, 16])
def test_where_notices_are_lost_no_request_waits_four_times_its_fair_share(
    routers: int, limits: list[int]
) -> None:
    """The slot is held for 100 ms for a router that does not know of it, and that gets no other meanwhile."""
    sim = saturated(routers, limits, loss=0.02)
    assert sim.unfairness(after=WARM_UP_S) < 4.0


@pytest.mark.parametrize("limits", [[1], [20, 20], [2] * 8], ids=str)
def test_how_long_routers_wait_is_told_in_few_messages(limits: list[int]) -> None:
    sim = saturated(16, limits)
    assert sim.messages < 6 * sim.accepted


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("routers", [2, 16])
def test_saturated_replicas_refuse_few_requests(routers: int, limits: list[int]) -> None:
    sim = saturated(routers, limits)
    joined = routers * len(limits)
    # A router that got nothing from a replica for 100 ms asks again (16 routers, one slot or two).
    asking_again = len(sim.requests) if min(limits) <= 2 and routers == 16 else 0.05 * len(sim.requests)
    assert sim.refusals < 4 * (joined + sum(limits)) + asking_again


@pytest.mark.parametrize("routers", [2, 16])
def test_a_lost_notice_costs_its_slot_at_most_the_time_that_it_is_held(routers: int) -> None:
    loss = 0.02
    sim = saturated(routers, [5], loss=loss)
    # A slot that takes a request each 10 ms loses 100 ms for each lost notice.
    assert sim.utilisation(SECONDS) > 0.8 * (0.01 / (0.01 + loss * 0.1))


@pytest.mark.parametrize("loss", [0.0, 0.2, 1.0])
def test_nothing_is_lost_or_waits_forever_even_without_any_notices(loss: float) -> None:
    sim = Simulation(3, routers=4, limits=[1, 2], service_s=varied, loss=loss)
    sim.open_loop(120.0, until=1.0)
    sim.run_out()
    check(sim)
    assert {request.outcome for request in sim.requests} == {"done"}
    assert len(sim.requests) > 300


def test_slow_and_fast_replicas_are_all_kept_busy() -> None:
    sim = Simulation(5, routers=4, limits=[4, 4, 4], service_s=varied)
    sim.closed_loop(12)
    sim.run(SECONDS)
    check(sim)
    assert sim.utilisation(SECONDS) > 0.9
    slots = 12
    fair_s = 4 * 12 / slots * 0.02  # of the slowest
    assert max(r.wait_s for r in sim.requests if r.accepted >= 0.0) < 2 * fair_s + 0.05


def test_the_death_of_a_replica_costs_only_what_it_executes() -> None:
    sim = Simulation(7, routers=4, limits=[3, 3], service_s=steady)
    sim.closed_loop(6)
    sim.after(0.5, sim.die, 0)
    sim.run(SECONDS)
    check(sim)
    lost = [r for r in sim.requests if r.outcome == "lost"]
    assert len(lost) <= 3
    assert {r.outcome for r in sim.requests} <= {"done", "lost", ""}
    # The other one goes on at its full rate: 300/s.
    after = [r for r in sim.requests if r.outcome == "done" and r.accepted > 0.6]
    assert len(after) > 0.93 * 300 * 0.9


def test_late_requests_leave_the_queue_within_a_tick() -> None:
    sim = Simulation(9, routers=2, limits=[1], service_s=steady)
    ended: dict[int, float] = {}
    sim.open_loop(150.0, until=1.0, deadline_s=0.05)
    sim.on_end = lambda router, request: ended.update({request.number: sim.now})
    sim.run_out()
    check(sim)
    late = [r for r in sim.requests if r.outcome == "late"]
    assert late
    assert {r.outcome for r in sim.requests} == {"done", "late"}
    for request in late:
        assert 0.05 <= ended[request.number] - request.arrived < 0.05 + 0.021


@given(
    seed=st.integers(0, 2**32),
    routers=st.integers(1, 16),
    limits=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    rate=st.floats(0.2, 1.5),
    loss=st.sampled_from([0.0, 0.01, 0.3]),
    deaths=st.integers(0, 2),
    cancels=st.booleans(),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_limits_hold_and_every_request_ends_once(
    seed: int, routers: int, limits: list[int], rate: float, loss: float, deaths: int, cancels: bool
) -> None:
    sim = Simulation(seed, routers=routers, limits=limits, service_s=varied, loss=loss)
    per_router = rate * sum(limits) / 0.0115 / routers
    sim.open_loop(per_router, until=0.3)
    for number in range(min(deaths, len(limits) - 1)):
        sim.after(0.1 * (number + 1), sim.die, number)
    if cancels:
        for moment in range(1, 6):
            sim.after(0.05 * moment, cancel_some, sim)
    sim.run_out()
    check(sim)
    assert all(request.outcome in ("done", "lost", "cancelled") for request in sim.requests)
    assert sum(request.outcome == "lost" for request in sim.requests) <= sum(limits) * deaths
    for router in sim.routers:
        assert router.scheduler.queued == 0
        assert router.scheduler.ongoing == 0


def cancel_some(sim: Simulation) -> None:
    for router in sim.routers:
        for request in list(router.waiting)[::3]:
            router.cancel(request)
