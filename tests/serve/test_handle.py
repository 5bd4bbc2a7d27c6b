"""Handles, from drivers, tasks, actors and other loops, against real replicas' doors."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from typing import Any

import pytest

import retinue
from retinue.exceptions import RetinueTaskError
from retinue.serve.context import RequestContext, request_context
from retinue.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
    RetinueServeException,
)
from retinue.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator
from retinue.serve.routing.process import routers, use_this_loop
from tests.serve.routing.conftest import APP, Deployment, cluster, deployment, wait_until

__all__ = ["cluster", "deployment"]
TIMEOUT_S = 20.0


def handle_of(deployment: Deployment) -> DeploymentHandle[Any]:
    return DeploymentHandle(deployment.name, APP)


def test_a_call_returns_what_the_method_returns(deployment: Deployment) -> None:
    deployment.start()
    handle = handle_of(deployment)
    assert handle.remote("hello").result(timeout_s=TIMEOUT_S) == "hello"
    assert handle.add.remote(2, other=3).result(timeout_s=TIMEOUT_S) == 5
    assert handle.options(method_name="add").remote(2).result(timeout_s=TIMEOUT_S) == 3


def test_calls_made_before_there_is_a_replica_wait_for_one(deployment: Deployment) -> None:
    deployment.publish()
    response = handle_of(deployment).remote(1)
    with pytest.raises(TimeoutError):
        response.result(timeout_s=0.05)
    deployment.start()
    assert response.result(timeout_s=TIMEOUT_S) == 1


def test_errors_keep_the_users_type_and_the_remote_traceback(deployment: Deployment) -> None:
    deployment.start()
    with pytest.raises(KeyError) as caught:
        handle_of(deployment).fail.remote("missing").result(timeout_s=TIMEOUT_S)
    assert isinstance(caught.value, RetinueTaskError)
    assert "do_fail" in str(caught.value)


def test_responses_and_object_refs_are_passed_on_as_their_values(deployment: Deployment) -> None:
    deployment.start()
    add = handle_of(deployment).add
    first = add.remote(1)
    response = add.remote(first, other=retinue.put(10))
    assert add.remote(response, other=first).result(timeout_s=TIMEOUT_S) == 14
    failing = add.remote(handle_of(deployment).fail.remote("upstream"))
    with pytest.raises(KeyError, match="upstream"):
        failing.result(timeout_s=TIMEOUT_S)


def test_responses_cannot_be_pickled_but_handles_can(deployment: Deployment) -> None:
    deployment.start()
    handle = pickle.loads(pickle.dumps(handle_of(deployment).options(method_name="add", stream=False)))
    assert handle == handle_of(deployment).add
    response = handle.remote(1)
    with pytest.raises(RetinueServeException, match="cannot be pickled"):
        pickle.dumps([response])
    assert response.result(timeout_s=TIMEOUT_S) == 2


def test_values_of_main_and_local_kinds_travel(deployment: Deployment) -> None:
    deployment.start()
    doubled = handle_of(deployment).remote(lambda x: 2 * x).result(timeout_s=TIMEOUT_S)
    assert doubled(4) == 8


def test_streams_by_for_and_by_async_for(deployment: Deployment) -> None:
    deployment.start()
    handle = handle_of(deployment).options(stream=True)
    assert list(handle.count.remote(200)) == list(range(200))

    async def read() -> list[int]:
        return [item async for item in handle.count.remote(200)]

    assert asyncio.run(read()) == list(range(200))
    failing = handle.count_then_fail.remote(3)
    assert [next(failing) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="after the last"):
        next(failing)


def test_a_cancelled_stream_cancels_the_method(deployment: Deployment) -> None:
    (replica,) = deployment.start()
    stream = handle_of(deployment).options(stream=True).count_then_wait.remote(2)
    assert isinstance(stream, DeploymentResponseGenerator)
    assert [next(stream), next(stream)] == [0, 1]
    stream.cancel()
    wait_until(lambda: deployment.facts(replica)["ongoing"] == 0)
    assert deployment.facts(replica)["cancelled"] == 1
    with pytest.raises((RequestCancelledError, StopIteration)):
        next(stream)


def test_a_stream_that_nobody_has_read_can_be_cancelled(deployment: Deployment) -> None:
    (replica,) = deployment.start()
    stream = handle_of(deployment).options(stream=True).count_then_wait.remote(2)
    assert stream._call.wait(TIMEOUT_S) is not None  # it has begun
    stream.cancel()
    wait_until(lambda: deployment.facts(replica)["cancelled"] == 1)
    wait_until(lambda: deployment.facts(replica)["ongoing"] == 0)


def test_a_cancelled_call_is_cancelled_at_the_replica(deployment: Deployment) -> None:
    (replica,) = deployment.start()
    response = handle_of(deployment).wait.remote()
    wait_until(lambda: deployment.facts(replica)["ongoing"] == 1)
    response.cancel()
    assert response.cancelled()
    with pytest.raises(RequestCancelledError):
        response.result(timeout_s=TIMEOUT_S)
    wait_until(lambda: deployment.facts(replica)["cancelled"] == 1)


def test_a_response_can_be_awaited_twice_and_from_any_loop(deployment: Deployment) -> None:
    deployment.start()

    async def twice() -> tuple[Any, Any]:
        response = handle_of(deployment).remote([1])
        return await response, await response

    one, other = asyncio.run(twice())
    assert one is other
    assert one == [1]


def test_blocking_on_an_event_loop_is_refused(deployment: Deployment) -> None:
    deployment.start()

    async def block() -> None:
        response = handle_of(deployment).remote(1)
        with pytest.raises(RuntimeError, match="await"):
            response.result()
        assert await response == 1

    asyncio.run(block())


def test_many_threads_use_one_handle(deployment: Deployment) -> None:
    deployment.start(2, limit=3)
    handle = handle_of(deployment)
    results: list[int] = []

    def call() -> None:
        results.extend(handle.add.remote(n).result(timeout_s=TIMEOUT_S) for n in range(50))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted(list(range(1, 51)) * 4)


def test_the_limit_is_kept_across_processes(deployment: Deployment) -> None:
    replicas = deployment.start(2, limit=2)
    handle = handle_of(deployment)

    @retinue.remote(num_cpus=0.5)
    def caller(handle: DeploymentHandle[Any]) -> int:
        responses = [handle.sleep.remote(0.005) for _ in range(60)]
        return len([response.result(timeout_s=TIMEOUT_S) for response in responses])

    others = [caller.remote(handle) for _ in range(3)]
    mine = [handle.sleep.remote(0.005) for _ in range(60)]
    assert retinue.get(others) == [60] * 3
    assert all(response.result(timeout_s=TIMEOUT_S) == 0.005 for response in mine)
    facts = [deployment.facts(replica) for replica in replicas]
    assert [fact["most"] for fact in facts] == [2, 2]
    assert sum(fact["served"] for fact in facts) == 240


def test_async_actors_use_handles(deployment: Deployment) -> None:
    deployment.start()

    @retinue.remote(num_cpus=0)
    class Caller:
        async def one(self, handle: DeploymentHandle[Any]) -> int:
            return await handle.add.remote(1)

        async def on_its_loop(self, handle: DeploymentHandle[Any]) -> list[int]:
            use_this_loop("test")
            assert routers().loop is asyncio.get_running_loop()
            found = await asyncio.gather(*(handle.add.remote(n) for n in range(10)))
            found += [item async for item in handle.options(stream=True).count.remote(3)]
            return found

    caller = Caller.remote()
    assert retinue.get(caller.one.remote(handle_of(deployment))) == 2
    found = retinue.get(caller.on_its_loop.remote(handle_of(deployment)))
    assert found == [*range(1, 11), 0, 1, 2]
    retinue.kill(caller)


def test_nested_calls_carry_the_request_on(deployment: Deployment) -> None:
    deployment.start()
    context = RequestContext(request_id="outer", trace="00-trace", deadline=time.monotonic() + 30.0)
    token = request_context.set(context)
    try:
        response = handle_of(deployment).context.remote()
        assert response.result(timeout_s=TIMEOUT_S) == ["outer", "00-trace"]
        assert response.request_id == "outer"
        context.deadline = time.monotonic() + 0.05
        with pytest.raises(TimeoutError):
            handle_of(deployment).wait.remote().result(timeout_s=TIMEOUT_S)
    finally:
        request_context.reset(token)


def test_a_full_queue_is_told_at_once(deployment: Deployment) -> None:
    deployment.publish(max_queued_requests=2, backpressure_status=429)
    deployment.start(1, limit=1)
    handle = handle_of(deployment)
    assert handle.remote(0).result(timeout_s=TIMEOUT_S) == 0  # the limits are known here now
    responses = [handle.wait.remote() for _ in range(5)]
    errors = []
    for response in responses[3:]:
        with pytest.raises(BackPressureError) as caught:
            response.result(timeout_s=TIMEOUT_S)
        errors.append(caught.value)
    assert all(error.http_status == 429 and error.retry_after_s > 0 for error in errors)
    deployment.open()
    assert [response.result(timeout_s=TIMEOUT_S) for response in responses[:3]] == ["opened"] * 3


def test_a_request_whose_replica_dies_fails_and_those_that_wait_go_elsewhere(deployment: Deployment) -> None:
    (first,) = deployment.start(1, limit=1)
    handle = handle_of(deployment)
    running = handle.wait.remote()
    wait_until(lambda: deployment.facts(first)["ongoing"] == 1)
    waiting = handle.add.remote(1)
    deployment.kill(first)
    with pytest.raises(ReplicaUnavailableError):
        running.result(timeout_s=TIMEOUT_S)
    deployment.withdraw(first)
    deployment.start(1)
    assert waiting.result(timeout_s=TIMEOUT_S) == 2


def test_a_draining_replica_gets_nothing_more_and_finishes_what_it_has(deployment: Deployment) -> None:
    first, second = deployment.start(2, limit=100)
    handle = handle_of(deployment)
    running = [handle.wait.remote() for _ in range(10)]
    wait_until(lambda: sum(deployment.facts(r)["ongoing"] for r in (first, second)) == 10)
    before = deployment.facts(first)["ongoing"]
    retinue.get(deployment.actors[first].drain.remote())
    assert [handle.add.remote(n).result(timeout_s=TIMEOUT_S) for n in range(20)] == list(range(1, 21))
    assert deployment.facts(first)["served"] == 0
    deployment.open()
    assert [r.result(timeout_s=TIMEOUT_S) for r in running] == ["opened"] * 10
    assert deployment.facts(first)["served"] == before


def test_what_failed_to_deploy_says_so(deployment: Deployment) -> None:
    deployment.publish(problem="the constructor raised ValueError")
    with pytest.raises(DeploymentUnavailableError, match="the constructor raised"):
        handle_of(deployment).remote(1).result(timeout_s=TIMEOUT_S)
    waiting = handle_of(deployment)
    deployment.publish(problem="")
    response = waiting.remote(1)
    with pytest.raises(TimeoutError):
        response.result(timeout_s=0.05)
    deployment.publish(is_deleted=True)
    with pytest.raises(DeploymentUnavailableError, match="deleted"):
        response.result(timeout_s=TIMEOUT_S)


def test_broadcast_reaches_every_replica_even_full_ones(deployment: Deployment) -> None:
    first, second = deployment.start(2, limit=1)
    handle = handle_of(deployment)
    running = [handle.wait.remote() for _ in range(2)]
    wait_until(lambda: all(deployment.facts(r)["ongoing"] == 1 for r in (first, second)))
    assert handle.broadcast("add", 1, other=5).results(timeout_s=TIMEOUT_S) == [6, 6]
    results = handle.broadcast("fail", "x").results(timeout_s=TIMEOUT_S, return_exceptions=True)
    assert all(isinstance(r, KeyError) for r in results)
    deployment.open()
    assert [r.result(timeout_s=TIMEOUT_S) for r in running] == ["opened"] * 2


def test_requests_go_to_the_replica_that_holds_the_model(deployment: Deployment) -> None:
    deployment.start(2)
    (holder,) = deployment.start(1, models=("m",))
    handle = handle_of(deployment)
    wait_until(lambda: _knows_model(deployment, "m"))
    model = handle.options(method_name="add", multiplexed_model_id="m")
    assert [model.remote(n).result(timeout_s=TIMEOUT_S) for n in range(10)] == list(range(1, 11))
    assert deployment.facts(holder)["served"] == 10


def _knows_model(deployment: Deployment, model_id: str) -> bool:
    router = routers().get_soon(APP, deployment.name)
    return any(r.has_model(model_id) for r in router.scheduler.replicas.values())


def test_a_replica_is_chosen_first_and_called_then(deployment: Deployment) -> None:
    deployment.start(2, limit=1)
    handle = handle_of(deployment).add
    other = DeploymentHandle("another", APP)

    async def choose() -> None:
        async with handle.choose_replica(1) as selection:
            assert selection.replica_id in deployment.actors
            assert selection.to_dict()["node_id"] == selection.node_id
            with pytest.raises(ValueError, match="another deployment"):
                other.dispatch(selection, 1)
            assert await handle.dispatch(selection, 1) == 2
            with pytest.raises(RuntimeError, match="used"):
                handle.dispatch(selection, 1)
        async with handle.choose_replica(), handle.choose_replica():
            waiting = handle.remote(1)  # both are taken
            await asyncio.wait({asyncio.ensure_future(_value(waiting))}, timeout=0.05)
            assert routers().get_soon(APP, deployment.name).queued == 1
        assert await waiting == 2

    asyncio.run(choose())


async def _value(response: Any) -> Any:
    return await response


def test_unknown_serializations_are_refused(deployment: Deployment) -> None:
    with pytest.raises(ValueError, match="pickle"):
        handle_of(deployment).options(request_serialization="orjson")
    assert isinstance(handle_of(deployment).options(request_serialization="pickle"), DeploymentHandle)
    assert DeploymentResponse.by_reference is not None
