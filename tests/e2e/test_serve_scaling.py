"""Serve scales by load, and says why: on a real cluster."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import retinue
from retinue import serve
from retinue.serve.schema import ServeDeploySchema
from tests.e2e import serving

APP = "scaled"


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETINUE_TEMP_DIR", str(tmp_path_factory.mktemp("r")))
        patch.delenv("RETINUE_ADDRESS", raising=False)
        retinue.init(address="local", num_cpus=4)
        serve.start(
            proxy_location="Disabled",
            controller_options={"runtime_env": {"env_vars": {"RETINUE_SERVE_SLOW_START_S": "0.2"}}},
        )
        yield
        serve.shutdown()
        retinue.shutdown()


@pytest.fixture(autouse=True)
def no_application() -> Iterator[None]:
    yield
    for name in serve.status().applications:
        serve.delete(name)


class Held:
    """Answers once a file is there."""

    async def __call__(self, path: str) -> str:
        while not os.path.exists(path):  # noqa: ASYNC110, ASYNC240 - another process makes it
            await asyncio.sleep(0.005)
        return "done"


def running(name: str = "Held") -> int:
    return len(serving.pids(name, APP))


AT_ONCE = {"upscale_delay_s": 0, "downscale_delay_s": 0, "look_back_period_s": 0.2, "metrics_interval_s": 0.1}


def test_the_first_extra_replica_runs_within_a_second_of_queued_requests(tmp_path: Path) -> None:
    scaling = {**AT_ONCE, "min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 1}
    held = serve.deployment(Held, max_ongoing_requests=1, autoscaling_config=scaling)
    handle = serve.run(held.bind(), name=APP, route_prefix=None)
    began = time.monotonic()
    responses = [handle.remote(str(tmp_path / "go")) for _ in range(4)]
    serving.until(lambda: running() == 2, "no second replica")
    assert time.monotonic() - began < 1.0
    (decision,) = serving.deployment("Held", APP).autoscaling_detail.decisions
    assert (decision.prev_num_replicas, decision.curr_num_replicas) == (1, 2)
    assert "requests, 1 wanted per replica (1 to 2 allowed)" in decision.reason
    (tmp_path / "go").touch()
    assert [r.result(timeout_s=20) for r in responses] == ["done"] * 4
    serving.until(lambda: running() == 1, "the second replica stays")


def test_to_zero_and_back_with_requests_held(tmp_path: Path) -> None:
    scaling = {**AT_ONCE, "min_replicas": 0, "initial_replicas": 1, "max_replicas": 2}
    held = serve.deployment(Held, autoscaling_config=scaling)
    handle = serve.run(held.bind(), name=APP, route_prefix=None)
    (tmp_path / "go").touch()
    for _ in range(2):
        serving.until(lambda: not serving.deployment("Held", APP).replicas, "a replica stays")
        assert handle.remote(str(tmp_path / "go")).result(timeout_s=20) == "done"
    reasons = [d.reason for d in serving.deployment("Held", APP).autoscaling_detail.decisions]
    assert any("1 requests wait and no replica runs" in reason for reason in reasons)


def hangs(context: Any) -> tuple[int, dict[str, Any]]:
    threading.Event().wait()
    return 1, {}


def raises(context: Any) -> tuple[int, dict[str, Any]]:
    raise LookupError("no metrics today")


def test_policies_that_hang_or_raise_hold_nothing_up_and_are_told_of() -> None:
    apps = {"hangs": hangs, "raises": raises}
    for name, policy in apps.items():
        scaling = {"min_replicas": 1, "max_replicas": 2, "policy": {"policy_function": policy}}
        serve.run(serve.deployment(Held, autoscaling_config=scaling).bind(), name=name, route_prefix=None)

    def errors(name: str) -> list[str]:
        return serving.deployment("Held", name).autoscaling_detail.errors

    serving.until(lambda: any("LookupError: no metrics today" in e for e in errors("raises")))
    serving.until(lambda: any("has not returned for 5 s" in e for e in errors("hangs")))


def both(contexts: Any) -> tuple[dict[Any, int], dict[Any, Any]]:
    """Two replicas of each deployment."""
    return dict.fromkeys(contexts, 2), {i: {"asked": True} for i in contexts}


app = serve.deployment(Held, autoscaling_config={**AT_ONCE, "max_replicas": 3}).bind()


def test_a_policy_of_the_whole_application() -> None:
    config = ServeDeploySchema.model_validate(
        {
            "applications": [
                {
                    "name": APP,
                    "route_prefix": None,
                    "import_path": "tests.e2e.test_serve_scaling:app",
                    "autoscaling_policy": {"policy_function": "tests.e2e.test_serve_scaling:both"},
                    "runtime_env": {"working_dir": str(Path(__file__).parents[2])},
                }
            ]
        }
    )
    controller = retinue.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    retinue.get(controller.apply_config.remote(config.model_dump_json(exclude_unset=True).encode()))
    assert serve.status().applications[APP].status == "DEPLOYING"
    serving.until(
        lambda: serve.status().applications[APP].deployments and running() == 2, "no second replica"
    )
    (decision,) = serving.deployment("Held", APP).autoscaling_detail.decisions
    assert decision.policy == "tests.e2e.test_serve_scaling:both"


class Hangs:
    def __init__(self, path: str) -> None:
        while not Path(path).exists():
            threading.Event().wait(0.01)

    def __call__(self) -> str:
        return "up"


def test_a_constructor_that_hangs_is_told_of_and_holds_up_no_other(tmp_path: Path) -> None:
    thread = threading.Thread(
        target=serve.run,
        args=(serve.deployment(Hangs).bind(str(tmp_path / "go")),),
        kwargs={"name": "slow", "route_prefix": None},
    )
    thread.start()
    serving.until(
        lambda: (
            "slow" in serving.details().applications
            and "constructor has not returned since" in serving.deployment("Hangs", "slow").message
        )
    )
    (tmp_path / "other").touch()
    other = serve.run(serve.deployment(Held).bind(), name=APP, route_prefix=None)
    assert other.remote(str(tmp_path / "other")).result(timeout_s=20) == "done"
    (tmp_path / "go").touch()
    thread.join(20)
    assert not thread.is_alive()
    assert serving.deployment("Hangs", "slow").message == ""


@retinue.remote(num_cpus=3)
class Holder:
    def ready(self) -> None:
        pass


def test_a_replica_without_room_says_what_is_missing_and_who_holds_it(tmp_path: Path) -> None:
    holder = Holder.options(name="greedy").remote()
    retinue.get(holder.ready.remote())
    deployment = serve.deployment(Held, ray_actor_options={"num_cpus": 2})
    thread = threading.Thread(
        target=serve.run, args=(deployment.bind(),), kwargs={"name": APP, "route_prefix": None}
    )
    began = time.monotonic()
    thread.start()
    serving.until(
        lambda: APP in serving.details().applications and "held by" in serving.deployment("Held", APP).message
    )
    assert time.monotonic() - began < 1.0
    message = serving.deployment("Held", APP).message
    assert "it needs 2 CPU; free: 1 CPU of 4 CPU; held by actor greedy (3 CPU)" in message
    retinue.kill(holder)
    thread.join(20)
    assert not thread.is_alive()
