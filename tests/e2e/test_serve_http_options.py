"""HTTP options that hold for a whole proxy: TLS, a prefix before ours, time-outs, tracebacks."""

from __future__ import annotations

import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from retinue import serve
from retinue.serve.api import RunTarget
from retinue.serve.messages import PROXY_NAME_PREFIX
from retinue.util.state import list_actors
from tests.e2e import serving
from tests.e2e.serve_apps import Api, Inner, Outer, Plain
from tests.e2e.serving import read_json


def certificate(folder: Path) -> tuple[str, str]:
    """Of 127.0.0.1, signed by itself."""
    key, file = str(folder / "key.pem"), str(folder / "certificate.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", key, "-out", file, "-days", "1", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return key, file


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("r")
    key, file = certificate(tmp_path_factory.mktemp("tls"))
    with serving.running(
        str(folder),
        ssl_keyfile=key,
        ssl_certfile=file,
        root_path="/outer",
        request_timeout_s=1.0,
        expose_tracebacks=True,
        num_processes=2,
    ) as plain:
        serve.run_many(
            [
                RunTarget(Api.bind(), "api", "/api"),
                RunTarget(Plain.bind(), "plain", "/"),
                RunTarget(Outer.bind(Inner.bind()), "chain", "/chain"),
            ]
        )
        trusted = ssl.create_default_context(cafile=file)
        url = f"https://{plain.base_url.host}:{plain.base_url.port}"
        with httpx.Client(base_url=url, verify=trusted, timeout=serving.TIMEOUT_S) as client:
            yield client


@pytest.fixture
def client(topology: httpx.Client) -> httpx.Client:
    return topology


def test_tls(client: httpx.Client) -> None:
    assert read_json(client.post("/echo", json=[1])) == [1]
    assert len(client.post("/raw", content=b"x" * 5_000_000).content) == 5_000_000
    told = read_json(client.get("/api/where"))
    assert told["scheme"] == "https"
    with pytest.raises(httpx.TransportError):
        httpx.get(str(client.base_url).replace("https", "http") + "/text")


def test_the_prefix_before_ours_is_in_the_root_path(client: httpx.Client) -> None:
    told = read_json(client.get("/api/where"))
    assert told["root_path"] == "/outer/api"
    assert told["url"].endswith("/outer/api/where")
    assert read_json(client.get("/api/openapi.json"))["servers"] == [{"url": "/outer/api"}]


@pytest.mark.parametrize("path", ["/slow", "/chain/wait"])
def test_requests_take_no_longer_than_they_may(client: httpx.Client, path: str) -> None:
    began = time.monotonic()
    assert client.get(path).status_code == 504
    assert 1.0 <= time.monotonic() - began < 5.0
    assert client.get(path, headers={"x-request-timeout-seconds": "0.1"}).status_code == 504
    assert client.get("/text").status_code == 200


@pytest.mark.parametrize("path", ["/fail", "/api/fail"])
def test_tracebacks_are_shown_where_they_are_asked_for(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 500
    assert "ValueError: the secret of the handler" in answer.text
    assert "serve_apps.py" in answer.text


def test_both_processes_have_the_port(client: httpx.Client) -> None:
    proxies = [a for a in list_actors() if (a.name or "").startswith(PROXY_NAME_PREFIX)]
    assert [a.state for a in proxies] == ["ALIVE"] * 2
    fresh = {"connection": "close"}
    assert {client.get("/text", headers=fresh).status_code for _ in range(40)} == {200}
