"""`serve.run` returns when requests can come in."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator

import pytest

import retinue
from retinue import serve


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Quick:
    def __call__(self, request: object) -> str:
        return "quick"


@pytest.fixture
def cluster() -> Iterator[None]:
    retinue.init("local", num_cpus=1, namespace="serve")
    yield
    serve.shutdown()
    retinue.shutdown()


def test_a_request_right_after_run_is_answered(cluster: None) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"port": port})
    serve.run(Quick.bind())
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
        assert answer.read() == b"quick"
