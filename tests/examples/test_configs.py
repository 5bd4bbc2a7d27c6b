"""The config files: valid, true to the code, and small enough to run together on two CPUs."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("fastapi")
pytest.importorskip("grpc")

from retinue.serve.build import build, import_application
from tests.examples.conftest import EXAMPLES, application

NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/config.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_deployments_of_the_config_are_those_of_the_code(name: str) -> None:
    said = application(name)
    spec = build(import_application(said.import_path, said.args), name=said.name)
    assert {deployment.name for deployment in said.deployments} == {each.name for each in spec.deployments}


@pytest.mark.parametrize("name", NAMES)
def test_an_example_has_a_client_and_tells_how_to_run_it(name: str) -> None:
    text = (EXAMPLES / name / "README.md").read_text()
    assert f"serve run examples/{name}/config.yaml" in text
    assert f"examples.{name}.client" in text
    assert (EXAMPLES / name / "client.py").exists()
    assert f"serve run examples/{name}/config.yaml" in (EXAMPLES / "README.md").read_text()


def test_all_fit_together() -> None:
    apps = [application(name) for name in NAMES]
    cpus = sum(
        each.num_replicas * (each.ray_actor_options.num_cpus or 1)
        if isinstance(each.num_replicas, int)
        else (each.ray_actor_options.num_cpus or 1)
        for app in apps
        for each in app.deployments
    )
    assert cpus <= 2
    assert len({app.name for app in apps}) == len({app.route_prefix for app in apps}) == len(apps)
