"""Load for examples/digits: images of scikit-learn's digits, with the answers known."""

import itertools

from shapes import *  # noqa: F403  (locust looks for shapes among the names of this file)
from shapes import Asker
from sklearn.datasets import load_digits

from locust import task

IMAGES = itertools.cycle(load_digits().images.tolist())


class Reader(Asker):
    @task
    def read(self):
        with self.client.post(
            "/digits/predict", json={"pixels": next(IMAGES)}, catch_response=True
        ) as answer:
            self.check(answer, lambda value: value["digit"] in {None, *range(10)})
