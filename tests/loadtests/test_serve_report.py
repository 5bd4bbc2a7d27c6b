"""Targets, the table of a serve run, and its place in the document."""

import json

import pytest

from servebench import report
from servebench.catalogue import Row, Target, at_least, less, more, over
from servebench.rounds import Results
from servebench.selection import choose_peers, choose_rows

RATE = more("echo", "echo", "/s", at_least(0.7, "uvicorn"), at_least(2, "mosec"))
DELAY = less("delay", "  delay", "ms", over(0.1, "uvicorn"), Target(5))
ROWS = [Row("echo", "echo", lambda _: {}, (RATE, DELAY))]


@pytest.mark.parametrize(
    ("target", "value", "of_peer", "is_less_better", "is_met"),
    [
        (at_least(0.7, "uvicorn"), 70, 100, False, True),
        (at_least(0.7, "uvicorn"), 69, 100, False, False),
        (at_least(0.7, "uvicorn"), 69, None, False, None),
        (over(0.1, "uvicorn"), 0.25, 0.2, True, True),
        (over(0.1, "uvicorn"), 0.35, 0.2, True, False),
        (Target(5), 5.0, None, True, True),
        (Target(5), 5.0, None, False, True),
        (Target(5), 4.9, None, False, False),
    ],
)
def test_targets_have_the_direction_of_their_figure(target, value, of_peer, is_less_better, is_met):
    assert target.is_met(value, of_peer, is_less_better=is_less_better) is is_met


@pytest.fixture
def results():
    results = Results()
    results.values["retinue"]["echo"] = [90.0, 60.0, 70.0]
    results.values["uvicorn"]["echo"] = [100.0, 100.0, 110.0]
    results.values["retinue"]["delay"] = [6.0]
    results.errors["mosec"]["echo"] = "ServerFailedError: no answer"
    results.versions["retinue"] = {"uvloop": "0.22.1"}
    return results


def test_table_shows_medians_targets_and_errors(results):
    lines = report.table(ROWS, results).splitlines()
    assert lines[1].split()[:4] == ["echo", "/s", "70", "100"]
    assert lines[1].endswith("yes, ?")
    assert lines[2].endswith("?, NO")
    assert lines[-1] == "mosec echo: ServerFailedError: no answer"


def test_markdown_names_versions_and_failures(results):
    text = report.markdown(ROWS, results)
    assert text.startswith("| figure | unit | Retinue | bare uvicorn |")
    assert "Retinue: uvloop 0.22.1" in text
    assert "Failed: mosec echo" in text


def test_records_add_up(results):
    record = json.loads(json.dumps(report.record(ROWS, results)))
    results.add(record)
    assert results.values["retinue"]["echo"] == [90.0, 60.0, 70.0] * 2
    assert record["figures"]["echo"]["targets"][0] == {"target": "0.7x uvicorn", "is_met": True}


def test_later_values_come_behind_earlier_ones(results):
    later = Results()
    later.values["retinue"]["echo"] = [1.0]
    assert results.followed_by(later).values["retinue"]["echo"] == [90.0, 60.0, 70.0, 1.0]


def test_only_what_lies_between_the_markers_is_replaced():
    document = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    assert report.insert(document, "new") == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
    with pytest.raises(ValueError, match="no lines"):
        report.insert("no markers", "new")


def test_rows_and_peers_are_chosen_by_name():
    assert [row.name for row in choose_rows(["echo"])] == ["echo"]
    assert {row.name for row in choose_rows(["kill"])} == {
        "kill_controller", "kill_head", "kill_replica", "kill_proxy",
    }  # fmt: skip
    assert [peer.name for peer in choose_peers(["uvicorn", "retinue"])] == ["retinue", "uvicorn"]
    with pytest.raises(ValueError, match="teleport"):
        choose_rows(["teleport"])
    with pytest.raises(ValueError, match="teleport"):
        choose_peers(["teleport"])


def test_figures_of_all_rows_are_named_once():
    names = [figure.name for row in choose_rows([]) for figure in row.figures]
    assert len(names) == len(set(names))
