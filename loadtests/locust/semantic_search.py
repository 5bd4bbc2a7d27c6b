"""Load for examples/semantic_search: questions about Python."""

import itertools

from shapes import *  # noqa: F403  (locust looks for shapes among the names of this file)
from shapes import Asker

from locust import task

QUESTIONS = itertools.cycle(
    [
        "how do I catch an exception",
        "what does yield do",
        "operator precedence",
        "how are attributes looked up",
        "format a number with two decimals",
        "difference between is and ==",
    ]
)


class Seeker(Asker):
    @task
    def search(self):
        with self.client.get(
            "/search", params={"q": next(QUESTIONS), "k": 3}, name="/search", catch_response=True
        ) as answer:
            self.check(answer, lambda value: len(value["hits"]) == 3)
