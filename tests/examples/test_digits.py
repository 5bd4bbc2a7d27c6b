"""Digits: what the network has learned, as JSON and as files, and settings that change while it serves."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("fastapi")

from sklearn.datasets import load_digits

from examples.digits import client
from examples.digits.app import HAS_PILLOW, app
from retinue import serve
from retinue.serve.exceptions import RetinueServeException
from tests.examples.conftest import Serve, application, replica_ids


@pytest.fixture(scope="module")
def url(run_example: Serve) -> str:
    return run_example(app, "digits")


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{url}/digits", timeout=60) as client:
        yield client


def png(pixels: np.ndarray) -> bytes:
    """A grey image file, written by hand."""
    height, width = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(np.uint8))
    file = io.BytesIO()
    file.write(b"\x89PNG\r\n\x1a\n")
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        file.write(struct.pack(">I", len(content)) + kind + content)
        file.write(struct.pack(">I", zlib.crc32(kind + content)))
    return file.getvalue()


def test_it_is_right_nearly_always(http: httpx.Client) -> None:
    seen = http.get("/accuracy").json()
    assert seen["images"] == 450
    assert seen["accuracy"] > 0.97


@pytest.mark.skipif(not HAS_PILLOW, reason="Pillow is not installed")
def test_image_files_are_read_dark_on_light_and_light_on_dark(http: httpx.Client) -> None:
    digits = load_digits()
    right = 0
    for index in range(10):
        large = np.kron(digits.images[index] / 16 * 255, np.ones((10, 10)))
        for pixels in (large, 255 - large):
            answer = http.post("/image", content=png(pixels), headers={"content-type": "image/png"})
            right += answer.json()["digit"] == digits.target[index]
    assert right >= 18
    assert http.post("/image", content=b"no image").status_code == 422


def test_wrong_pixels_are_the_clients_mistake(http: httpx.Client) -> None:
    for pixels in ([[0] * 8] * 7, [[17] * 8] * 8, "x"):
        assert http.post("/predict", json={"pixels": pixels}).status_code == 422


def test_settings_change_while_it_serves(http: httpx.Client) -> None:
    blank = {"pixels": [[0] * 8] * 8}
    before = http.post("/predict", json=blank).json()
    said = application("digits")

    def redeploy(**settings: float) -> None:
        changed = app.deployment.options(user_config=settings).bind()
        serve.run(changed, name=said.name, route_prefix=said.route_prefix)

    ids = replica_ids("digits", "Digits")
    redeploy(temperature=10.0, threshold=1.0)
    after = http.post("/predict", json=blank).json()
    assert after["digit"] is None
    assert after["confidence"] < before["confidence"]
    assert replica_ids("digits", "Digits") == ids
    with pytest.raises(RetinueServeException, match="threshold"):
        redeploy(temperature=1.0, threshold=2.0)
    redeploy(temperature=1.0, threshold=0.5)
    assert http.post("/predict", json=blank).json() == before


def test_the_client_draws_digits(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    client.main(["--url", url, "--count", "2"])
    printed = capsys.readouterr().out
    assert printed.count("taken for") == 2
    assert "are right" in printed
