"""Metrics and logs of serve as a whole: after real traffic the sums are right, files say what happened."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from retinue import serve
from tests.e2e import serving
from tests.e2e.serve_monitored import Front, Model
from tests.e2e.serving import TIMEOUT_S, metric, read_json

HERE = {"application": "app", "deployment": "Model"}


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with serving.running(str(tmp_path_factory.mktemp("r"))) as client:
        serve.run(Front.bind(Model.bind()), name="app", route_prefix="/app")
        yield client


@pytest.fixture
def client(topology: httpx.Client) -> httpx.Client:
    return topology


def scraped(client: httpx.Client, condition: Callable[[str], bool]) -> str:
    """The page of metrics, once the condition holds: processes tell their agents every 2 s."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        page = client.get("/metrics").text
        if condition(page):
            return page
        assert time.monotonic() < deadline, page


def lines_of(path: str | None, condition: Callable[[str], bool]) -> list[str]:
    """The lines of a log file, once the condition holds for its text."""
    assert path is not None
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        text = Path(path).read_text()
        if condition(text):
            return text.splitlines()
        assert time.monotonic() < deadline, text


def test_sums_over_replicas_are_what_was_asked(client: httpx.Client) -> None:
    for number in range(40):
        assert read_json(client.get("/app", params={"n": number})) == {"answer": number + 1}
    assert client.get("/app", params={"n": -1}).status_code == 500
    model = serve.get_deployment_handle("Model", "app")
    assert list(model.options(stream=True).items.remote(3)) == [0, 1, 2]
    for number in range(4):
        assert model.both.remote(number).result(timeout_s=TIMEOUT_S) == number

    counter = "serve_deployment_request_counter_total"
    page = scraped(
        client,
        lambda text: (
            metric(text, counter, **HERE, method="predict") == 41
            and metric(text, counter, **HERE, method="both") == 4
            and metric(text, counter, deployment="Front") == 41
        ),
    )
    predicted = {**HERE, "method": "predict", "route": "/app"}
    assert metric(page, "serve_deployment_processing_latency_seconds_count", **predicted) == 41
    assert metric(page, "serve_deployment_error_counter_total", **predicted, exception_type="ValueError") == 1
    assert metric(page, "serve_deployment_error_counter_total", deployment="Front") == 1
    assert metric(page, "serve_deployment_time_to_first_chunk_seconds_count", **HERE, method="items") == 1
    assert metric(page, "serve_num_http_requests_total", application="app", status_code="200") == 40
    assert metric(page, "serve_num_http_error_requests_total", application="app", status_code="500") == 1
    assert metric(page, "serve_http_request_latency_seconds_count", application="app") == 41
    assert metric(page, "serve_num_open_http_connections") >= 1
    assert metric(page, "serve_num_router_requests_total", **HERE) == 41 + 1 + 4
    assert metric(page, "serve_replica_processing_queries", **HERE) == 0
    assert metric(page, "serve_deployment_queued_queries", **HERE) == 0
    batched = metric(page, "serve_actual_batch_size_sum", **HERE)
    assert batched == 4
    assert metric(page, "serve_batch_execution_time_seconds_count", **HERE) >= 1
    assert metric(page, "serve_batch_wait_time_seconds_count", **HERE) >= 1
    assert metric(page, "serve_multiplexed_get_model_requests_counter_total", **HERE) == 4
    assert metric(page, "serve_multiplexed_models_load_counter_total", **HERE) >= 2
    assert metric(page, "serve_deployment_target_replicas", **HERE) == 2
    assert metric(page, "serve_deployment_replicas", **HERE, state="RUNNING") == 2
    assert metric(page, "serve_deployment_replica_starts_total", **HERE) == 2
    assert metric(page, "serve_replica_startup_latency_seconds_count", **HERE) == 2
    assert metric(page, "serve_replica_initialization_latency_seconds_count", **HERE) == 2
    assert metric(page, "serve_deployment_status", **HERE) == 6
    assert metric(page, "serve_application_status", application="app") == 6
    assert metric(page, "serve_proxy_status") == 2


def test_each_process_has_its_log(client: httpx.Client) -> None:
    client.get("/app", params={"n": 7}, headers={"x-request-id": "seven"})
    told = serving.details()
    proxy = next(iter(told.proxies.values()))
    access = lines_of(proxy.log_file_path, lambda text: " seven -- " in text)
    assert any(line.partition(" seven -- ")[2].startswith("GET /app 200 ") for line in access)
    controller = lines_of(told.controller_info.log_file_path, lambda text: "is RUNNING" in text)
    assert any("app#Model#" in line for line in controller)

    texts: list[str] = []
    for replica in serving.deployment("Model", "app").replicas:
        assert replica.log_file_path is not None
        assert Path(replica.log_file_path).name.startswith("replica_app_Model_")
        texts += lines_of(replica.log_file_path, lambda text: "constructed" in text)
    deadline = time.monotonic() + TIMEOUT_S
    while not any('"status"' in text and '"seven"' in text for text in texts):
        assert time.monotonic() < deadline
        texts = [
            line
            for replica in serving.deployment("Model", "app").replicas
            for line in Path(str(replica.log_file_path)).read_text().splitlines()
        ]
    lines = [json.loads(text) for text in texts]
    user = next(line for line in lines if line.get("number") == 7 and line["request_id"] == "seven")
    assert (user["message"], user["route"], user["application"]) == ("predicting", "/app", "app")
    call = next(line for line in lines if "status" in line and line["request_id"] == "seven")
    assert (call["method"], call["path"], call["status"]) == ("CALL", "predict", "OK")

    front = serving.deployment("Front", "app").replicas[0].log_file_path
    assert " -- GET " not in Path(str(front)).read_text()


def test_a_replica_that_is_gone_leaves_no_series_but_its_last_words(client: httpx.Client) -> None:
    before = set(serving.pids("Model", "app"))
    with pytest.raises(Exception, match="replica"):
        serve.get_deployment_handle("Model", "app").die.remote().result(timeout_s=TIMEOUT_S)
    dead = serving.until(lambda: serving.deployment("Model", "app").recent_dead_replicas)[-1]
    assert "the last words" in (dead.log_tail or "")
    assert dead.replica_id in before
    tag = dead.replica_id.rpartition("#")[2]
    page = scraped(client, lambda text: f'replica="{tag}"' not in text)
    assert metric(page, "serve_deployment_replica_deaths_total", **HERE) == 1
