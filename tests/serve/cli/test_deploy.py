"""Commands that attach to a cluster: deploy, status, config, delete, shutdown, start."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.serve.cli.conftest import Run, fetch

CONFIG = """
http_options: {port: 0}
applications:
- name: one
  route_prefix: /one
  import_path: greeting_app:app
- name: two
  route_prefix: /two
  import_path: greeting_app:build
  args: {word: bye}
"""


def test_applications_are_deployed_looked_at_and_deleted(serve: Run, cluster: str, folder: Path) -> None:
    assert "serve deploy" in serve("status", code=1).stderr  # no serve yet: what to type
    assert "nothing to shut down" in serve("shutdown", "--yes").stderr

    config = folder / "config.yaml"
    config.write_text(CONFIG)
    told = serve("deploy", "config.yaml", "--address", cluster).stderr
    urls = {line.split(":")[0]: line.split()[-1] for line in told.splitlines() if "running at" in line}
    assert {name: fetch(url) for name, url in urls.items()} == {"one": "hello 1", "two": "bye 1"}
    assert "options stay" in serve("start", "--http-port", "0").stderr

    config.write_text(CONFIG.replace("bye", "good night"))
    serve("deploy", "config.yaml")
    assert fetch(urls["two"]) == "good night 1"

    assert "did you mean 'two'" in serve("delete", "tow", "--yes", code=1).stderr
    serve("delete", "two", "--yes")
    assert list(yaml.safe_load(serve("status").stdout)["applications"]) == ["one"]
    assert yaml.safe_load(serve("config", "--name", "one").stdout)["import_path"] == "greeting_app:app"

    serve("shutdown", "--yes")
    assert "does not run" in serve("status", code=1).stderr
    port = urls["one"].rpartition(":")[2].partition("/")[0]
    assert f":{port};" in serve("start", "--http-port", port).stderr  # it was given up


def test_a_bad_config_changes_nothing(serve: Run, cluster: str, folder: Path) -> None:
    (folder / "config.yaml").write_text(CONFIG.replace("import_path: greeting_app:app", "import_pth: x"))
    error = serve("deploy", "config.yaml", code=1).stderr
    assert "config.yaml:6: " in error
    assert "did you mean 'import_path'?" in error
    assert "does not run" in serve("status", code=1).stderr


def test_what_fails_on_the_cluster_is_the_commands_reason(serve: Run, cluster: str) -> None:
    serve("start", "--http-port", "0")
    assert "no module" in serve("deploy", "greeting_ap:app", code=1).stderr.lower()
    error = serve("deploy", "greeting_app:broken", code=1).stderr
    assert "no model here" in error
    assert "DEPLOY_FAILED" in serve("status", "--output", "table").stdout
    serve("shutdown", "-y")


def test_run_without_blocking_leaves_the_application_and_ctrl_c_leaves_what_was_there(
    serve: Run, cluster: str, foreground: object
) -> None:
    serve("run", "greeting_app:app", "--http-port", "0", "--non-blocking", "--name", "stays")
    running = foreground("greeting_app:app", "--name", "goes", "--route-prefix", "/goes")  # type: ignore[operator]
    assert fetch(running.url()) == "hello 1"
    assert running.end() == 0
    assert list(yaml.safe_load(serve("status").stdout)["applications"]) == ["stays"]
    serve("shutdown", "-y")


@pytest.mark.parametrize("command", ["status", "config", "logs", "controller-health", "shutdown"])
def test_without_a_cluster_a_command_says_what_to_type(serve: Run, command: str) -> None:
    assert "`retinue start --head`" in serve(command, code=1).stderr
