"""The stopwatch's arithmetic, on a clock that only the measured call moves."""

import pytest

from corebench.stopwatch import Stopwatch


class Clock:
    def __init__(self):
        self.now = 0.0
        self.calls = 0

    def __call__(self):
        return self.now

    def work(self, seconds):
        def call():
            self.now += seconds
            self.calls += 1

        return call


@pytest.fixture
def clock():
    return Clock()


def test_rate_counts_calls_per_second(clock):
    assert Stopwatch(1.0, clock).rate(clock.work(0.001)) == pytest.approx(1000)


def test_rate_counts_what_each_call_does(clock):
    assert Stopwatch(1.0, clock).rate(clock.work(0.01), per_call=50) == pytest.approx(5000)


def test_a_call_longer_than_the_time_allowed_warms_up_once_and_is_measured_once(clock):
    assert Stopwatch(1.0, clock).rate(clock.work(20.0)) == pytest.approx(0.05)
    assert clock.calls == 2


def test_times_calls_at_least_as_often_as_asked(clock):
    assert Stopwatch(1.0, clock).times(clock.work(2.0), at_least=3) == [2.0, 2.0, 2.0]


def test_times_stops_at_the_most(clock):
    assert len(Stopwatch(1.0, clock).times(clock.work(0.01), at_most=5)) == 5
