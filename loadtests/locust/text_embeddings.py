"""Load for examples/text_embeddings: `locust -f loadtests/locust/text_embeddings.py --headless -u 16`."""

import itertools
from pydoc_data.topics import topics

from shapes import *  # noqa: F403  (locust looks for shapes among the names of this file)
from shapes import Asker

from locust import task

TEXTS = itertools.cycle([" ".join(text.split())[:400] for text in topics.values()])


class Embedder(Asker):
    @task
    def embed(self):
        with self.client.post("/embeddings", json={"texts": [next(TEXTS)]}, catch_response=True) as answer:
            self.check(answer, lambda value: [len(row) for row in value["embeddings"]] == [384])
