"""Percentiles, tallies, streams and growth, as the serve benchmark counts them."""

import math

import pytest

from servebench.stats import Tally, growth, is_event_stream_right, percentile


def test_percentiles_are_measured_values():
    values = list(range(1, 101))
    assert percentile(values, 50) == 50
    assert percentile(values, 99) == 99
    assert percentile(values, 100) == 100
    assert percentile([3.0], 99) == 3.0


def test_no_values_have_no_percentile():
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def tally(*answers):
    result = Tally()
    for due, took, outcome in answers:
        result.add(due, took, outcome)
    return result


def test_everything_but_right_answers_has_failed():
    counted = tally((0, 0.1, "ok"), (1, 0.2, "503"), (2, 0.3, "wrong"), (3, 0.1, "ok"))
    assert counted.failed == 2
    assert counted.counts["503"] == 1
    assert counted.rate(4.0) == 0.5
    assert counted.times_of("503") == [0.2]


def test_the_beginning_can_be_left_out():
    assert tally((5, 0.9, "ok"), (5.5, 0.8, "ok"), (6, 0.1, "ok")).without_first(1.0).took_s == [0.1]


def test_the_outage_is_the_longest_gap_between_right_answers():
    assert tally((0, 0, "ok"), (1, 0, "ok"), (2, 0, "503"), (4, 0.5, "ok")).outage_s() == 3.5
    assert tally((0, 0, "503")).outage_s() == math.inf


def test_recovery_counts_from_the_event_to_the_first_good_window():
    steady = [(n * 0.1, 0.01, "503" if 1.0 <= n * 0.1 < 1.9 else "ok") for n in range(50)]
    assert tally(*steady).recovered_after_s(1.0, 0.99, window_s=0.5) == pytest.approx(1.0)


def test_without_a_good_window_it_never_recovers():
    broken = [(n * 0.1, 0.01, "503") for n in range(50)]
    assert tally(*broken).recovered_after_s(1.0, 0.99) == math.inf


def test_growth_is_that_of_the_process_that_grew_most():
    assert growth({1: 100, 2: 100, 3: 100}, {1: 101, 2: 110}) == pytest.approx(0.1)
    assert growth({1: 100}, {}) == 0.0


def test_streams_are_right_however_their_pieces_were_joined():
    events = b"".join(b"data: tok%04d\n\n" % n for n in range(3))
    assert is_event_stream_right(events, 3)
    assert not is_event_stream_right(events, 4)
    assert not is_event_stream_right(events.replace(b"0001", b"0002"), 3)
