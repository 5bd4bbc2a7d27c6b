"""A small network for handwritten digits, trained in seconds on scikit-learn's images of 8 x 8 pixels.

Lives here: data, training, weights that are kept between starts. Does not: serving.
"""

import io

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from examples.cache import cache_file, keep

SIDE = 8
BRIGHTEST = 16.0  # in the data
TRAINING_IMAGES = 1347  # of 1797; the others only test
EPOCHS = 12


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(32 * (SIDE // 2) ** 2, 10),
    )


def data() -> tuple[Tensor, Tensor]:
    """All images with values from 0 to 1, in an order without meaning, and what they show."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / BRIGHTEST
    return images[order], torch.tensor(digits.target)[order]


def test_data() -> tuple[Tensor, Tensor]:
    """Images that no training has seen."""
    images, labels = data()
    return images[TRAINING_IMAGES:], labels[TRAINING_IMAGES:]


def trained(epochs: int = EPOCHS) -> nn.Module:
    """The network; its weights are those of the last start if nothing has changed."""
    model = network()
    file = cache_file("digits.pt", [str(model), f"{epochs} epochs of {TRAINING_IMAGES}", torch.__version__])
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model.eval()
    train(model, epochs)
    content = io.BytesIO()
    torch.save(model.state_dict(), content)
    keep(file, content.getvalue())
    return model


def train(model: nn.Module, epochs: int) -> None:
    images, labels = data()
    images, labels = images[:TRAINING_IMAGES], labels[:TRAINING_IMAGES]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    model.train()
    for _ in range(epochs):
        for part in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
    model.eval()
