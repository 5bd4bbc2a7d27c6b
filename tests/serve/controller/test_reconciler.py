"""What brings replicas to their target: by example, and over random states."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.serve.controller.reconciler import (
    Plan,
    ReplicaStatus,
    Target,
    plan,
    surge_of,
    unavailable_of,
)
from retinue.serve.controller.replica_life import ENDING, SERVING, TRANSITIONS, Event
from retinue.serve.status_schema import ReplicaState

S = ReplicaState


def replicas(text: str, *, config_id: str = "") -> list[ReplicaStatus]:
    """E.g. "old RUNNING, new STARTING unplaced": versions are the first words."""
    result = []
    for index, part in enumerate(filter(None, text.split(", "))):
        version, state, *marks = part.split()
        result.append(
            ReplicaStatus(
                f"r{index}", version, S(state), config_id, is_unplaced="unplaced" in marks, age=index
            )
        )
    return result


@pytest.mark.parametrize(
    ("target", "observed", "wanted"),
    [
        pytest.param(Target("new", 2), "", Plan(start=2), id="starts all at once"),
        pytest.param(Target("new", 2), "new RUNNING, new STARTING", Plan(), id="is on its way"),
        pytest.param(Target("new", 3), "new RUNNING", Plan(start=2), id="starts what is missing"),
        pytest.param(Target("new", 2, may_start=False), "new RUNNING", Plan(), id="waits after failures"),
        pytest.param(Target("new", 2, max_alive=1), "", Plan(start=1), id="as many as the nodes may have"),
        pytest.param(
            Target("new", 1), "new RUNNING, new RUNNING", Plan(stop=("r1",)), id="stops the youngest surplus"
        ),
        pytest.param(
            Target("new", 1), "new RUNNING, new STARTING", Plan(stop=("r1",)), id="starting ones go first"
        ),
        pytest.param(
            Target("new", 2),
            "new STARTING, new RUNNING, new STARTING unplaced",
            Plan(stop=("r2",)),
            id="unplaced ones go before all",
        ),
        pytest.param(
            Target("new", 0), "new RUNNING, old STARTING, new STOPPING", Plan(stop=("r0", "r1")), id="to zero"
        ),
        # surge first
        pytest.param(Target("new", 1), "old RUNNING", Plan(start=1), id="the new one before the old goes"),
        pytest.param(
            Target("new", 1), "old RUNNING, new STARTING", Plan(), id="the old one serves meanwhile"
        ),
        pytest.param(
            Target("new", 1), "old RUNNING, new RUNNING", Plan(stop=("r0",)), id="the new one is ready"
        ),
        pytest.param(
            Target("new", 4),
            "old RUNNING, old RUNNING, old RUNNING, old RUNNING",
            Plan(start=1),
            id="no more than the surge",
        ),
        pytest.param(
            Target("new", 4),
            "old RUNNING, old RUNNING, old RUNNING, old RUNNING, new RUNNING",
            Plan(start=1, stop=("r3",)),
            id="one step follows the other",
        ),
        pytest.param(
            Target("new", 1), "old STARTING", Plan(start=1, stop=("r0",)), id="old ones that never served"
        ),
        pytest.param(
            Target("new", 1), "old RECOVERING, new RUNNING", Plan(), id="nobody knows yet what is recovering"
        ),
        # old first
        pytest.param(
            Target("new", 4, max_surge=0, max_unavailable=1),
            "old RUNNING, old RUNNING, old RUNNING, old RUNNING",
            Plan(start=1, stop=("r3",)),
            id="without surge an old one stops first",
        ),
        # no room
        pytest.param(
            Target("new", 1),
            "old RUNNING, new STARTING unplaced",
            Plan(stop=("r0",)),
            id="an old one makes room",
        ),
        pytest.param(
            Target("new", 1, may_trade=False),
            "old RUNNING, new STARTING unplaced",
            Plan(),
            id="it would make no room",
        ),
        pytest.param(
            Target("new", 2),
            "old RUNNING, old STOPPING, new STARTING unplaced",
            Plan(),
            id="one is making room already",
        ),
        pytest.param(
            Target("new", 3),
            "old RUNNING, old RUNNING, new STARTING, new STARTING unplaced",
            Plan(),
            id="no more are away than one step",
        ),
        # a node drains
        pytest.param(
            Target("new", 1), "new PENDING_MIGRATION", Plan(start=1), id="another takes its place first"
        ),
        pytest.param(
            Target("new", 1),
            "new PENDING_MIGRATION, new RUNNING",
            Plan(stop=("r0",)),
            id="its place is taken",
        ),
    ],
)
def test_a_plan(target: Target, observed: str, wanted: Plan) -> None:
    assert plan(target, replicas(observed)) == wanted


def test_options_are_applied_in_place_to_what_runs_and_is_wanted() -> None:
    observed = replicas("new RUNNING, new STARTING, new UPDATING, old RUNNING, new STOPPING", config_id="a")
    assert plan(Target("new", 3, "b"), observed).reconfigure == ("r0",)
    assert plan(Target("new", 3, "a"), observed).reconfigure == ()


def test_percentages_become_replicas() -> None:
    assert [surge_of(n, 25) for n in (0, 1, 4, 5, 100)] == [1, 1, 1, 2, 25]
    assert surge_of(25, 28) == 7
    assert surge_of(10, 0) == 0
    assert [unavailable_of(n, 0.2) for n in (0, 1, 5, 10)] == [1, 1, 1, 2]


targets = st.builds(
    Target,
    version=st.just("new"),
    num_replicas=st.integers(0, 6),
    config_id=st.sampled_from("ab"),
    max_surge=st.integers(0, 3),
    max_unavailable=st.integers(1, 3),
    may_start=st.booleans(),
    may_trade=st.booleans(),
    max_alive=st.none() | st.integers(1, 8),
)


@st.composite
def observations(draw: st.DrawFn) -> list[ReplicaStatus]:
    result = []
    for index in range(draw(st.integers(0, 10))):
        state = draw(st.sampled_from(ReplicaState))
        result.append(
            ReplicaStatus(
                f"r{index}",
                draw(st.sampled_from(["new", "old"])),
                state,
                draw(st.sampled_from("ab")),
                is_unplaced=state is S.STARTING and draw(st.booleans()),
                ongoing=draw(st.integers(0, 3)),
                age=index,
            )
        )
    return result


def carry_out(target: Target, observed: list[ReplicaStatus], todo: Plan) -> list[ReplicaStatus]:
    after = []
    for replica in observed:
        state = replica.state
        if replica.replica_id in todo.stop:
            state = TRANSITIONS[state, Event.STOP]
        elif replica.replica_id in todo.reconfigure:
            state = TRANSITIONS[state, Event.RECONFIGURE]
        after.append(dataclasses.replace(replica, state=state))
    age = max((r.age for r in observed), default=0)
    for index in range(1, todo.start + 1):
        after.append(
            ReplicaStatus(f"n{age + index}", target.version, S.STARTING, target.config_id, age=age + index)
        )
    return after


@given(targets, observations())
@settings(max_examples=2000, deadline=None)
def test_a_plan_that_was_carried_out_leaves_nothing_to_plan(
    target: Target, observed: list[ReplicaStatus]
) -> None:
    after = carry_out(target, observed, plan(target, observed))
    assert plan(target, after).is_empty


@given(targets, observations())
@settings(max_examples=2000, deadline=None)
def test_what_holds_of_every_plan(target: Target, observed: list[ReplicaStatus]) -> None:
    todo = plan(target, observed)
    by_id = {r.replica_id: r for r in observed}
    assert len(set(todo.stop)) == len(todo.stop)
    assert not set(todo.stop) & set(todo.reconfigure)
    assert all(by_id[i].state not in ENDING for i in todo.stop)
    assert todo.start >= 0
    if not target.may_start:
        assert todo.start == 0
    after = carry_out(target, observed, todo)
    alive = [r for r in after if r.state not in ENDING]
    started = [r for r in alive if r.replica_id not in by_id]
    if started and target.max_alive is not None:
        assert len(alive) <= target.max_alive
    if started and any(r.version != "new" or r.state is S.PENDING_MIGRATION for r in alive):
        assert len(alive) <= target.num_replicas + target.max_surge
    # Serving replicas go only as far as the step allows, unless there are too many of them.
    before = sum(r.state in SERVING for r in observed)
    left = sum(r.state in SERVING for r in alive)
    floor = target.num_replicas - max(1, target.max_surge, target.max_unavailable)
    if left < before and target.num_replicas:
        surplus_was_new = (
            sum(r.version == "new" for r in observed if r.state not in ENDING) > target.num_replicas
        )
        assert left >= floor or surplus_was_new


@given(targets.filter(lambda t: t.may_start and t.max_alive is None), observations(), st.data())
@settings(max_examples=500, deadline=None)
def test_every_target_is_reached(target: Target, observed: list[ReplicaStatus], data: st.DataObject) -> None:
    """Whatever the replicas do next, as long as what starts becomes ready some time, and what stops ends."""
    target = dataclasses.replace(target, may_trade=True)
    for _ in range(200):
        observed = carry_out(target, observed, plan(target, observed))
        moving = [r for r in observed if r.state in (S.STARTING, S.RECOVERING, S.UPDATING, S.STOPPING)]
        if not moving:
            break
        chosen = data.draw(st.sampled_from(moving))
        observed = [r for r in observed if r.state is not S.STOPPED and r is not chosen] + (
            []
            if chosen.state is S.STOPPING
            else [
                dataclasses.replace(
                    chosen,
                    state=S.RUNNING,
                    is_unplaced=False,
                    config_id=target.config_id if chosen.state is S.UPDATING else chosen.config_id,
                )
            ]
        )
    alive = [r for r in observed if r.state is not S.STOPPED]
    assert [(r.version, r.state, r.config_id) for r in alive] == [
        ("new", S.RUNNING, target.config_id)
    ] * target.num_replicas


def test_a_full_machine_is_updated_one_replica_at_a_time() -> None:
    """Two replicas fill it: each step stops an old one, and the new one takes its place."""
    target = Target("new", 2)
    observed = replicas("old RUNNING, old RUNNING")
    least = 2
    for _ in range(20):
        observed = carry_out(target, observed, plan(target, observed))
        seats = 2 - sum(
            r.state in SERVING
            or r.state is S.STOPPING
            or (r.state is S.STARTING and not r.is_unplaced and r.config_id != "")
            for r in observed
        )
        following = []
        for r in observed:
            if r.state is S.STOPPING:
                continue  # it has drained
            if r.state is S.STARTING and not r.config_id:
                if seats > 0:
                    seats -= 1
                    r = dataclasses.replace(r, config_id="placed", is_unplaced=False)
                else:
                    r = dataclasses.replace(r, is_unplaced=True)
            elif r.state is S.STARTING:
                r = dataclasses.replace(r, state=S.RUNNING, config_id="")
            following.append(r)
        observed = following
        least = min(least, sum(r.state in SERVING for r in observed))
    assert [(r.version, r.state) for r in observed] == [("new", S.RUNNING)] * 2
    assert least == 1
