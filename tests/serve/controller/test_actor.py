"""The controller's actor on a real cluster, with small replicas and proxies."""

from __future__ import annotations

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
    CONTROLLER_NAME,
    NAMESPACE,
    ApplicationSpec,
    DeploymentRouting,
    DeploymentSpec,
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
        return json.loads(retinue.get(self.handle.status.remote()))

    def app(self, name: str = "app") -> dict[str, Any]:
        return self.status()["applications"].get(name, {"status": "GONE", "message": "", "deployments": {}})

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
    return [a["name"] for a in list_named_actors(all_namespaces=True) if a["namespace"] == NAMESPACE]


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
