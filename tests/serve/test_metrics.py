from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from retinue.serve import context, metrics
from retinue.util.metrics import snapshot


@pytest.fixture
def _replica() -> Iterator[None]:
    context.set_replica_context(context.ReplicaContext("app#Model#r1", "app", "Model"))
    yield
    context.set_replica_context(None)


def tags_of(name: str) -> list[dict[str, str]]:
    return [dict(sample["tags"]) for sample in snapshot() if sample["name"] == name]


HERE = {"application": "app", "deployment": "Model", "replica": "r1"}


@pytest.mark.usefixtures("_replica")
def test_in_a_replica_series_say_where_they_were_recorded() -> None:
    metrics.Counter("words_a").inc(2)
    metrics.Gauge("words_b", tag_keys=("size",)).set(3, {"size": "s"})
    metrics.Histogram("words_c", boundaries=[1.0]).observe(0.5)
    assert tags_of("words_a") == [{**HERE, "route": ""}]
    assert tags_of("words_b") == [{**HERE, "route": "", "size": "s"}]
    assert tags_of("words_c") == [{**HERE, "route": ""}]


@pytest.mark.usefixtures("_replica")
def test_in_a_request_they_name_its_route() -> None:
    counter = metrics.Counter("words_d")
    token = context.request_context.set(context.RequestContext(route="/x"))
    try:
        counter.inc()
    finally:
        context.request_context.reset(token)
    assert tags_of("words_d") == [{**HERE, "route": "/x"}]


@pytest.mark.usefixtures("_replica")
def test_default_tags_do_not_take_the_replicas_away() -> None:
    metrics.Counter("words_e", tag_keys=("kind",)).set_default_tags({"kind": "k"}).inc()
    assert tags_of("words_e") == [{**HERE, "route": "", "kind": "k"}]
    with pytest.raises(ValueError, match="no_key"):
        metrics.Counter("words_e").set_default_tags({"no_key": "x"})


def test_outside_of_replicas_they_are_plain() -> None:
    metrics.Counter("words_f", tag_keys=("kind",)).inc(1, {"kind": "k"})
    assert tags_of("words_f") == [{"kind": "k"}]


@pytest.mark.usefixtures("_replica")
def test_one_that_travels_has_the_tags_of_where_it_arrives() -> None:
    sent = pickle.dumps(metrics.Counter("words_g", tag_keys=("kind",)))
    context.set_replica_context(context.ReplicaContext("other#Model#r9", "other", "Model"))
    pickle.loads(sent).inc(1, {"kind": "k"})
    other = {"application": "other", "deployment": "Model", "replica": "r9"}
    assert {**other, "route": "", "kind": "k"} in tags_of("words_g")
