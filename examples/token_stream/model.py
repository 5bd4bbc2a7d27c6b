"""A small language model of Python's reference text: six words in, the next word out.

It is trained in seconds and has learned little more than what words usually follow each other, which is
enough to be read as it is written.

Lives here: words, the network, training, what is kept between starts. Does not: serving.
"""

import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from examples.cache import cache_file, keep
from examples.semantic_search.passages import passages

CONTEXT = 6
VOCABULARY = 2500  # the most frequent words; the others are one
UNKNOWN = "<unknown>"
BATCH = 512
_WORD = re.compile(r"\w+(?:['\u2019.]\w+)*|[.,;:()]")  # quotes and stars, which mark code, are left out
_NO_SPACE_BEFORE = tuple(".,;:)")


class NextWord(nn.Module):
    """From the numbers of CONTEXT words to the scores of all words for the next place."""

    def __init__(self, words: int, width: int = 64, hidden: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(CONTEXT * width, hidden),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(hidden, width),
        )

    def forward(self, words: Tensor) -> Tensor:
        return nn.functional.linear(self.layers(self.embedding(words)), self.embedding.weight)


class LanguageModel:
    """The network with its words."""

    def __init__(self, network: NextWord, words: Sequence[str]) -> None:
        self._network = network.eval()
        self._words = words
        self._numbers = {word: number for number, word in enumerate(words)}

    def write(self, prompt: str, *, temperature: float = 0.8, seed: int | None = None) -> Iterator[str]:
        """Words for after the prompt, each with the space before it, without end. The same for the same seed.

        A temperature near 0 always takes the likeliest word; above 1 it takes chances.
        """
        generator = torch.Generator()
        generator.manual_seed(seed) if seed is not None else generator.seed()
        numbers = [self._numbers.get(word, 0) for word in _WORD.findall(prompt)][-CONTEXT:]
        numbers = [0] * (CONTEXT - len(numbers)) + numbers
        last = prompt
        while True:
            with torch.inference_mode():
                scores = self._network(torch.tensor([numbers]))[0] / max(temperature, 1e-3)
                scores[0] = -torch.inf  # never write what is unknown
                number = int(torch.multinomial(scores.softmax(0), 1, generator=generator))
            word = self._words[number]
            yield word if word in _NO_SPACE_BEFORE or last.endswith("(") else f" {word}"
            last = word
            numbers = [*numbers[1:], number]


def trained(epochs: int, topics: Sequence[str] | None = None) -> LanguageModel:
    """A model of these topics (None: all); that of the last start if nothing has changed."""
    text = "\n".join(passage.prose for passage in passages(topics))
    words = _WORD.findall(text)
    vocabulary = [UNKNOWN, *[word for word, _ in Counter(words).most_common(VOCABULARY - 1)]]
    network = NextWord(len(vocabulary))
    file = cache_file("token-stream.pt", [text, str(network), str(epochs), torch.__version__])
    if file.exists():
        network.load_state_dict(torch.load(file, weights_only=True))
    else:
        _train(network, words, vocabulary, epochs)
        content = io.BytesIO()
        torch.save(network.state_dict(), content)
        keep(file, content.getvalue())
    return LanguageModel(network, vocabulary)


def _train(network: NextWord, words: Sequence[str], vocabulary: Sequence[str], epochs: int) -> None:
    numbers = {word: number for number, word in enumerate(vocabulary)}
    text = torch.tensor([numbers.get(word, 0) for word in words])
    windows = text.unfold(0, CONTEXT + 1, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.005)
    nn.init.normal_(network.embedding.weight, std=0.1)
    network.train()
    for _ in range(epochs):
        for part in torch.randperm(len(windows)).split(BATCH):
            optimizer.zero_grad()
            scores = network(windows[part, :-1])
            nn.functional.cross_entropy(scores, windows[part, -1]).backward()
            optimizer.step()
