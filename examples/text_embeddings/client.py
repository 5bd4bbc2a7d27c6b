"""Send sentences, each in a request of its own and all at once, and print which of them are alike.

python -m examples.text_embeddings.client [--url http://127.0.0.1:8000]
"""

import argparse
import asyncio
import time
from collections.abc import Sequence

import httpx
import numpy as np

SENTENCES = [
    "A man is eating food.",
    "Someone has a meal at the table.",
    "The cat sleeps on the sofa.",
    "A kitten naps on the couch.",
    "Interest rates rose again this quarter.",
    "The central bank made loans more expensive.",
    "How do I reset my password?",
    "I cannot log in to my account any more.",
]


async def embed(url: str, sentences: Sequence[str]) -> np.ndarray:
    """A row for each sentence."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:

        async def one(sentence: str) -> list[float]:
            answer = await client.post("/embeddings", json={"texts": [sentence]})
            answer.raise_for_status()
            row: list[float] = answer.json()["embeddings"][0]
            return row

        return np.array(await asyncio.gather(*map(one, sentences)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    url = parser.parse_args(arguments).url
    started = time.perf_counter()
    rows = asyncio.run(embed(url, SENTENCES))
    elapsed = time.perf_counter() - started
    alike = rows @ rows.T - 2 * np.eye(len(rows))  # not to itself
    print(f"{len(rows)} requests at once took {elapsed * 1000:.0f} ms. What is most like what:\n")
    for index, nearest in enumerate(alike.argmax(axis=1)):
        print(f"{SENTENCES[index]:<45} {alike[index, nearest]:.2f}  {SENTENCES[nearest]}")


if __name__ == "__main__":
    main()
