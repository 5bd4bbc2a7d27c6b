"""What applications record, what a snapshot says of it, and what processes and threads add to that."""

from __future__ import annotations

import os
import pickle
import threading
import warnings
from typing import Any

import msgspec
import pytest

from retinue.util import metric_store, metrics
from retinue.util.metrics import Counter, Gauge, Histogram


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> metric_store.Registry:
    registry = metric_store.Registry(limit=100)
    monkeypatch.setattr(metrics, "REGISTRY", registry)
    return registry


def values() -> dict[Any, Any]:
    return {
        (s["name"], *sorted(s["tags"].items())): s.get("value", (s.get("counts"), s.get("sum")))
        for s in metrics.snapshot()
    }


def test_a_counter_grows() -> None:
    counter = Counter("requests", description="answered")
    counter.inc()
    counter.inc(2.5)
    assert metrics.snapshot() == [
        {"name": "requests", "kind": "counter", "description": "answered", "tags": {}, "value": 3.5}
    ]


def test_a_counter_takes_positive_numbers_only() -> None:
    counter = Counter("requests")
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="positive"):
            counter.inc(wrong)
    with pytest.raises(TypeError):
        counter.inc("1")  # type: ignore[arg-type]


def test_a_gauge_keeps_the_latest() -> None:
    gauge = Gauge("queue_length")
    gauge.set(5)
    gauge.set(2)
    gauge.set(None)
    assert values() == {("queue_length",): 2.0}
    with pytest.raises(TypeError):
        gauge.set("2")  # type: ignore[arg-type]


def test_a_histogram_counts_by_range() -> None:
    histogram = Histogram("latency_s", boundaries=[1, 0.1])
    for value in (0.05, 0.1, 0.5, 1, 3):
        histogram.observe(value)
    assert values() == {("latency_s",): ([2, 2, 1], pytest.approx(4.65))}
    with pytest.raises(TypeError):
        histogram.observe("1")  # type: ignore[arg-type]


@pytest.mark.parametrize("boundaries", [None, [], [0, 1], [-1.0]])
def test_a_histogram_needs_positive_boundaries(boundaries: Any) -> None:
    with pytest.raises(ValueError, match="boundaries"):
        Histogram("latency_s", boundaries=boundaries)


def test_tags_make_series_whatever_their_order() -> None:
    counter = Counter("requests", tag_keys=("route", "status"))
    counter.inc(tags={"route": "/", "status": "200"})
    counter.inc(tags={"status": "200", "route": "/"})
    counter.inc(tags={"route": "/", "status": "500"})
    assert values() == {
        ("requests", ("route", "/"), ("status", "200")): 2,
        ("requests", ("route", "/"), ("status", "500")): 1,
    }


def test_a_record_overrides_default_tags() -> None:
    counter = Counter("requests", tag_keys=("app", "route"))
    counter.inc(tags={"app": "x", "route": "/"})
    assert counter.set_default_tags({"app": "demo", "route": "/"}) is counter
    counter.inc()
    counter.inc(tags={"route": "/x"})
    assert values() == {
        ("requests", ("app", "x"), ("route", "/")): 1,
        ("requests", ("app", "demo"), ("route", "/")): 1,
        ("requests", ("app", "demo"), ("route", "/x")): 1,
    }


