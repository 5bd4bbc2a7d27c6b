"""Load for examples/many_models: models chosen by header, a few of them much more often than the rest."""

import random

from shapes import *  # noqa: F403  (locust looks for shapes among the names of this file)
from shapes import Asker

from locust import task


class Chooser(Asker):
    def on_start(self):
        self.models = self.client.get("/models").json()["models"]
        self.weights = [1 / (rank + 1) for rank in range(len(self.models))]

    @task
    def predict(self):
        model = random.choices(self.models, self.weights)[0]
        headers = {"serve_multiplexed_model_id": model}
        with self.client.post("/models", headers=headers, catch_response=True) as answer:
            self.check(answer, lambda value: value["model"] == model)
