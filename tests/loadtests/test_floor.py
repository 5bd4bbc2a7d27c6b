"""The floor is measured between two real processes."""

from corebench import floor


def test_floor_is_a_plausible_number_of_round_trips():
    assert 100 < floor.measure(0.05) < 10_000_000
