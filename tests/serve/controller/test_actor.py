"""The controller's actor on a real cluster, with small replicas and proxies."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import retinue
from retinue.core import doors
from retinue.serve.controller.actor import start_controller
from retinue.serve.messages import (
    CONTROLLER_DOOR,
    CONTROLLER_KEY,
    CONTROLLER_NAME,
    NAMESPACE,
    ApplicationSpec,
    ControllerInfo,
    DeploymentRouting,
    DeploymentSpec,
    RouterStats,
    RouteTable,
    decode,
    encode,
    routing_key,
)
from retinue.serve.schema import ServeInstanceDetails
from retinue.util import list_named_actors
from tests.serve.controller.fakes import FAKE_PROXY, FAKE_REPLICA, Behaviour, init_args

TIMEOUT_S = 20.0


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETINUE_TEMP_DIR", str(tmp_path_factory.mktemp("r")))
        patch.delenv("RETINUE_ADDRESS", raising=False)
        retinue.init(address="local", num_cpus=4, resources={"seat": 1})
        yield
        retinue.shutdown()


class Serve:
    """What a test does with a controller."""

    def __init__(self, folder: Path) -> None:
        self.handle = start_controller(replica_class=FAKE_REPLICA, proxy_class=FAKE_PROXY)
        self.kv = doors.KeyValue(NAMESPACE)
        self.folder = folder
        self.log_path = folder / "log"

    def switch(self, name: str) -> Path:
        return self.folder / name

    def deployment(
        self, name: str = "d", *, version: str = "1", options: dict[str, Any] | None = None, **more: Any
    ) -> DeploymentSpec:
        told = {name: more.pop(name) for name in list(more) if name in Behaviour.__dataclass_fields__}
        config = {"health_check_period_s": 0.05, **more}
        return DeploymentSpec(
            name=name,
            config=json.dumps(config).encode(),
            definition=b"",
            init_args=init_args(Behaviour(str(self.log_path), **told)),
            actor_options=json.dumps({"num_cpus": 0, **(options or {})}).encode(),
            version=version,
        )

    def deploy(self, *deployments: DeploymentSpec, app: str = "app", prefix: str | None = "/") -> None:
        spec = ApplicationSpec(app, prefix, deployments[-1].name, list(deployments))
        retinue.get(self.handle.deploy.remote([encode(spec)]))

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(retinue.get(self.handle.status.remote()))
        return status

    def app(self, name: str = "app") -> dict[str, Any]:
        gone: dict[str, Any] = {"status": "GONE", "message": "", "deployments": {}}
        app: dict[str, Any] = self.status()["applications"].get(name, gone)
        return app

    def details(self) -> ServeInstanceDetails:
        return ServeInstanceDetails.model_validate_json(retinue.get(self.handle.details.remote()))

    def until(self, condition: Callable[[], Any], what: str = "") -> Any:
        """Look at each change of the status until something is so."""
        deadline = time.monotonic() + TIMEOUT_S
        version = -1
        while not (result := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: {self.status()}")
            with contextlib.suppress(retinue.exceptions.GetTimeoutError):
                version = retinue.get(self.handle.changed.remote(version), timeout=0.1)
        return result

    def until_status(self, status: str, app: str = "app") -> None:
        self.until(lambda: self.app(app)["status"] == status, status)

    def routing(self, app: str = "app", deployment: str = "d") -> DeploymentRouting:
        value = self.kv.get(routing_key(app, deployment))
        return (
            decode(DeploymentRouting, value) if value else DeploymentRouting(app, deployment, is_deleted=True)
        )

    def replica_ids(self, app: str = "app", deployment: str = "d") -> list[str]:
        return [r.replica_id for r in self.routing(app, deployment).replicas]

    def pid_of(self, replica_id: str) -> int:
        app, deployment, _ = replica_id.split("#")
        replicas = self.details().applications[app].deployments[deployment].replicas
        return next(r.pid for r in replicas if r.replica_id == replica_id and r.pid is not None)

    def log(self) -> list[tuple[str, str]]:
        """(replica id, what), in order."""
        lines = self.log_path.read_text().splitlines() if self.log_path.exists() else []
        return [(line.split(" ", 2)[1], line.split(" ", 2)[2]) for line in lines]

    def said(self, what: str) -> list[str]:
        return [replica_id for replica_id, told in self.log() if told == what]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    serve = Serve(tmp_path)
    yield serve
    retinue.get(serve.handle.shutdown.remote(), timeout=TIMEOUT_S)
    for _ in itertools.count():
        if CONTROLLER_NAME not in actors():
            break
    assert doors.KeyValue(NAMESPACE).keys() == []
    assert actors() == []


def actors() -> list[str]:
    named: list[Any] = list_named_actors(all_namespaces=True)
    return [a["name"] for a in named if a["namespace"] == NAMESPACE]


def test_an_application_runs_and_routers_and_proxies_hear_of_it(serve: Serve) -> None:
    began = time.monotonic()
    serve.deploy(serve.deployment(num_replicas=2))
    serve.until_status("RUNNING")
    assert time.monotonic() - began < 5
    routing = serve.until(lambda: r if len((r := serve.routing()).replicas) == 2 else None)
    assert {r.replica_id for r in routing.replicas} == set(serve.said("ready"))
    table = decode(RouteTable, serve.kv.get(b"routes") or b"")
    assert [(r.prefix, r.app_name, r.deployment_name) for r in table.routes] == [("/", "app", "d")]
    deployment = serve.app()["deployments"]["d"]
    assert (deployment["status"], deployment["replica_states"]) == ("HEALTHY", {"RUNNING": 2})
    serve.until(lambda: list(serve.status()["proxies"].values()) == ["HEALTHY"])


def test_the_second_application_leaves_the_first_alone(serve: Serve) -> None:
    serve.deploy(serve.deployment(), app="a", prefix="/a")
    serve.deploy(serve.deployment(), app="b", prefix="/b")
    serve.until_status("RUNNING", "a")
    serve.until_status("RUNNING", "b")
    before = serve.replica_ids("a")
    serve.deploy(serve.deployment(version="2"), app="b", prefix="/b")
    serve.until_status("RUNNING", "b")
    assert serve.replica_ids("a") == before
    with pytest.raises(ValueError, match="application 'b' cannot have the route prefix '/a'"):
        serve.deploy(serve.deployment(), app="b", prefix="/a")
    retinue.get(serve.handle.delete.remote(["b"]))
    serve.until_status("GONE", "b")
    assert serve.replica_ids("a") == before
    assert serve.app("a")["status"] == "RUNNING"


def test_an_update_has_the_new_replica_ready_before_the_old_one_drains(serve: Serve) -> None:
    serve.deploy(serve.deployment())
    serve.until_status("RUNNING")
    (old,) = serve.replica_ids()
    serve.deploy(serve.deployment(version="2"))
    assert serve.app()["status"] == "DEPLOYING"
    serve.until_status("RUNNING")
    (new,) = serve.replica_ids()
    assert new != old
    assert serve.log() == [
        (old, "constructs"),
        (old, "ready"),
        (new, "constructs"),
        (new, "ready"),
        (old, "drains"),
        (old, "drained"),
    ]


def test_where_there_is_no_room_the_old_replica_stops_first(serve: Serve) -> None:
    seat = {"resources": {"seat": 1}}
    serve.deploy(serve.deployment(options=seat))
    serve.until_status("RUNNING")
    (old,) = serve.replica_ids()
    serve.deploy(serve.deployment(version="2", options=seat))
    serve.until_status("RUNNING")
    (new,) = serve.replica_ids()
    assert [told for replica_id, told in serve.log() if replica_id == new] == ["constructs", "ready"]
    assert serve.log().index((old, "drained")) < serve.log().index((new, "constructs"))


def test_a_replica_without_room_says_what_is_missing_and_who_has_it(serve: Serve) -> None:
    seat = {"resources": {"seat": 1}}
    serve.deploy(serve.deployment("holder", options=seat), app="a", prefix=None)
    serve.until_status("RUNNING", "a")
    (holder,) = serve.replica_ids("a", "holder")
    began = time.monotonic()
    serve.deploy(serve.deployment(options=seat), app="b", prefix=None)
    message = serve.until(lambda: serve.app("b")["deployments"]["d"]["message"])
    assert time.monotonic() - began < 1
    assert message == (
        "1 replica waits for a node with room: it needs 1 seat; free: 0 seat of 1 seat; "
        f"held by actor SERVE_REPLICA::{holder} (1 seat)"
    )
    serve.deploy(serve.deployment(options={"num_gpus": 3}), app="c", prefix=None)
    message = serve.until(lambda: serve.app("c")["deployments"]["d"]["message"])
    assert "it needs 3 GPU, and no node has that much at all" in message
    assert serve.app("c")["status"] == "DEPLOYING"
    retinue.get(serve.handle.delete.remote(["a"]))
    serve.until_status("RUNNING", "b")
    assert serve.app("b")["deployments"]["d"]["message"] == ""


def test_a_constructor_that_fails_is_tried_again_and_given_up(serve: Serve) -> None:
    serve.deploy(serve.deployment(fails="no such weights", max_constructor_retry_count=2))
    serve.until_status("DEPLOY_FAILED")
    app = serve.app()
    assert "no such weights" in app["message"]
    assert "after 2 attempts, and nothing was deployed before it" in app["message"]
    assert len(serve.said("constructs")) == 2
    dead = serve.details().applications["app"].deployments["d"].recent_dead_replicas
    assert len(dead) == 2
    assert all("no such weights" in d.message and "the constructor runs" in d.log_tail for d in dead)
    assert "no such weights" in serve.until(lambda: serve.routing().problem)
    serve.deploy(serve.deployment(version="2"))
    serve.until_status("RUNNING")
    assert serve.routing().problem == ""


def test_an_update_that_fails_keeps_the_old_version_serving(serve: Serve) -> None:
    serve.deploy(serve.deployment(num_replicas=2))
    serve.until_status("RUNNING")
    old = set(serve.replica_ids())
    serve.deploy(serve.deployment(version="2", num_replicas=2, fails="boom", max_constructor_retry_count=2))
    serve.until_status("DEPLOY_FAILED")
    assert "the version before goes on serving" in serve.app()["message"]
    assert "boom" in serve.app()["message"]
    assert set(serve.replica_ids()) == old
    assert not serve.said("drains")
    assert serve.routing().problem == ""


def test_options_and_numbers_change_without_a_restart(serve: Serve) -> None:
    serve.deploy(serve.deployment(num_replicas=1, user_config="a", max_ongoing_requests=3))
    serve.until_status("RUNNING")
    (first,) = serve.replica_ids()
    serve.deploy(serve.deployment(num_replicas=1, user_config="b", max_ongoing_requests=7))
    serve.until_status("RUNNING")
    (replica,) = serve.until(lambda: [r for r in serve.routing().replicas if r.max_ongoing_requests == 7])
    assert replica.replica_id == first
    assert serve.said('reconfigure "b" 0/1') == [first]
    serve.deploy(serve.deployment(num_replicas=3, user_config="b", max_ongoing_requests=7))
    assert serve.app()["deployments"]["d"]["status"] == "UPSCALING"
    serve.until_status("RUNNING")
    assert first in serve.replica_ids()
    assert len(serve.replica_ids()) == 3
    serve.until(lambda: serve.said('reconfigure "b" 0/3') == [first])
    serve.deploy(serve.deployment(num_replicas=1, user_config="b", max_ongoing_requests=7))
    serve.until_status("RUNNING")
    assert serve.replica_ids() == [first]
    assert len(serve.said("constructs")) == 3


def test_a_refused_user_config_goes_back_to_the_one_before(serve: Serve) -> None:
    serve.deploy(serve.deployment(user_config="good", refuses="bad"))
    serve.until_status("RUNNING")
    serve.deploy(serve.deployment(user_config="bad", refuses="bad"))
    serve.until_status("DEPLOY_FAILED")
    assert "bad is refused" in serve.app()["message"]
    serve.until(lambda: len(set(serve.said("ready"))) == 2 and len(serve.replica_ids()) == 1)
    assert serve.details().applications["app"].deployments["d"].target_num_replicas == 1


def test_a_replica_that_is_killed_is_replaced_at_once(serve: Serve) -> None:
    serve.deploy(serve.deployment(num_replicas=2, health_check_period_s=100))
    serve.until_status("RUNNING")
    victim, other = serve.replica_ids()
    pid = serve.pid_of(victim)
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    serve.until(lambda: victim not in serve.replica_ids())
    serve.until(lambda: len(serve.replica_ids()) == 2)
    assert time.monotonic() - began < 2
    serve.until_status("RUNNING")
    assert other in serve.replica_ids()
    (dead,) = serve.details().applications["app"].deployments["d"].recent_dead_replicas
    assert (dead.replica_id, dead.pid) == (victim, pid)
    assert "signal 9" in dead.message


def test_a_replica_whose_health_checks_fail_is_replaced(serve: Serve) -> None:
    ill = serve.switch("ill")
    serve.deploy(serve.deployment(ill_while=str(ill), health_check_period_s=0.02))
    serve.until_status("RUNNING")
    (first,) = serve.replica_ids()
    ill.touch()
    serve.until(lambda: first not in serve.replica_ids())
    ill.unlink()
    serve.until_status("RUNNING")
    dead = serve.details().applications["app"].deployments["d"].recent_dead_replicas
    assert "3 health checks in a row failed; the last: " in dead[0].message
    assert "the model is ill" in dead[0].message


def test_deleting_drains_callers_before_what_they_call(serve: Serve) -> None:
    drained = serve.switch("drained")
    serve.deploy(serve.deployment("model"), serve.deployment("d", drains_when=str(drained)))
    serve.until_status("RUNNING")
    (ingress,) = serve.replica_ids()
    (model,) = serve.replica_ids(deployment="model")
    retinue.get(serve.handle.delete.remote(["app"]))
    assert serve.app()["status"] == "DELETING"
    serve.until(lambda: serve.said("drains") == [ingress])
    assert serve.routing().is_deleted
    assert serve.replica_ids(deployment="model") == [model]
    drained.touch()
    serve.until_status("GONE")
    assert serve.said("drained") == [ingress, model]


def test_draining_ends_after_its_time(serve: Serve) -> None:
    serve.deploy(serve.deployment(drains_when=str(serve.switch("never")), graceful_shutdown_timeout_s=0.1))
    serve.until_status("RUNNING")
    retinue.get(serve.handle.delete.remote(["app"]))
    serve.until_status("GONE")
    assert serve.said("drains")
    assert not serve.said("drained")


def test_after_its_own_death_it_finds_everything_again(serve: Serve) -> None:
    serve.deploy(serve.deployment(num_replicas=2))
    serve.until_status("RUNNING")
    serve.until(lambda: list(serve.status()["proxies"].values()) == ["HEALTHY"])
    replicas, proxy = serve.replica_ids(), serve.details().proxies
    routing = serve.routing()
    controller = next(a for a in retinue.util.state.list_actors() if a.name == CONTROLLER_NAME)
    os.kill(controller.pid or 0, signal.SIGKILL)
    serve.until_status("RUNNING")
    assert serve.replica_ids() == replicas
    assert serve.routing() == routing
    assert len(serve.said("constructs")) == 2
    assert {p.actor_id for p in serve.details().proxies.values()} <= {
        None,
        *(p.actor_id for p in proxy.values()),
    }
    # It watches them as before.
    os.kill(serve.pid_of(replicas[0]), signal.SIGKILL)
    serve.until(lambda: replicas[0] not in serve.replica_ids() and len(serve.replica_ids()) == 2)


def test_replicas_that_died_while_the_controller_was_away_are_replaced(serve: Serve) -> None:
    serve.deploy(serve.deployment(num_replicas=1))
    serve.until_status("RUNNING")
    (victim,) = serve.replica_ids()
    pid = serve.pid_of(victim)
    controller = next(a for a in retinue.util.state.list_actors() if a.name == CONTROLLER_NAME)
    os.kill(controller.pid or 0, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    serve.until(lambda: serve.replica_ids() not in ([], [victim]))
    serve.until_status("RUNNING")


def test_a_proxy_that_is_killed_serves_again(serve: Serve) -> None:
    serve.until(lambda: list(serve.status()["proxies"].values()) == ["HEALTHY"])
    (proxy,) = serve.details().proxies.values()
    actor = next(a for a in retinue.util.state.list_actors() if a.actor_id == proxy.actor_id)
    os.kill(actor.pid or 0, signal.SIGKILL)
    serve.until(lambda: list(serve.status()["proxies"].values()) == ["STARTING"])
    serve.until(lambda: list(serve.status()["proxies"].values()) == ["HEALTHY"])


def report(serve: Serve, queued: int, ongoing: int) -> None:
    info = decode(ControllerInfo, serve.kv.get(CONTROLLER_KEY) or b"")
    stats = RouterStats("router", "app", "d", queued, ongoing)

    async def tell() -> None:
        async with await doors.connect(info.address) as connection:
            await connection.call(CONTROLLER_DOOR, "router_stats", encode(stats))

    asyncio.run(tell())


def test_replicas_follow_the_load_down_to_none_and_back(serve: Serve) -> None:
    scaling = {
        "min_replicas": 0,
        "max_replicas": 3,
        "target_ongoing_requests": 1,
        "upscale_delay_s": 0,
        "downscale_delay_s": 0,
        "look_back_period_s": 0.1,
        "metrics_interval_s": 0.05,
    }
    serve.deploy(serve.deployment(autoscaling_config=scaling))
    serve.until_status("RUNNING")
    assert serve.replica_ids() == []
    began = time.monotonic()
    report(serve, 1, 0)
    serve.until(lambda: len(serve.replica_ids()) == 1)
    assert time.monotonic() - began < 2
    report(serve, 5, 1)
    serve.until(lambda: len(serve.replica_ids()) == 3)
    detail = serve.details().applications["app"].deployments["d"].autoscaling_detail
    assert detail is not None
    last = detail.decisions[-1]
    assert last.reason == "1 -> 3 replicas: 6 requests, 1 wanted per replica (0 to 3 allowed)"
    report(serve, 0, 0)
    serve.until(lambda: serve.replica_ids() == [])
    assert serve.app()["status"] == "RUNNING"


def test_a_config_deploys_what_it_names_and_leaves_what_has_not_changed(serve: Serve) -> None:
    def apply(*applications: dict[str, Any], **more: Any) -> None:
        config = {"applications": list(applications), **more}
        retinue.get(serve.handle.apply_config.remote(json.dumps(config).encode()))

    module = "tests.serve.controller.config_apps"
    one = {"name": "one", "route_prefix": "/1", "import_path": f"{module}:app"}
    broken = {"name": "broken", "route_prefix": "/2", "import_path": f"{module}:nothing"}
    apply(one, broken)
    serve.until_status("RUNNING", "one")
    serve.until_status("DEPLOY_FAILED", "broken")
    assert "nothing" in serve.app("broken")["message"]
    deployed_at = serve.app("one")["last_deployed_time_s"]
    apply(one)
    serve.until_status("GONE", "broken")
    assert serve.app("one")["last_deployed_time_s"] == deployed_at
    apply({**one, "deployments": [{"name": "Model", "num_replicas": 4}]}, target_capacity=50)
    serve.until(lambda: len(serve.replica_ids("one", "Model")) == 2)
    assert serve.status()["target_capacity"] == 50


def test_serve_can_be_started_again_right_after_its_end(serve: Serve) -> None:
    serve.deploy(serve.deployment())
    serve.until_status("RUNNING")
    retinue.get(serve.handle.shutdown.remote())
    serve.handle = start_controller(replica_class=FAKE_REPLICA, proxy_class=FAKE_PROXY)
    assert serve.status()["applications"] == {}
    serve.deploy(serve.deployment())
    serve.until_status("RUNNING")


def test_a_failed_update_is_still_known_to_the_controllers_successor(serve: Serve) -> None:
    serve.deploy(serve.deployment())
    serve.until_status("RUNNING")
    before = serve.replica_ids()
    serve.deploy(serve.deployment(version="2", fails="boom", max_constructor_retry_count=1))
    serve.until_status("DEPLOY_FAILED")
    controller = next(a for a in retinue.util.state.list_actors() if a.name == CONTROLLER_NAME)
    os.kill(controller.pid or 0, signal.SIGKILL)
    serve.until_status("DEPLOY_FAILED")
    assert "boom" in serve.app()["message"]
    assert serve.replica_ids() == before
    assert len(serve.said("constructs")) == 2
