"""A torch model for the tests of replica start."""

from __future__ import annotations

import torch

from retinue import serve


@serve.deployment
class Net:
    def __init__(self) -> None:
        self.layer = torch.nn.Linear(2, 2)

    async def forward(self, values: list[float]) -> list[float]:
        with torch.no_grad():
            answer: list[float] = self.layer(torch.tensor(values)).tolist()
        return answer
