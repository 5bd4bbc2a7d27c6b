"""`retinue` as people type it: a cluster that outlives the command, looked at from outside and stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import retinue
from retinue.core import session as sessions

TIMEOUT_S = 60.0
Run = Callable[..., subprocess.CompletedProcess[str]]
COMMAND = [sys.executable, "-m", "retinue.core.cli.main"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "r"
    monkeypatch.setenv(sessions.TEMP_DIR_VARIABLE, str(folder))
    for name in (sessions.TOKEN_VARIABLE, sessions.TOKEN_FILE_VARIABLE, "RETINUE_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def run(folder: Path) -> Iterator[Run]:
    def run(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*COMMAND, *words], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    yield run
    retinue.shutdown()
    run("stop", "--force")
    assert list(folder.glob("s-*")) == []


def start_head(run: Run, *words: str) -> str:
    """Start a small cluster; returns its address."""
    output = run("start", "--head", "--port", "0", "--num-cpus", "2", *words).stdout
    found = re.search(r"at (\S+:\d+)\.", output)
    assert found, output
    return found[1]


def fetch(url: str, token: str = "") -> Any:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        return answer.read().decode()


@retinue.remote(num_cpus=0)
class Greeter:
    def greet(self, name: str) -> int:
        print(f"hello {name}")
        print(f"warned {name}", file=sys.stderr)
        return os.getpid()


def test_a_cluster_is_started_used_looked_at_and_stopped(run: Run, tmp_path: Path) -> None:
    address = start_head(run, "--no-admin", "--resources", '{"license": 2}', "--labels", "zone=a")
    with retinue.init(namespace="cli") as context:
        assert context.address_info["address"] == address
        greeter = Greeter.options(name="greeter").remote()
        pid = retinue.get(greeter.greet.remote("world"))
        kept = retinue.put(b"x" * 1_000_000)

        status = json.loads(run("status", "--format", "json").stdout)
        assert status["resources"]["license"] == {"used": 0, "total": 2}
        (node,) = json.loads(run("list", "nodes", "--address", address, "--format", "json").stdout)
        assert node["labels"] == {"zone": "a"}
        (actor,) = yaml.safe_load(
            run("list", "actors", "--filter", "name=greeter", "--format", "yaml").stdout
        )
        assert actor["pid"] == pid
        assert f"pid: {pid}" in run("get", "actor", actor["actor_id"]).stdout
        assert "driver" in run("memory").stdout
        (held,) = json.loads(
            run("list", "objects", "--filter", f"object_id={kept.hex()}", "--format", "json").stdout
        )
        assert held["pid"] == os.getpid()
        assert "Greeter" in run("summary", "actors").stdout
        assert f"worker {pid}" in run("stack", "--pid", str(pid)).stdout
        assert run("logs", "actor", "--id", actor["actor_id"]).stdout == "hello world\n"
        assert run("logs", "worker", "--pid", str(pid), "--err").stdout == "warned world\n"
        assert "head.log" in run("logs").stdout
        assert "registered" in run("logs", "head.log", "--tail", "-1").stdout
        trace = tmp_path / "trace.json"
        run("timeline", "--output", str(trace))
        assert isinstance(json.loads(trace.read_text()), list)
        run("kill-actor", "--name", "greeter")
        with pytest.raises(retinue.exceptions.ActorDiedError):
            retinue.get(greeter.greet.remote("again"))
        assert "is dead already" in run("kill-actor", actor["actor_id"], code=1).stderr
    (job,) = json.loads(run("list", "jobs", "--format", "json").stdout)
    assert job["status"] == "SUCCEEDED"
    assert run("stop").stdout == "Stopped 1 node.\n"
    assert "`retinue start --head`" in run("status", code=1).stderr


def test_a_second_node_joins_by_the_heads_address(run: Run) -> None:
    address = start_head(run, "--no-admin")
    run("start", "--address", address, "--num-cpus", "1", "--resources", '{"second": 1}')
    nodes = json.loads(run("list", "nodes", "--filter", "state=ALIVE", "--format", "json").stdout)
    assert sorted(node["resources_total"]["CPU"] for node in nodes) == [1, 2]
    assert run("stop", "--grace-period", "10").stdout == "Stopped 2 nodes.\n"


def test_a_blocking_start_ends_in_order_with_its_command(run: Run, folder: Path) -> None:
    words = ["start", "--head", "--block", "--no-admin", "--port", "0", "--num-cpus", "1"]
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert "Started" in process.stdout.readline()
        assert len(json.loads(run("list", "nodes", "--format", "json").stdout)) == 1
        process.send_signal(number)
        _, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode in (1, 128 + signal.SIGTERM)
        assert "Stopping the node." in errors
        assert list(folder.glob("s-*")) == []


def test_the_admin_server_runs_beside_the_head(run: Run, folder: Path) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    start_head(run, "--admin-port", "0")
    (cluster,) = sessions.find_clusters(str(folder))
    token = sessions.cluster_token(cluster).decode()
    assert fetch(f"{cluster.admin}/healthz") == "ok\n"
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        fetch(f"{cluster.admin}/metrics")
    refused.value.close()
    assert 'retinue_nodes{state="alive"} 1.0' in fetch(f"{cluster.admin}/metrics", token)
    (node,) = json.loads(fetch(f"{cluster.admin}/api/state/nodes", token))["rows"]
    assert node["state"] == "ALIVE"
    assert run("stop").stdout == "Stopped 1 node.\n"
    with pytest.raises(urllib.error.URLError):
        fetch(f"{cluster.admin}/healthz")


def test_a_port_in_use_is_one_line(run: Run) -> None:
    port = start_head(run, "--no-admin").rpartition(":")[2]
    words = ("start", "--head", "--no-admin", "--port", port)
    assert run(*words, code=1).stderr.startswith("Error: ")
