"""Deployments that call each other, handles from everywhere, config files, and the status that is told."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import retinue
from retinue import serve
from retinue.serve.api import RunTarget
from retinue.serve.exceptions import RequestCancelledError, RetinueServeException
from retinue.serve.messages import CONTROLLER_NAME, NAMESPACE
from retinue.serve.schema import ApplicationStatus, DeploymentStatus, ProxyStatus, ReplicaState
from tests.e2e import serving
from tests.e2e.serve_graphs import Adder, Batched, Multi, Named, OwnError, graph
from tests.e2e.serving import TIMEOUT_S, pids, read_json, until


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with serving.running(str(tmp_path_factory.mktemp("r"))) as client:
        handles = serve.run_many(
            [
                RunTarget(graph, "graph", None),
                RunTarget(Batched.bind(), "batched", None),
                RunTarget(Multi.bind(), "multi", None),
            ]
        )
        assert [(h.app_name, h.deployment_name) for h in handles] == [
            ("graph", "Graph"),
            ("batched", "Batched"),
            ("multi", "Multi"),
        ]
        yield client


@pytest.fixture
def client(topology: httpx.Client) -> httpx.Client:
    return topology


def app(name: str) -> Any:
    return serve.get_app_handle(name)


def result(response: Any) -> Any:
    return response.result(timeout_s=TIMEOUT_S)


# --- composition


def test_chains_fan_outs_and_choices() -> None:
    handle = app("graph")
    assert result(handle.remote(1)) == 12
    assert result(handle.fan_out.remote(40)) == list(range(1, 41))
    assert result(handle.either.remote(2)) == 102
    assert result(handle.either.remote(3)) == 1003
    assert list(handle.options(stream=True).stream.remote(50)) == [10 * (n + 1) for n in range(50)]


def test_an_answer_is_passed_on_without_waiting_for_it() -> None:
    first = serve.get_deployment_handle("First", "graph")
    second = serve.get_deployment_handle("Second", "graph")
    began = time.monotonic()
    waiting = first.slow.remote(1, 0.3)
    chained = second.remote(waiting)
    assert time.monotonic() - began < 0.2
    assert result(chained) == 12
    assert result(waiting) == 2
    big = b"x" * 2_000_000
    assert result(second.remote(x=retinue.put(5))) == 15
    with pytest.raises(TypeError):
        result(second.remote(big))


def test_errors_keep_their_type_through_two_deployments() -> None:
    handle = app("graph")
    assert result(handle.nested_fail.remote()) == "caught 7"
    with pytest.raises(OwnError) as caught:
        result(handle.fail_through.remote())
    assert caught.value.code == 8
    assert "of the user's own" in str(caught.value)
    stream = serve.get_deployment_handle("First", "graph").options(stream=True).broken_items.remote()
    assert next(stream) == 1
    with pytest.raises(OwnError, match="in a stream"):
        next(stream)
    with pytest.raises(AttributeError):
        result(handle.no_such_method.remote())


def test_cancelling_reaches_what_was_called() -> None:
    first = serve.get_deployment_handle("First", "graph")

    def facts(what: str) -> int:
        return sum(f[what] for f in first.broadcast("facts").results(timeout_s=TIMEOUT_S))

    began, cancelled = facts("began"), facts("cancelled")
    response = app("graph").forever.remote()
    until(lambda: facts("began") == began + 1)
    response.cancel()
    with pytest.raises(RequestCancelledError):
        result(response)
    assert response.cancelled()
    until(lambda: facts("cancelled") == cancelled + 1)


def test_broadcasts_reach_each_replica() -> None:
    found = serve.get_deployment_handle("First", "graph").broadcast("facts").results(timeout_s=TIMEOUT_S)
    assert {f["pid"] for f in found} == set(pids("First", "graph").values())
    assert len(found) == 2


# --- handles from everywhere


def test_handles_work_in_tasks_and_actors() -> None:
    handle = app("graph")

    @retinue.remote(num_cpus=0.1)
    def task(handle: Any) -> Any:
        return handle.remote(5).result(timeout_s=TIMEOUT_S), list(
            handle.options(stream=True).stream.remote(3)
        )

    @retinue.remote(num_cpus=0)
    class AsyncActor:
        async def call(self, handle: Any) -> Any:
            response = handle.remote(6)
            return await response, await response

    @retinue.remote(num_cpus=0)
    class Actor:
        def call(self) -> Any:
            return serve.get_deployment_handle("Second", "graph").remote(1).result(timeout_s=TIMEOUT_S)

    assert retinue.get(task.remote(handle), timeout=TIMEOUT_S) == (16, [10, 20, 30])
    actor, other = AsyncActor.remote(), Actor.remote()
    assert retinue.get(actor.call.remote(handle), timeout=TIMEOUT_S) == (17, 17)
    assert retinue.get(other.call.remote(), timeout=TIMEOUT_S) == 11

    async def here() -> Any:
        return await handle.remote(7), [i async for i in handle.options(stream=True).stream.remote(2)]

    assert asyncio.run(here()) == (18, [10, 20])


def test_what_is_not_there_is_told_with_the_nearest_name() -> None:
    with pytest.raises(RetinueServeException, match=r"no application 'grapf'.*graph"):
        serve.get_app_handle("grapf")
    with pytest.raises(RetinueServeException, match=r"no deployment 'Frist'.*First"):
        serve.get_deployment_handle("Frist", "graph")
    with pytest.raises(RetinueServeException, match="no application 'x'"):
        serve.delete("x")


# --- batches and models


def test_batches_grow_while_the_model_is_busy() -> None:
    handle = app("batched")
    responses = [handle.remote(n) for n in range(40)]
    assert [result(r) for r in responses] == [2 * n for n in range(40)]
    sizes = result(handle.taken.remote())
    assert sum(sizes) == 40
    assert max(sizes) == 8
    assert len(sizes) <= 12
    responses = [handle.remote(n) for n in (1, -2, 3)]
    assert result(responses[0]) == 2
    assert result(responses[2]) == 6
    with pytest.raises(OwnError) as caught:
        result(responses[1])
    assert caught.value.code == -2


def test_models_are_loaded_once_and_the_oldest_leaves() -> None:
    handle = app("multi")

    def ask(model: str) -> str:
        answer: str = result(handle.options(multiplexed_model_id=model).remote())
        return answer

    def loads() -> list[str]:
        found: list[list[str]] = handle.broadcast("facts").results(timeout_s=TIMEOUT_S)
        return sorted(model for replica in found for model in replica)

    for _ in range(10):
        assert [ask(m) for m in "abcd"] == ["<a>", "<b>", "<c>", "<d>"]
    assert loads() == ["a", "b", "c", "d"]
    responses = [handle.options(multiplexed_model_id="e").remote() for _ in range(20)]
    assert {result(r) for r in responses} == {"<e>"}
    assert loads().count("e") == 1


# --- what is told, and taken away


def test_the_status_is_made_of_enums(client: httpx.Client) -> None:
    status = serve.status()
    assert set(status.proxies.values()) == {ProxyStatus.HEALTHY}
    overview = status.applications["graph"]
    assert overview.status is ApplicationStatus.RUNNING
    assert overview.deployments["First"].status is DeploymentStatus.HEALTHY
    assert overview.deployments["First"].replica_states == {ReplicaState.RUNNING: 2}
    assert overview.last_deployed_time_s > 0


def test_a_deleted_application_is_gone_and_comes_again(client: httpx.Client) -> None:
    handle = serve.run(Adder.bind(5), name="short", route_prefix="/short")
    assert result(handle.remote(1)) == 6
    serve.delete("short")
    assert "short" not in serve.status().applications
    with pytest.raises(serve.exceptions.DeploymentUnavailableError):
        result(handle.remote(1))
    assert client.get("/short").status_code == 404
    handle = serve.run(Adder.bind(6), name="short", route_prefix=None)
    assert result(handle.remote(1)) == 7
    serve.delete("short")


# --- config files


def apply(*applications: dict[str, Any], **more: Any) -> None:
    controller = retinue.get_actor(CONTROLLER_NAME, namespace=NAMESPACE)
    config = json.dumps({"applications": list(applications), **more}).encode()
    retinue.get(controller.apply_config.remote(config), timeout=TIMEOUT_S)


def test_a_config_file_builds_with_typed_arguments_and_a_wrong_one_changes_nothing(
    client: httpx.Client,
) -> None:
    module = "tests.e2e.serve_graphs"
    named = {
        "name": "named",
        "route_prefix": "/named",
        "import_path": f"{module}:build",
        "args": {"amount": 4, "names": ["a"]},
    }
    apply(named)
    until(lambda: serve.status().applications["named"].status == "RUNNING")
    assert read_json(client.get("/named")) == {"names": ["a"], "amount": 4}
    before = pids("Named", "named")
    for wrong in (
        {**named, "route_prefx": "/x"},
        {**named, "deployments": [{"name": "Named", "num_replicas": -1}]},
    ):
        with pytest.raises(Exception, match=r"route_prefix|num_replicas"):
            apply(wrong)
    apply({**named, "args": {"amount": "many"}})
    until(lambda: serve.status().applications["named"].status == "DEPLOY_FAILED")
    assert "amount" in serve.status().applications["named"].message
    assert pids("Named", "named") == before
    assert read_json(client.get("/named"))["amount"] == 4
    apply({**named, "args": {"amount": 5}, "deployments": [{"name": "Named", "num_replicas": 2}]})
    until(lambda: serve.status().applications["named"].status == "RUNNING")
    assert read_json(client.get("/named"))["amount"] == 5
    assert len(pids("Named", "named")) == 2
    apply()
    until(lambda: "named" not in serve.status().applications)
    assert serve.status().applications["graph"].status == "RUNNING"
    assert Named.name == "Named"


# --- starting replicas of a heavy model


def test_the_second_replica_of_a_torch_model_is_there_at_once() -> None:
    pytest.importorskip("torch")
    from tests.e2e.serve_torch import Net

    net = Net.options(ray_actor_options={"num_cpus": 0.1})
    serve.run(net.bind(), name="torch", route_prefix=None)
    began = time.monotonic()
    handle = serve.run(net.options(num_replicas=2).bind(), name="torch", route_prefix=None)
    took = time.monotonic() - began
    assert len(pids("Net", "torch")) == 2
    answers = handle.broadcast("forward", [1.0, 2.0]).results(timeout_s=TIMEOUT_S)
    assert len(answers) == 2
    print(f"second replica after {took:.3f} s")
    assert took < 1.0
