"""A cluster of two CPUs with serve on it, for the examples of one module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import retinue
from retinue import serve
from retinue.serve.messages import CONTROLLER_NAME, NAMESPACE
from retinue.serve.schema import ServeApplicationSchema, ServeDeploySchema, ServeInstanceDetails
from retinue.serve.schema_file import load_config

EXAMPLES = Path(__file__).parents[2] / "examples"

Serve = Callable[[serve.Application, str], str]


def application(example: str) -> ServeApplicationSchema:
    """The one application of an example's config file."""
    (found,) = config(example).applications
    return found


def config(example: str) -> ServeDeploySchema:
    return load_config(str(EXAMPLES / example / "config.yaml"))


def where(protocol: str) -> str:
    """Where the proxy listens."""
    groups = details().target_groups
    (target,) = next(group.targets for group in groups if group.protocol == protocol)
    return f"{target.ip}:{target.port}"


def replica_ids(app: str, deployment: str) -> set[str]:
    """Of those that run."""
    found = details().applications[app].deployments[deployment].replicas
    return {replica.replica_id for replica in found if replica.state == "RUNNING"}


def details() -> ServeInstanceDetails:
    controller = retinue.get_actor(CONTROLLER_NAME, namespace=NAMESPACE)
    return ServeInstanceDetails.model_validate_json(retinue.get(controller.details.remote()))


@pytest.fixture(scope="module")
def run_example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Run an application as the example's config file says; returns the server's URL."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        retinue.init("local", num_cpus=2, namespace=NAMESPACE)
        try:

            def run(app: serve.Application, example: str) -> str:
                said = application(example)
                servicers = config(example).grpc_options.grpc_servicer_functions
                serve.start(
                    http_options={"port": 0},
                    grpc_options={"port": 0, "grpc_servicer_functions": servicers},
                    proxy_location="HeadOnly",
                )
                serve.run(app, name=said.name, route_prefix=said.route_prefix)
                return f"http://{where('HTTP')}"

            yield run
            serve.shutdown()
        finally:
            retinue.shutdown()
