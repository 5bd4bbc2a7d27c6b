"""`serve run`: from nothing to an answer, and back to nothing."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.serve.cli.conftest import Foreground, Run, fetch

Start = Callable[..., Foreground]


def test_an_import_path_runs_until_ctrl_c_and_others_can_look_at_it(foreground: Start, serve: Run) -> None:
    running = foreground("greeting_app:app", "--http-port", "0", "--name", "greeting")
    assert fetch(running.url()) == "hello 1"

    status = yaml.safe_load(serve("status").stdout)
    assert status["applications"]["greeting"]["status"] == "RUNNING"
    assert status["urls"] == [running.url().rstrip("/")]
    assert json.loads(serve("status", "--name", "greeting", "--output", "json").stdout)["message"] == ""
    assert "1 of 1" in serve("status", "--output", "table").stdout
    assert "did you mean 'greeting'" in serve("status", "--name", "greting", code=1).stderr
    assert json.loads(serve("controller-health", "--json").stdout)["uptime_s"] > 0
    assert "GET / 200" in serve("logs", "--component", "proxy").stdout

    assert running.end() == 0
    assert "`serve run` starts one" in serve("status", code=1).stderr


def test_arguments_go_to_the_builder_and_the_prefix_to_the_proxy(foreground: Start) -> None:
    running = foreground("greeting_app:build", "word=hi", "--http-port", "0", "--route-prefix", "/greet")
    assert running.url().endswith("/greet")
    assert fetch(running.url()) == "hi 1"
    assert running.end(signal.SIGTERM) == 0


def test_sigterm_ends_it_where_a_shell_has_put_it_into_the_background(foreground: Start) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as `serve run ... &` in a script
    try:
        running = foreground("greeting_app:app", "--http-port", "0")
    finally:
        signal.signal(signal.SIGINT, before)
    assert fetch(running.url()) == "hello 1"
    assert running.end(signal.SIGTERM) == 0


def test_a_config_file_runs(foreground: Start, folder: Path, serve: Run) -> None:
    (folder / "config.yaml").write_text(
        "http_options: {port: 0}\n"
        "applications:\n"
        "- {name: one, route_prefix: /one, import_path: 'greeting_app:app'}\n"
        "- {name: two, route_prefix: /two, import_path: 'greeting_app:build', args: {word: bye}}\n"
    )
    running = foreground("config.yaml")
    running.wait_for("Press Ctrl-C")
    urls = [line.split()[-1] for line in running.lines if "running at" in line]
    assert [fetch(url) for url in urls] == ["hello 1", "bye 1"]
    configs = [*yaml.safe_load_all(serve("config").stdout)]
    assert [config["name"] for config in configs] == ["one", "two"]


def test_a_constructor_that_fails_ends_the_command_with_its_reason(serve: Run) -> None:
    error = serve("run", "greeting_app:broken", "--http-port", "0", code=1).stderr
    assert "no model here" in error
    assert "the model file is missing" in error


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("greeting_ap:app", "no module 'greeting_ap'"),
        ("greeting_app:ap", "did you mean 'app'"),
        ("greeting_app:Greeter", "is not bound"),
        ("greeting_app", "form 'package.module:attribute'"),
    ],
)
def test_what_cannot_be_imported_is_said_in_a_line(serve: Run, target: str, reason: str) -> None:
    assert reason in serve("run", target, "--http-port", "0", code=1).stderr


def test_a_port_that_is_taken_is_said(foreground: Start, serve: Run) -> None:
    port = foreground("greeting_app:app", "--http-port", "0").url().rstrip("/").rpartition(":")[2]
    error = serve("run", "greeting_app:app", "--http-port", port, code=1).stderr
    assert f"port {port} is taken" in error


def test_flags_that_do_not_go_together_are_refused(serve: Run, folder: Path) -> None:
    (folder / "config.yaml").write_text("applications: []\n")
    for words in (
        ("greeting_app:app", "--reload", "--non-blocking"),
        ("config.yaml", "--name", "x"),
        ("config.yaml", "key=value"),
        ("missing.yaml",),
        ("greeting_app:app", "word"),
    ):
        serve("run", *words, code=2)
    assert "needs a running cluster" in serve("run", "greeting_app:app", "--non-blocking", code=2).stderr


def test_a_changed_file_is_deployed_anew(foreground: Start, folder: Path) -> None:
    running = foreground("greeting_app:app", "--http-port", "0", "--reload")
    url = running.url()
    running.wait_for("Press Ctrl-C")
    code: Any = folder / "greeting_app.py"
    code.write_text(code.read_text().replace("} 1", "} 2"))
    running.wait_for("Deployed anew")
    assert fetch(url) == "hello 2"
    known = len(running.lines)
    code.write_text(code.read_text() + "\nraise RuntimeError('half saved')\n")
    running.wait_for("version before goes on", after=known)
    assert fetch(url) == "hello 2"
    assert running.end() == 0
