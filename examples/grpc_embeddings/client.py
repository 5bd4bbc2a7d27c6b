"""Embed sentences over gRPC: some in one call, then the same as a stream, and compare.

python -m examples.grpc_embeddings.client [--target 127.0.0.1:9000]
"""

import argparse
import time
from collections.abc import Iterator, Sequence

import grpc
import numpy as np

from examples.grpc_embeddings.embeddings_pb2 import Text, Texts
from examples.grpc_embeddings.embeddings_pb2_grpc import EmbeddingsStub

SENTENCES = [
    "The train is late again.",
    "Our flight was delayed by two hours.",
    "She plays the violin in an orchestra.",
    "He is a professional pianist.",
]
METADATA = (("application", "grpc_embeddings"),)  # needed where several applications run
TIMEOUT_S = 60


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", default="127.0.0.1:9000")
    target = parser.parse_args(arguments).target
    with grpc.insecure_channel(target) as channel:
        stub = EmbeddingsStub(channel)
        started = time.perf_counter()
        answer = stub.Embed(Texts(texts=SENTENCES), metadata=METADATA, timeout=TIMEOUT_S)
        print(f"{len(SENTENCES)} texts in one call took {(time.perf_counter() - started) * 1000:.0f} ms:\n")
        rows = np.array([vector.values for vector in answer.vectors])
        alike = rows @ rows.T - 2 * np.eye(len(rows))  # not to itself
        for index, nearest in enumerate(alike.argmax(axis=1)):
            print(f"{SENTENCES[index]:<40} {alike[index, nearest]:.2f}  {SENTENCES[nearest]}")

        stream = stub.EmbedEach(texts(), metadata=METADATA, timeout=TIMEOUT_S)
        ids = []
        for index, vector in enumerate(stream):
            assert np.allclose(vector.values, rows[index], atol=1e-4), "the stream has other vectors"
            ids.append(vector.id)
        print(f"\nThe stream brought the same vectors: {', '.join(ids)}.")


def texts() -> Iterator[Text]:
    for number, sentence in enumerate(SENTENCES, start=1):
        yield Text(id=f"sentence {number}", text=sentence)


if __name__ == "__main__":
    main()
