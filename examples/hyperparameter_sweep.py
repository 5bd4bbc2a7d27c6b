"""Search the settings of a small neural network on scikit-learn's digits, in parallel.

Each setting is scored by one task, with five-fold cross-validation. The data lies in shared memory, put there
once. An actor keeps the best setting so far: each score goes to it as a reference, straight from the task.

    python examples/hyperparameter_sweep.py [--settings N]
"""

import argparse
import itertools
import random
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

import retinue

GRID: dict[str, list[Any]] = {
    "hidden_layer_sizes": [(16,), (32,), (64,), (32, 32)],
    "alpha": [1e-4, 1e-2, 1.0],
    "learning_rate_init": [0.0003, 0.001, 0.003, 0.01],
    "activation": ["relu", "tanh"],
}


@dataclass(frozen=True)
class Score:
    """How well one setting did: mean and spread of the accuracy over the folds, and what it took."""

    setting: dict[str, Any]
    accuracy: float
    spread: float
    seconds: float


@retinue.remote
def evaluate(setting: dict[str, Any], images: np.ndarray, labels: np.ndarray) -> Score:
    """Train and score one setting; `images` and `labels` are views into shared memory."""
    started = time.perf_counter()
    network = MLPClassifier(**setting, max_iter=80, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 80 passes rank the settings well enough
        folds = cross_val_score(make_pipeline(StandardScaler(), network), images, labels, cv=5)
    return Score(setting, float(folds.mean()), float(folds.std()), time.perf_counter() - started)


@retinue.remote(num_cpus=0)
class Leaderboard:
    """Keeps all scores, and knows the best of them at any time."""

    def __init__(self) -> None:
        self.scores: list[Score] = []

    def record(self, score: Score) -> Score:
        """Add a score; return the best so far."""
        self.scores.append(score)
        return self.top(1)[0]

    def top(self, count: int) -> list[Score]:
        return sorted(self.scores, key=lambda score: score.accuracy, reverse=True)[:count]


def settings(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Draw `count` different settings from the grid."""
    grid = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    return random.Random(seed).sample(grid, min(count, len(grid)))


def sweep(candidates: Sequence[dict[str, Any]], *, show_progress: bool = True) -> list[Score]:
    """Score all candidates in parallel; return the scores, best first."""
    digits = load_digits()
    images, labels = retinue.put(digits.data), retinue.put(digits.target)
    leaderboard = Leaderboard.remote()
    pending = [leaderboard.record.remote(evaluate.remote(c, images, labels)) for c in candidates]
    with tqdm(total=len(pending), unit="setting", disable=not show_progress) as bar:
        while pending:
            done, pending = retinue.wait(pending)
            bar.set_postfix(best=f"{retinue.get(done[-1]).accuracy:.4f}")
            bar.update(len(done))
    return retinue.get(leaderboard.top.remote(len(candidates)))


def table(scores: Sequence[Score]) -> str:
    lines = ["accuracy           seconds  hidden      alpha   learning rate  activation"]
    for score in scores:
        s = score.setting
        layers = "x".join(map(str, s["hidden_layer_sizes"]))
        lines.append(
            f"{score.accuracy:.4f} +- {score.spread:.4f}  {score.seconds:6.2f}  {layers:<10}"
            f"  {s['alpha']:<6g}  {s['learning_rate_init']:<13g}  {s['activation']}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", type=int, default=40, help="how many settings to try (at most 96)")
    count = parser.parse_args(arguments).settings

    with retinue.init():
        started = time.perf_counter()
        scores = sweep(settings(count))
        elapsed = time.perf_counter() - started
        print(f"\nThe best of {len(scores)} settings:\n\n{table(scores[:10])}\n")
        worked = sum(score.seconds for score in scores)
        cpus = retinue.cluster_resources()["CPU"]
        print(f"{worked:.1f} s of training took {elapsed:.1f} s on {cpus:g} CPUs.")


if __name__ == "__main__":
    main()
