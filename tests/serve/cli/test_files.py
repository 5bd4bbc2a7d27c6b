"""Commands about config files; none needs a cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from retinue.serve.cli.main import main
from retinue.serve.schema import ServeDeploySchema, json_schema

SCHEMA_FILE = Path(__file__).parents[3] / "docs" / "serve-config.schema.json"

BUILT = """
from retinue import serve

@serve.deployment(num_replicas=2, user_config={"size": 3}, ray_actor_options={"num_cpus": 0.5})
class Model:
    def __init__(self, other): ...

@serve.deployment
def other(request): ...

app = Model.bind(other.bind())
"""


def invoke(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code == code, result.output
    return result


def test_the_schema_file_in_the_docs_is_current() -> None:
    """`serve schema -o docs/serve-config.schema.json` writes it."""
    assert json.loads(SCHEMA_FILE.read_text()) == json_schema()
    assert json.loads(invoke("schema").output) == json_schema()


def test_a_valid_file_is_said_to_be(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("applications:\n- import_path: nowhere:app\n")
    assert invoke("validate", str(file)).output == f"{file}: valid, 1 application\n"


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("applicatons: []\n", 1, "did you mean 'applications'?"),
        ("applications:\n- import_path: a:b\n  deployments:\n  - nam: x\n", 4, "did you mean 'name'?"),
        ("applications:\n- import_path: a:b\n  route_prefix: api\n", 3, "begins with '/'"),
        ("http_options: {port: 99999}\napplications: []\n", 1, "http_options.port"),
        ("applications: [\n", 2, ""),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, text: str, line: int, reason: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    output = invoke("validate", str(file), code=1).output
    assert f"{file}:{line}: " in output
    assert reason in output


def test_every_file_is_checked(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("applications: []\n")
    bad.write_text("a: 1\nb: 2\n")
    output = invoke("validate", str(bad), str(good), str(tmp_path / "none.yaml"), code=1).output
    assert "bad.yaml:1: " in output
    assert "bad.yaml:2: " in output
    assert "good.yaml: valid, 0 applications" in output
    assert "none.yaml: it cannot be read" in output


def test_a_config_file_is_built_from_code(tmp_path: Path) -> None:
    (tmp_path / "built_app.py").write_text(BUILT)
    output = tmp_path / "config.yaml"
    invoke("build", "built_app:app", "--app-dir", str(tmp_path), "-o", str(output))
    document = yaml.safe_load(output.read_text())
    ServeDeploySchema.model_validate(document)
    (app,) = document["applications"]
    assert app["import_path"] == "built_app:app"
    assert app["deployments"] == [
        {"name": "other"},
        {
            "name": "Model",
            "num_replicas": 2,
            "user_config": {"size": 3},
            "ray_actor_options": {"num_cpus": 0.5},
        },
    ]
    invoke("validate", str(output))


def test_several_applications_get_names_and_prefixes(tmp_path: Path) -> None:
    (tmp_path / "built_app2.py").write_text(BUILT)
    output = invoke("build", "built_app2:app", "built_app2:app", "-d", str(tmp_path)).output
    apps = yaml.safe_load(output)["applications"]
    assert [(app["name"], app["route_prefix"]) for app in apps] == [("app1", "/app1"), ("app2", "/app2")]


def test_help_lists_the_commands_and_each_has_one() -> None:
    output = invoke("--help").output
    for name in ("run", "deploy", "status", "logs", "validate", "controller-health"):
        assert f"\n  {name} " in output
        assert "--help" in invoke(name, "--help").output
