"""Serve's REST routes, over HTTP, in the admin server of a real cluster."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retinue.core import session as sessions
from retinue.core.doors import admin
from retinue.serve.controller_client import BlockingControllerClient
from retinue.serve.schema import ServeInstanceDetails

TIMEOUT_S = 60.0
RETINUE = [sys.executable, "-m", "retinue.core.cli.main"]
APPLICATIONS = "/api/serve/applications/"
APP = """
from retinue import serve

@serve.deployment
async def answer(request):
    return "hello"

app = answer.bind()
"""

Ask = Callable[..., tuple[int, Any]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(sessions.TEMP_DIR_VARIABLE, str(tmp_path / "r"))
    for name in (sessions.TOKEN_VARIABLE, sessions.TOKEN_FILE_VARIABLE, "RETINUE_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "rest_app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def ask(folder: Path) -> Iterator[Ask]:
    """Send a request; returns the status and the JSON of the answer."""
    words = ["start", "--head", "--port", "0", "--admin-port", "0", "--num-cpus", "2"]
    started = subprocess.run(
        [*RETINUE, *words], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    ).stdout
    url, file = re.search(r"http://\S+", started), re.search(r"token\s+(\S+)", started)
    assert url, started
    assert file, started
    token = Path(file[1]).read_text().strip()

    def send(method: str, path: str, body: Any = None, *, with_token: bool = True) -> tuple[int, Any]:
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token}"} if with_token else {}
        request = urllib.request.Request(url[0] + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        return status, json.loads(text) if text else None

    yield send
    subprocess.run([*RETINUE, "stop", "--force"], capture_output=True, timeout=TIMEOUT_S, check=True)


def wait_running(names: set[str]) -> ServeInstanceDetails:
    """The details once exactly these applications are there, run, and are served."""
    with BlockingControllerClient(admin.find_cluster()) as client:
        version = -1
        while True:
            version = client.changed(version)
            details = ServeInstanceDetails.model_validate_json(client.details())
            apps = details.applications
            if set(apps) == names and all(a.status == "RUNNING" for a in apps.values()):
                if details.target_groups or not names:
                    return details
                version = client.changed(version, timeout_s=0.1)


def test_applications_are_put_seen_scaled_and_deleted(ask: Ask, folder: Path) -> None:
    assert ask("GET", APPLICATIONS, with_token=False)[0] == 401
    assert ask("GET", APPLICATIONS) == (200, ServeInstanceDetails.get_empty_schema_dict())
    assert (
        ask("POST", "/api/v1/applications/one/deployments/answer/scale", {"target_num_replicas": 2})[0] == 503
    )

    app = {"import_path": "rest_app:app", "runtime_env": {"working_dir": str(folder)}}
    one = {**app, "name": "one", "route_prefix": "/one", "external_scaler_enabled": True}
    two = {**app, "name": "two", "route_prefix": "/two"}
    assert ask("PUT", APPLICATIONS, {"http_options": {"port": 0}, "applications": [one, two]})[0] == 200
    (target,) = wait_running({"one", "two"}).target_groups[0].targets
    with urllib.request.urlopen(f"http://{target.ip}:{target.port}/one", timeout=TIMEOUT_S) as answer:
        assert answer.read() == b"hello"

    status, details = ask("GET", APPLICATIONS)
    assert status == 200
    assert details["applications"]["one"]["deployed_app_config"]["import_path"] == "rest_app:app"
    assert ask("GET", f"{APPLICATIONS}?api_type=imperative")[1]["applications"] == {}
    assert ask("GET", f"{APPLICATIONS}?api_type=whatever")[0] == 400

    assert ask("PUT", APPLICATIONS, {"applications": [one]})[0] == 200
    wait_running({"one"})

    scale = "/api/v1/applications/one/deployments/answer/scale"
    assert ask("POST", scale, {"target_num_replicas": -1})[0] == 400
    assert ask("POST", scale.replace("answer", "other"), {"target_num_replicas": 2})[0] == 404
    assert ask("POST", scale, {"target_num_replicas": 2})[0] == 200
    assert (
        ask("GET", APPLICATIONS)[1]["applications"]["one"]["deployments"]["answer"]["target_num_replicas"]
        == 2
    )

    assert ask("DELETE", APPLICATIONS)[0] == 200
    assert ask("GET", APPLICATIONS)[1]["applications"] == {}
    assert ask("DELETE", APPLICATIONS)[0] == 200


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "no JSON"),
        ({"applications": [{"name": "x"}]}, "applications[0].import_path"),
        ({"applications": [{"import_pth": "a:b"}]}, "did you mean 'import_path'?"),
        ({"applications": [], "target_capacity": 101}, "target_capacity"),
    ],
)
def test_bad_input_is_refused_before_anything_changes(ask: Ask, body: Any, reason: str) -> None:
    status, answer = ask("PUT", APPLICATIONS, body)
    assert status == 400
    assert reason in answer["error"]
    assert ask("GET", APPLICATIONS)[1] == ServeInstanceDetails.get_empty_schema_dict()
