"""How many replicas a load makes, and when."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.serve.autoscaling_options import DEFAULT_POLICY, AggregationFunction, AutoscalingConfig
from retinue.serve.autoscaling_policy import default_autoscaling_policy
from retinue.serve.config import DEFAULT_REQUEST_ROUTER
from retinue.serve.controller.load_history import LoadHistory, StepSeries
from retinue.serve.controller.replica_autoscaling import Autoscaler
from retinue.serve.models import import_attribute

RUNNING = [f"r{i}" for i in range(100)]


def scaler(first: int | None = None, capacity: float | None = None, **fields: Any) -> Autoscaler:
    config = AutoscalingConfig(
        **{"min_replicas": 0, "max_replicas": 10, "target_ongoing_requests": 2, **fields}
    )
    return Autoscaler("app", "d", config, first=first, capacity=capacity)


def decide(scaler: Autoscaler, now: float) -> int:
    return scaler.decide(RUNNING[: scaler.target], now)


# --- the start, the bounds


def test_it_begins_with_the_initial_replicas_within_the_bounds() -> None:
    assert scaler(min_replicas=2).target == 2
    assert scaler(initial_replicas=3).target == 3
    assert scaler(first=50).target == 10
    assert scaler(min_replicas=4, capacity=50).target == 2
    assert scaler(min_replicas=1, capacity=0).target == 0


def test_other_bounds_hold_at_once() -> None:
    s = scaler(first=8)
    s.use(s.config.model_copy(update={"max_replicas": 5}), capacity=None, now=1.0)
    assert s.target == 5
    s.use(s.config, capacity=40, now=2.0)
    assert s.target == 2
    assert "the bounds have changed" in s.last_reason


# --- delays


def test_without_a_delay_the_first_report_decides() -> None:
    s = scaler(first=1, upscale_delay_s=0)
    s.router_told("a", 0, 0, 0.0)
    s.router_told("a", 5, 2, 1000.0)
    assert decide(s, 1000.0) == 4
    assert s.last_reason == "1 -> 4 replicas: 7 requests, 2 wanted per replica (0 to 10 allowed)"


def test_a_rise_has_to_last() -> None:
    s = scaler(first=1, upscale_delay_s=30, look_back_period_s=15)
    s.router_told("a", 0, 8, 0.0)
    assert decide(s, 0.0) == 1
    assert s.direction == 1
    assert "4 replicas wanted instead of 1, followed in 30 s" in s.explain(0.0)
    assert decide(s, 29.9) == 1
    s.router_told("a", 0, 8, 29.9)
    assert decide(s, 30.0) == 4


def test_a_rise_that_ends_begins_anew() -> None:
    s = scaler(first=1, upscale_delay_s=10, look_back_period_s=1, metrics_interval_s=0.5)
    s.router_told("a", 0, 8, 0.0)
    decide(s, 0.0)
    s.router_told("a", 0, 1, 5.0)
    assert decide(s, 16.0) == 1
    s.router_told("a", 0, 8, 17.0)
    assert decide(s, 18.0) == 1
    s.router_told("a", 0, 8, 20.0)
    s.router_told("a", 0, 8, 28.0)
    assert decide(s, 28.0) == 4


def test_the_last_replica_goes_alone_and_after_its_own_delay() -> None:
    s = scaler(first=3, downscale_delay_s=10, downscale_to_zero_delay_s=100)
    assert decide(s, 0.0) == 3
    assert decide(s, 10.0) == 1
    assert decide(s, 10.0) == 1
    assert decide(s, 109.0) == 1
    assert decide(s, 110.0) == 0


def test_a_request_brings_the_first_replica_back_at_once() -> None:
    s = scaler(first=0, upscale_delay_s=1000)
    assert decide(s, 0.0) == 0
    s.router_told("a", 1, 0, 5.0)
    assert decide(s, 5.0) == 1
    assert s.last_reason.startswith("0 -> 1 replicas: 1 requests wait and no replica runs")


def test_nothing_is_decided_while_the_first_replica_starts() -> None:
    s = scaler(first=2, downscale_delay_s=0)
    assert s.decide([], 0.0) == 2


# --- factors


@pytest.mark.parametrize(
    ("factors", "load", "wanted"),
    [
        ({}, 16, 8),
        ({"upscaling_factor": 0.5}, 16, 6),
        ({"upscaling_factor": 2}, 12, 8),
        ({"smoothing_factor": 0.5}, 16, 6),
        ({"downscaling_factor": 0.5}, 4, 3),
        ({"downscaling_factor": 0.1}, 6, 3),
    ],
)
def test_factors_damp_each_step(factors: dict[str, float], load: int, wanted: int) -> None:
    s = scaler(first=4, upscale_delay_s=0, downscale_delay_s=0, **factors)
    s.router_told("a", 0, load, 0.0)
    assert decide(s, 0.0) == wanted


# --- policies


OWN = {"policy_function": "theirs:policy"}


def test_a_policy_of_the_users_own_decides_and_keeps_its_state() -> None:
    s = scaler(first=1, upscale_delay_s=0, policy=OWN)
    s.router_told("a", 0, 20, 0.0)
    assert decide(s, 0.0) == 1  # it has not answered yet
    s.answered(3, {"calls": 1})
    assert decide(s, 0.0) == 3
    assert s.context([], 1.0).policy_state == {"calls": 1}
    assert s.next_decision_at(1.0) is not None
    assert s.last_reason == "1 -> 3 replicas: theirs:policy wants 3 (0 to 10 allowed)"


def test_a_policy_that_fails_changes_nothing_and_is_told_until_it_answers() -> None:
    s = scaler(first=2, policy=OWN)
    for now in (0.0, 1.0):
        s.policy_failed("the policy raised LookupError: no metrics")
        assert decide(s, now) == 2
    assert list(s.errors) == ["the policy raised LookupError: no metrics"]
    with pytest.raises(ValueError, match="wants nan replicas"):
        s.answered(float("nan"), None)
    s.answered(2, None)
    assert not s.errors


def test_a_policy_may_start_the_first_replica_and_end_the_last() -> None:
    s = scaler(first=0, upscale_delay_s=0, downscale_delay_s=0, policy=OWN)
    s.answered(2, {})
    assert decide(s, 0.0) == 2
    s.answered(0, {})
    assert decide(s, 1.0) == 1
    assert decide(s, 1.0) == 0
    s.router_told("a", 1, 0, 2.0)
    assert decide(s, 2.0) == 1  # for a request that waits


def test_the_applications_policy_goes_before() -> None:
    s = scaler(first=1, upscale_delay_s=0)
    s.application_policy = "theirs:whole"
    s.router_told("a", 0, 20, 0.0)
    assert decide(s, 0.0) == 1
    s.answered(4, None)
    assert decide(s, 0.0) == 4
    assert "theirs:whole wants 4" in s.last_reason


def test_a_policy_reads_what_replicas_report() -> None:
    s = scaler(first=1, policy=OWN)
    s.replica_told("r0", {"memory": 2.0}, 0.0)
    s.replica_told("r1", {"memory": 3.0}, 0.0)
    assert s.context(["r0"], 1.0).aggregated_metrics == {"memory": {"r0": 2.0, "r1": 3.0}}
    s.replica_gone("r1")
    assert s.context(["r0"], 1.0).aggregated_metrics == {"memory": {"r0": 2.0}}


def test_the_default_policy_can_be_called() -> None:
    s = scaler(first=2)
    s.router_told("a", 0, 6, 0.0)
    assert default_autoscaling_policy(s.context(["r0", "r1"], 0.0)) == (3.0, {})
    assert default_autoscaling_policy(s.context([], 0.0)) == (2, {})
    for path in (DEFAULT_POLICY, DEFAULT_REQUEST_ROUTER):
        assert callable(import_attribute(path))


# --- when to look again


def test_it_asks_to_be_called_when_the_delay_is_over() -> None:
    s = scaler(first=1, upscale_delay_s=30, look_back_period_s=15)
    assert s.next_decision_at(0.0) is None
    s.router_told("a", 0, 8, 0.0)
    decide(s, 0.0)
    assert s.next_decision_at(0.0) == 30.0


def test_a_router_that_falls_silent_is_forgotten() -> None:
    s = scaler(first=4, downscale_delay_s=0, look_back_period_s=1, metrics_interval_s=0.5)
    s.router_told("a", 0, 8, 0.0)
    assert decide(s, 1.0) == 4
    assert s.next_decision_at(1.0) == 10.0
    assert decide(s, 10.0) == 4
    assert decide(s, 11.5) == 1


@given(
    st.lists(st.tuples(st.floats(0, 50), st.integers(0, 30), st.integers(0, 30)), max_size=30),
    st.integers(0, 3),
    st.integers(3, 10),
    st.sampled_from([0.0, 5.0]),
    st.sampled_from(list(AggregationFunction)),
)
@settings(max_examples=300, deadline=None)
def test_whatever_is_told_the_bounds_hold_and_a_quiet_load_settles(
    reports: list[tuple[float, int, int]], low: int, high: int, delay_s: float, how: AggregationFunction
) -> None:
    s = scaler(
        min_replicas=low,
        max_replicas=high,
        upscale_delay_s=delay_s,
        downscale_delay_s=delay_s,
        aggregation_function=how,
    )
    now = 0.0
    for wait_s, queued, ongoing in reports:
        now += wait_s
        s.router_told("a", queued, ongoing, now)
        assert low <= decide(s, now) <= high
    s.router_told("a", 0, 0, now)
    decide(s, now)
    steps = 0
    while (at := s.next_decision_at(now)) is not None:
        assert at > now
        now = at
        decide(s, now)
        steps += 1
        assert steps < 200
    assert decide(s, now) == low


# --- the history


def test_averages_are_by_the_time_that_a_number_held() -> None:
    series = StepSeries(keep_s=10.0)
    series.add(0.0, 4.0)
    series.add(9.0, 0.0)
    assert series.aggregate(AggregationFunction.MEAN, 10.0, 10.0) == pytest.approx(3.6)
    assert series.aggregate(AggregationFunction.MEAN, 10.0, 2.0) == pytest.approx(2.0)
    assert series.aggregate(AggregationFunction.MAX, 10.0, 2.0) == 4.0
    assert series.aggregate(AggregationFunction.MIN, 10.0, 2.0) == 0.0
    assert series.aggregate(AggregationFunction.MEAN, 10.0, 0.0) == 0.0
    assert series.aggregate(AggregationFunction.MAX, 30.0, 10.0) == 0.0


def test_what_is_older_than_the_period_is_dropped_but_for_what_holds_at_its_beginning() -> None:
    series = StepSeries(keep_s=10.0)
    for now in range(100):
        series.add(float(now), float(now % 2))
    assert len(series.steps) <= 11
    assert series.aggregate(AggregationFunction.MEAN, 99.0, 10.0) == pytest.approx(0.5)


def test_routers_are_added_up() -> None:
    load = LoadHistory(30.0, 10.0)
    load.router("a", 1, 2, 0.0)
    load.router("b", 3, 0, 0.0)
    assert (load.total.latest, load.queued.latest) == (6, 4)
    load.router("a", 0, 0, 1.0)
    assert (load.total.latest, load.queued.latest) == (3, 3)
    assert load.next_silence() == 10.0
    load.forget_silent(10.0)
    assert load.total.latest == 0