def test_tags_are_checked() -> None:
    counter = Counter("requests", tag_keys=("route",))
    for _ in range(2):
        with pytest.raises(ValueError, match="tag keys route"):
            counter.inc()
        with pytest.raises(TypeError, match="must be str"):
            counter.inc(tags={"route": 1})  # type: ignore[dict-item]
        with pytest.raises(TypeError, match="must be str"):
            counter.inc(tags={"route": []})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="not a tag key"):
        counter.set_default_tags({"other": "x"})
    with pytest.raises(TypeError, match="must be str"):
        counter.set_default_tags({"route": 1})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="tuple"):
        Counter("requests", tag_keys=["route"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be str"):
        Counter("requests", tag_keys=(1,))  # type: ignore[arg-type]
    assert values() == {}


def test_further_tags_are_kept() -> None:
    Counter("requests", tag_keys=("route",)).inc(tags={"route": "/", "more": "1"})
    assert values() == {("requests", ("more", "1"), ("route", "/")): 1}


def test_info_is_the_definition() -> None:
    histogram = Histogram("h", "what", [1.0], ("a",)).set_default_tags({"a": "b"})
    assert histogram.info == {
        "name": "h",
        "description": "what",
        "tag_keys": ("a",),
        "default_tags": {"a": "b"},
        "boundaries": [1.0],
    }


def test_invalid_names_warn_and_are_dropped() -> None:
    with pytest.raises(ValueError, match="needs a name"):
        Counter("")
    with pytest.warns(UserWarning, match="no valid metric name"):
        counter = Counter("0-requests")
    counter.inc()
    with pytest.raises(ValueError, match="positive"):
        counter.inc(-1)
    with pytest.warns(FutureWarning, match="colons"):
        Counter("app:requests")
    assert values() == {}


def test_the_warning_points_at_the_caller() -> None:
    for make in (lambda: Gauge("0-g"), lambda: Histogram("0-h", boundaries=[1])):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make()
        assert caught[0].filename.endswith("test_metrics.py")


def test_two_definitions_are_one_metric_unless_of_another_kind() -> None:
    Counter("requests").inc()
    Counter("requests").inc()
    assert values() == {("requests",): 2}
    with pytest.raises(ValueError, match="is a counter"):
        Gauge("requests")


def test_a_histogram_with_new_boundaries_starts_anew() -> None:
    Histogram("h", boundaries=[1]).observe(1)
    histogram = Histogram("h", boundaries=[2])
    histogram.observe(1)
    assert values() == {("h",): ([1, 0], 1.0)}


def test_a_pickled_metric_is_the_definition_without_values() -> None:
    for metric in (
        Counter("c", "d", ("a",)).set_default_tags({"a": "1"}),
        Gauge("g", "d", ("a",)).set_default_tags({"a": "1"}),
        Histogram("h", "d", [1.0, 2.0], ("a",)).set_default_tags({"a": "1"}),
    ):
        copy = pickle.loads(pickle.dumps(metric))
        assert (type(copy), copy.info) == (type(metric), metric.info)
    assert values() == {}


def test_a_snapshot_is_plain_data() -> None:
    Counter("c", tag_keys=("a",)).inc(tags={"a": "1"})
    Gauge("g").set(True)
    Histogram("h", boundaries=[1]).observe(3)
    samples = metrics.snapshot()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(samples)) == samples


def test_no_increment_is_lost_between_threads() -> None:
    counter, histogram = Counter("c", tag_keys=("a",)), Histogram("h", boundaries=[1])
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        for _ in range(5_000):
            counter.inc(tags={"a": "x"})
            histogram.observe(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values() == {("c", ("a", "x")): 20_000, ("h",): ([20_000, 0], 20_000)}


def test_the_number_of_series_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    counter, gauge = Counter("c", tag_keys=("id",)), Gauge("g", tag_keys=("id",))
    for i in range(250):
        counter.inc(tags={"id": str(i)})
        gauge.set(i, tags={"id": str(i)})
    counter.inc(tags={"id": "0"})
    assert len(values()) == 200
    assert values()[("c", ("id", "0"))] == 2
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "metric c has 100 combinations" in caplog.text


def test_a_forked_child_does_not_report_its_parents_values(registry: metric_store.Registry) -> None:
    counter, gauge = Counter("c"), Gauge("g")
    counter.inc(5)
    gauge.set(1)
    registry.reset_after_fork()  # what os.fork runs for the registry of the process
    assert metrics.snapshot() == []
    counter.inc()
    assert values() == {("c",): 1}


def test_the_process_registry_is_reset_by_fork() -> None:
    series = metric_store.REGISTRY.series("test_reset_by_fork", "counter", "")
    series.cell(())[0][0] = 1.0
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"empty" if not series.samples() else b"kept")
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == b"empty"
    os.waitpid(child, 0)
    assert series.samples()
    series.reset()
