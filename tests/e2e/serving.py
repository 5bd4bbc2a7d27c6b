"""What the tests of serve as a whole share: a cluster with serve on it, what it says, its processes.

Tests wait for changes of the status that the controller tells, or for answers; nothing here sleeps.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx

import retinue
from retinue import serve
from retinue.serve.messages import CONTROLLER_NAME, NAMESPACE
from retinue.serve.schema import DeploymentDetails, ServeInstanceDetails
from retinue.util.state import list_actors

TIMEOUT_S = 30.0


def details() -> ServeInstanceDetails:
    controller = retinue.get_actor(CONTROLLER_NAME, namespace=NAMESPACE)
    return ServeInstanceDetails.model_validate_json(retinue.get(controller.details.remote()))


def until(condition: Callable[[], Any], what: str = "", timeout_s: float = TIMEOUT_S) -> Any:
    """What `condition` returns once it is true; looked at with each change that the controller tells of."""
    deadline = time.monotonic() + timeout_s
    version = -1
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: {serve.status()}")
        with contextlib.suppress(retinue.exceptions.GetTimeoutError):
            controller = retinue.get_actor(CONTROLLER_NAME, namespace=NAMESPACE)
            version = retinue.get(controller.changed.remote(version), timeout=0.05)
    return found


def address() -> tuple[str, int]:
    """Where a proxy listens; waits until one does."""

    def found() -> tuple[str, int] | None:
        for group in details().target_groups:
            if group.protocol == "HTTP":
                return group.targets[0].ip, group.targets[0].port
        return None

    place: tuple[str, int] = until(found, "no proxy listens")
    return place


def deployment(name: str, app: str) -> DeploymentDetails:
    return details().applications[app].deployments[name]


def pids(name: str, app: str) -> dict[str, int]:
    """Of the running replicas, by their ids."""
    return {r.replica_id: r.pid for r in deployment(name, app).replicas if r.pid and r.state == "RUNNING"}


def pid_of_actor(name: str) -> int:
    """0: it is about to be started again."""
    return next((a.pid for a in list_actors() if a.name == name and a.state == "ALIVE" and a.pid), 0)


def proxy_pids() -> list[int]:
    found = [pid_of_actor(p.actor_name) for p in details().proxies.values() if p.actor_name]
    return [pid for pid in found if pid]


def metric(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels, on a page of metrics."""
    found = 0.0
    name = f"retinue_{name}"
    for line in text.splitlines():
        if line.startswith((name + "{", name + " ")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
            found += float(line.rpartition(" ")[2])
    return found


def private_bytes(pid: int) -> int:
    """Of a process: what it shares with nobody (pages of the arena count where they are mapped alone)."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        fields = dict(line.split(":", 1) for line in file.read().splitlines()[1:])
    return sum(int(fields[name].split()[0]) << 10 for name in ("Private_Clean", "Private_Dirty"))


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@contextlib.contextmanager
def running(
    folder: str, *, num_cpus: float = 8, resources: dict[str, float] | None = None, **http_options: Any
) -> Iterator[httpx.Client]:
    """A cluster of this process's own, and serve on it. The client's base is the proxy's address."""
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETINUE_TEMP_DIR", folder)
        patch.delenv("RETINUE_ADDRESS", raising=False)
        retinue.init(address="local", num_cpus=num_cpus, resources=resources, object_store_memory=128 << 20)
        try:
            serve.start(http_options={"port": 0, **http_options}, proxy_location="HeadOnly")
            host, port = address()
            with httpx.Client(base_url=f"http://{host}:{port}", timeout=TIMEOUT_S) as client:
                yield client
            serve.shutdown()
        finally:
            retinue.shutdown()


def read_json(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return json.loads(response.content)
