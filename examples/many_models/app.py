"""Many small models behind one address: each replica holds a few, and requests go where their model is.

There are fifteen models, five data sets times three methods of scikit-learn. A request names its model in
the header `serve_multiplexed_model_id`; a model is made (trained, here) when it is first asked for. Each of
the two replicas holds three, and the one that was not used for the longest time makes room.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine, make_moons
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Bunch
from starlette.exceptions import HTTPException
from starlette.requests import Request

from retinue import serve

MODELS_PER_REPLICA = 3


def load_moons() -> Bunch:
    data, target = make_moons(400, noise=0.2, random_state=0)
    return Bunch(data=data, target=target, target_names=np.array(["upper", "lower"]))


DATA: dict[str, Callable[[], Bunch]] = {
    "iris": load_iris,
    "wine": load_wine,
    "cancer": load_breast_cancer,
    "digits": load_digits,
    "moons": load_moons,
}
METHODS: dict[str, Callable[[], ClassifierMixin]] = {
    "logistic": lambda: LogisticRegression(max_iter=1000),
    "neighbours": lambda: KNeighborsClassifier(5),
    "forest": lambda: RandomForestClassifier(50, random_state=0),
}
MODEL_IDS = [f"{data}/{method}" for data in DATA for method in METHODS]


class Model:
    """A classifier of one data set, trained on three quarters of it, tested on the rest."""

    def __init__(self, model_id: str) -> None:
        """Raises KeyError for an id that is not in MODEL_IDS."""
        data, _, method = model_id.partition("/")
        bunch, classifier = DATA[data](), METHODS[method]()
        parts = train_test_split(bunch.data, bunch.target, random_state=0, stratify=bunch.target)
        train, test, train_labels, test_labels = parts
        self._pipeline = make_pipeline(StandardScaler(), classifier).fit(train, train_labels)
        self.accuracy = float(self._pipeline.score(test, test_labels))
        self.features = int(bunch.data.shape[1])
        self.example: list[float] = test[0].tolist()
        self._names = [str(name) for name in bunch.target_names]

    def predict(self, rows: np.ndarray) -> list[str]:
        return [self._names[number] for number in self._pipeline.predict(rows)]


@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0.1})
class ManyModels:
    def __init__(self) -> None:
        self._replica = serve.get_replica_context().replica_tag.rpartition("#")[2]
        self._held: list[str] = []  # the order in which they were used, the oldest first

    @serve.multiplexed(max_num_models_per_replica=MODELS_PER_REPLICA)
    async def get_model(self, model_id: str) -> Model:
        return await asyncio.to_thread(Model, model_id)

    async def __call__(self, request: Request) -> dict[str, Any]:
        """GET lists the models. POST `{"rows": [[...], ...]}` with the header predicts; without a body it
        predicts an example."""
        model_id = serve.get_multiplexed_model_id()
        if request.method == "GET" and not model_id:
            return {"models": MODEL_IDS}
        if model_id not in MODEL_IDS:
            raise HTTPException(404, f"there is no model {model_id!r}; GET lists them")
        started = time.perf_counter()
        model = await self.get_model(model_id)
        ready_s = time.perf_counter() - started
        was_held = self._use(model_id)
        rows = await self._rows(request, model)
        return {
            "model": model_id,
            "accuracy": model.accuracy,
            "predictions": await asyncio.to_thread(model.predict, rows),
            "replica": self._replica,
            "was_held": was_held,
            "ready_ms": round(ready_s * 1000, 2),
            "holds": self._held,
        }

    def _use(self, model_id: str) -> bool:
        """Note what the decorator does, for clients to see: whether it held the model already."""
        was_held = model_id in self._held
        self._held = [*[each for each in self._held if each != model_id], model_id][-MODELS_PER_REPLICA:]
        return was_held

    async def _rows(self, request: Request, model: Model) -> np.ndarray:
        body = await request.json() if await request.body() else {"rows": [model.example]}
        try:
            rows = np.array(body["rows"], dtype=float)
        except (KeyError, TypeError, ValueError):
            raise HTTPException(422, 'the body is {"rows": [[a number, ...], ...]}') from None
        if rows.ndim != 2 or rows.shape[1] != model.features or not len(rows):
            raise HTTPException(422, f"rows of this model have {model.features} numbers")
        return rows


app = ManyModels.bind()
