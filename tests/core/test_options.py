from __future__ import annotations

import math

import pytest

from retinue.core.errors import UnsupportedError
from retinue.core.options import ACTOR, METHOD, TASK, check, resources_of, strategy_of
from retinue.core.scheduling.resources import to_units

GOOD_TASK = {
    "num_cpus": 0.5,
    "num_gpus": 1,
    "memory": 1 << 30,
    "resources": {"TPU": 2, "special": 0.25},
    "accelerator_type": "H200",
    "name": "",
    "num_returns": "streaming",
    "max_calls": 0,
    "max_retries": -1,
    "retry_exceptions": [ValueError, KeyError],
    "runtime_env": {"env_vars": {"A": "1"}},
    "scheduling_strategy": "SPREAD",
    "_generator_backpressure_num_objects": 4,
}
GOOD_ACTOR = {
    "num_cpus": 0,
    "concurrency_groups": {"io": 2},
    "lifetime": "detached",
    "max_concurrency": 1,
    "max_restarts": -1,
    "max_task_retries": 3,
    "max_pending_calls": 10,
    "namespace": "there",
    "get_if_exists": True,
    "name": "me",
    "allow_out_of_order_execution": False,
}
GOOD_METHOD = {"num_returns": 0, "concurrency_group": "io", "max_task_retries": 0, "retry_exceptions": True}


@pytest.mark.parametrize(
    ("options", "known"), [(GOOD_TASK, TASK), (GOOD_ACTOR, ACTOR), (GOOD_METHOD, METHOD)]
)
def test_good_options_pass(options, known):
    check(options, known, "tasks")


@pytest.mark.parametrize("known", [TASK, ACTOR, METHOD])
def test_none_stands_for_the_default_of_any_option(known):
    check(dict.fromkeys(known), known, "tasks")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_cpus", "1"),
        ("num_cpus", True),
        ("memory", [1]),
        ("resources", ["TPU"]),
        ("resources", {1: 1}),
        ("resources", {"TPU": "one"}),
        ("name", 7),
        ("num_returns", 1.5),
        ("num_returns", True),
        ("max_calls", "3"),
        ("max_retries", 1.0),
        ("retry_exceptions", ValueError),
        ("retry_exceptions", [ValueError("x")]),
        ("retry_exceptions", 1),
        ("runtime_env", ["env_vars"]),
        ("enable_task_events", 1),
    ],
)
def test_value_of_the_wrong_type_is_a_type_error_that_names_the_option(name, value):
    with pytest.raises(TypeError, match=name):
        check({name: value}, TASK, "tasks")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_cpus", -1),
        ("num_cpus", math.nan),
        ("num_cpus", math.inf),
        ("num_cpus", 0.00001),
        ("num_gpus", 1.5),
        ("resources", {"TPU": -1}),
        ("resources", {"": 1}),
        ("resources", {"CPU": 1}),
        ("resources", {"GPU": 1}),
        ("resources", {"memory": 1}),
        ("accelerator_type", ""),
        ("num_returns", -1),
        ("num_returns", "stream"),
        ("max_calls", -1),
        ("max_retries", -2),
        ("scheduling_strategy", "RANDOM"),
    ],
)
def test_impossible_value_is_a_value_error_that_names_the_option(name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        check({name: value}, TASK, "tasks")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lifetime", "forever"),
        ("namespace", ""),
        ("max_concurrency", 0),
        ("concurrency_groups", {"io": 0}),
        ("concurrency_groups", {"": 1}),
        ("max_pending_calls", -2),
    ],
)
def test_impossible_value_of_an_actors_option_is_a_value_error(name, value):
    with pytest.raises(ValueError, match=name):
        check({name: value}, ACTOR, "actors")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label_selector", {"a": "b"}),
        ("placement_group", "x"),
        ("object_store_memory", 1),
        ("num_returns", "dynamic"),
    ],
)
def test_what_ray_has_and_we_have_not_is_refused_by_name(name, value):
    with pytest.raises(UnsupportedError, match=name):
        check({name: value}, TASK, "tasks")


def test_strategy_object_is_refused_as_unsupported():
    with pytest.raises(UnsupportedError, match="SPREAD"):
        check({"scheduling_strategy": object()}, TASK, "tasks")


def test_unknown_option_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"tasks have no option 'num_cpu'; did you mean 'num_cpus'\?"):
        check({"num_cpu": 1}, TASK, "tasks")
    with pytest.raises(ValueError, match="there are"):
        check({"zzzzzz": 1}, TASK, "tasks")


def test_option_of_another_kind_is_unknown():
    with pytest.raises(ValueError, match="actors have no option 'max_calls'"):
        check({"max_calls": 1}, ACTOR, "actors")
    with pytest.raises(ValueError, match="methods have no option 'num_cpus'"):
        check({"num_cpus": 1}, METHOD, "methods")


def test_resources_are_the_sum_of_the_options_without_zeros():
    options = {"num_gpus": 0, "memory": 100, "resources": {"TPU": 2, "none": 0}, "accelerator_type": "H200"}
    assert resources_of(options, default_cpus=1) == {
        "CPU": 1.0,
        "memory": 100.0,
        "TPU": 2.0,
        "accelerator_type:H200": 0.001,
    }
    assert resources_of({"num_cpus": 0}, default_cpus=1) == {}
    assert resources_of({}, default_cpus=0) == {}


@pytest.mark.parametrize("options", [GOOD_TASK, {"num_cpus": 0.0001}, {"num_gpus": 4.0}, {"num_gpus": 0.3}])
def test_resources_that_pass_are_never_refused_by_a_node(options):
    check(options, TASK, "tasks")
    to_units(resources_of(options, default_cpus=1))


def test_default_strategy_is_none():
    assert strategy_of({}) == strategy_of({"scheduling_strategy": "DEFAULT"}) == ""
    assert strategy_of({"scheduling_strategy": "SPREAD"}) == "SPREAD"
