"""Ratios, shares and targets of the benchmark's report."""

import json

import pytest

from corebench import report
from corebench.catalogue import Figure, Row
from corebench.rounds import Results

RATE = Figure("calls", "calls", target_ratio=10, target_share=0.5)
DELAY = Figure("delay", "delay", "ms", limit=5, is_less_better=True)


def outcome(figure, *, retinue=None, ray=None, floor=1000.0):
    return report.Outcome(figure, retinue, ray, floor)


def test_ratio_says_how_many_times_better_in_both_directions():
    assert outcome(RATE, retinue=600, ray=30).ratio == 20
    assert outcome(DELAY, retinue=2.0, ray=8.0).ratio == 4


def test_share_is_given_for_rates_only():
    assert outcome(RATE, retinue=600).share == pytest.approx(0.6)
    assert outcome(DELAY, retinue=2.0).share is None


def test_targets_that_are_met_are_not_named():
    assert outcome(RATE, retinue=600, ray=30).shortfalls == []
    assert outcome(DELAY, retinue=5.0).shortfalls == []


def test_each_missed_target_is_named():
    assert outcome(RATE, retinue=100, ray=50).shortfalls == ["ratio", "share"]
    assert outcome(DELAY, retinue=5.1).shortfalls == ["limit"]


def test_nothing_falls_short_on_a_side_that_did_not_run():
    assert outcome(RATE, ray=50).shortfalls == []


@pytest.fixture
def results():
    results = Results(floor=[900.0, 1000.0, 1100.0])
    results.values["retinue"]["calls"] = [500.0, 700.0, 600.0]
    results.values["ray"]["calls"] = [29.0, 30.0, 31.0]
    results.errors["ray"]["slow"] = "TimeoutError: row took longer than 5 s"
    return results


ROWS = [Row("calls", lambda *_: 0.0, (RATE, DELAY), starts_cluster=False)]


def test_table_shows_medians_and_errors(results):
    text = report.table(ROWS, results)
    calls = next(line for line in text.splitlines() if line.startswith("calls"))
    assert calls.split() == ["calls", "/s", "600", "30", "20x", "10x", "0.6", "0.5"]
    assert "ray slow: TimeoutError" in text


def test_markdown_lists_what_both_sides_have(results):
    assert report.markdown(ROWS, results).splitlines()[2:] == ["| calls | /s | 600 | 30 | 20x |"]


def test_record_keeps_every_round_and_survives_json(results):
    record = json.loads(json.dumps(report.record(ROWS, results)))
    assert record["figures"]["calls"]["retinue"] == [500.0, 700.0, 600.0]
    assert record["figures"]["calls"]["ratio"] == 20
