"""Merging and rendering, checked with the parser of the Prometheus client."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.core.metric_text import merge, render_prometheus

parser = pytest.importorskip("prometheus_client.parser")


def counter(name: str, value: float, **tags: str) -> dict[str, Any]:
    return {"name": name, "kind": "counter", "description": "", "tags": tags, "value": value}


def gauge(name: str, value: float, **tags: str) -> dict[str, Any]:
    return {"name": name, "kind": "gauge", "description": "", "tags": tags, "value": value}


def histogram(name: str, counts: list[int], total: float, **tags: str) -> dict[str, Any]:
    boundaries = [float(i + 1) for i in range(len(counts) - 1)]
    return {
        "name": name, "kind": "histogram", "description": "", "tags": tags,
        "boundaries": boundaries, "counts": counts, "sum": total,
    }  # fmt: skip


def parsed(text: str) -> dict[Any, float]:
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_processes_stay_apart_by_their_labels() -> None:
    snapshots = [[counter("c", 1), gauge("g", 5)], [counter("c", 2), gauge("g", 6)]]
    text = render_prometheus(snapshots, [{"pid": "1"}, {"pid": "2"}], prefix="")
    assert parsed(text) == {
        ("c_total", ("pid", "1")): 1,
        ("c_total", ("pid", "2")): 2,
        ("g", ("pid", "1")): 5,
        ("g", ("pid", "2")): 6,
    }
    assert text.count("# TYPE") == 2


def test_equal_labels_add_counters_and_histograms_up_and_keep_the_last_gauge() -> None:
    snapshots = [
        [counter("c", 1, a="x"), counter("c", 4, a="y"), gauge("g", 5), histogram("h", [1, 0, 2], 9.5)],
        [counter("c", 2, a="x"), gauge("g", 6), histogram("h", [0, 1, 1], 4)],
    ]
    assert merge(snapshots) == [
        counter("c", 3, a="x"),
        counter("c", 4, a="y"),
        gauge("g", 6),
        histogram("h", [1, 1, 3], 13.5),
    ]


def test_a_histogram_is_written_cumulatively() -> None:
    text = render_prometheus([[histogram("h", [1, 0, 2], 9.5, a="x")]])
    assert text == (
        "# HELP retinue_h \n"
        "# TYPE retinue_h histogram\n"
        'retinue_h_bucket{a="x",le="1.0"} 1\n'
        'retinue_h_bucket{a="x",le="2.0"} 1\n'
        'retinue_h_bucket{a="x",le="+Inf"} 3\n'
        'retinue_h_sum{a="x"} 9.5\n'
        'retinue_h_count{a="x"} 3\n'
    )


def test_a_tag_named_as_a_process_label_is_kept_beside_it() -> None:
    assert merge([[counter("c", 1, pid="mine")]], [{"pid": "7"}]) == [
        counter("c", 1, exported_pid="mine", pid="7")
    ]


def test_definitions_that_cannot_be_added_are_left_out() -> None:
    odd = histogram("h", [1, 1], 1)
    assert merge([[counter("c", 1)], [gauge("c", 5)]]) == [counter("c", 1)]
    assert merge([[histogram("h", [1, 0, 2], 9.5)], [odd]]) == [histogram("h", [1, 0, 2], 9.5)]


def test_awkward_values_and_names() -> None:
    text = render_prometheus(
        [[gauge("a", math.inf), gauge("b", -math.inf), gauge("c", math.nan), counter("d_total", 1)]],
        prefix="",
    )
    assert "a +Inf\n" in text
    assert "b -Inf\n" in text
    assert "c NaN\n" in text
    assert "d_total 1.0\n" in text
    assert parsed(render_prometheus([[gauge("g", 1, **{"a-b": "1", "0": "2"})]], prefix="")) == {
        ("g", ("_0", "2"), ("a_b", "1")): 1
    }


def test_help_is_written_once_and_escaped() -> None:
    samples = [{**gauge("g", 1, a="1"), "description": "two\nlines \\ one"}, gauge("g", 2, a="2")]
    text = render_prometheus([samples], prefix="")
    assert text.startswith("# HELP g two\\nlines \\\\ one\n")
    assert text.count("HELP") == 1


def test_nothing_renders_to_nothing() -> None:
    assert render_prometheus([]) == ""
    assert render_prometheus([[]], [{"pid": "1"}]) == ""


def test_each_snapshot_needs_its_labels() -> None:
    with pytest.raises(ValueError, match="zip"):
        merge([[], []], [{}])


names = st.sampled_from(["a", "b", "c"])
tag_values = st.text(max_size=5)
samples = st.one_of(
    st.builds(lambda n, v, t: counter("c_" + n, v, t=t), names, st.integers(1, 100), tag_values),
    st.builds(lambda n, v, t: gauge("g_" + n, v, t=t), names, st.floats(allow_nan=False), tag_values),
    st.builds(
        lambda n, c, t: histogram("h_" + n, c, sum(c), t=t),
        names,
        st.lists(st.integers(0, 9), min_size=3, max_size=3),
        tag_values,
    ),
)


@given(st.lists(st.lists(samples, max_size=6), max_size=4))
def test_the_parser_reads_what_was_recorded(snapshots: list[list[dict[str, Any]]]) -> None:
    labels = [{"process": str(i)} for i in range(len(snapshots))]
    found = parsed(render_prometheus(snapshots, labels, prefix=""))
    recorded = sum(s["value"] for snapshot in snapshots for s in snapshot if s["kind"] == "counter")
    assert sum(v for key, v in found.items() if key[0].startswith("c_")) == recorded
    observed = sum(sum(s["counts"]) for snapshot in snapshots for s in snapshot if s["kind"] == "histogram")
    assert sum(v for key, v in found.items() if key[0].endswith("_count")) == observed
    last = {
        (s["name"], ("process", str(i)), ("t", s["tags"]["t"])): s["value"]
        for i, snapshot in enumerate(snapshots)
        for s in snapshot
        if s["kind"] == "gauge"
    }
    assert {key: v for key, v in found.items() if key[0].startswith("g_")} == last


@given(st.permutations(range(4)), st.lists(st.lists(samples, max_size=5), min_size=4, max_size=4))
def test_the_order_of_snapshots_does_not_change_sums(
    order: list[int], snapshots: list[list[dict[str, Any]]]
) -> None:
    def sums(parts: list[list[dict[str, Any]]]) -> dict[Any, Any]:
        return {
            (s["name"], s["tags"]["t"]): s.get("value", s.get("counts"))
            for s in merge(parts)
            if s["kind"] != "gauge"
        }

    assert sums(snapshots) == sums([snapshots[i] for i in order])
