"""Many models: the one that a request names answers, where it is held; the one least recently used goes."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

pytest.importorskip("sklearn")

from examples.many_models import client
from examples.many_models.app import MODEL_IDS, MODELS_PER_REPLICA, app
from tests.examples.conftest import Serve


@pytest.fixture(scope="module")
def url(run_example: Serve) -> str:
    return run_example(app, "many_models")


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


def test_requests_find_the_replica_that_holds_their_model(http: httpx.Client) -> None:
    first = client.ask(http, "iris/logistic")
    assert not first["was_held"]
    assert first["accuracy"] > 0.9
    for _ in range(5):
        again = client.ask(http, "iris/logistic")
        assert (again["replica"], again["was_held"]) == (first["replica"], True)


def test_the_model_least_recently_used_goes(http: httpx.Client) -> None:
    for model_id in ["moons/logistic", "moons/neighbours", "wine/logistic", "wine/neighbours"] * 2:
        found = client.ask(http, model_id)
        assert found["holds"][-1] == model_id
        assert len(found["holds"]) <= MODELS_PER_REPLICA
    ids = MODEL_IDS
    assert len(ids) > 2 * MODELS_PER_REPLICA  # of two replicas: they cannot hold them all
    for model_id in ids:
        client.ask(http, model_id)
    assert not all(client.ask(http, model_id)["was_held"] for model_id in ids)


def test_rows_are_predicted_and_checked(http: httpx.Client) -> None:
    headers = {"serve_multiplexed_model_id": "iris/logistic"}
    rows = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]
    answer = http.post("/models", headers=headers, json={"rows": rows})
    assert answer.json()["predictions"] == ["setosa", "virginica"]
    assert http.post("/models", headers=headers, json={"rows": [[1.0]]}).status_code == 422
    assert http.post("/models", headers=headers, json={"row": 1}).status_code == 422


def test_an_unknown_model_is_told(http: httpx.Client) -> None:
    answer = http.post("/models", headers={"serve_multiplexed_model_id": "iris/oracle"})
    assert answer.status_code == 404
    assert "iris/oracle" in answer.text


def test_the_client_prints_a_line_for_each_request(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    client.main(["--url", url])
    printed = capsys.readouterr().out
    assert printed.startswith("15 models")
    assert printed.count(" ms  ") == len(client.ASKED)
    assert "held" in printed.splitlines()[-1]
