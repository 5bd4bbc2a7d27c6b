"""A replica's life: the table, and everything that is not in it."""

from __future__ import annotations

import itertools

import pytest

from retinue.serve.controller.replica_life import (
    ENDING,
    TRANSITIONS,
    Event,
    InvalidReplicaTransitionError,
    ReplicaLife,
)
from retinue.serve.status_schema import ReplicaState


@pytest.mark.parametrize(("state", "event"), list(itertools.product(ReplicaState, Event)))
def test_each_pair_is_a_step_of_the_table_or_an_error(state: ReplicaState, event: Event) -> None:
    life = ReplicaLife(state)
    if (state, event) in TRANSITIONS:
        assert life.may(event)
        life.move(event)
        assert life.state is TRANSITIONS[state, event]
        assert life.past == [f"{state} -{event}-> {life.state}"]
    else:
        assert not life.may(event)
        with pytest.raises(InvalidReplicaTransitionError, match=f"{state} has no {event}"):
            life.move(event)
        assert life.state is state


def test_whatever_lives_can_be_stopped_and_can_end() -> None:
    for state in set(ReplicaState) - ENDING:
        assert TRANSITIONS[state, Event.STOP] is ReplicaState.STOPPING
        assert TRANSITIONS[state, Event.ENDED] is ReplicaState.STOPPED


def test_nothing_comes_after_the_end() -> None:
    assert not [pair for pair in TRANSITIONS if pair[0] is ReplicaState.STOPPED]
