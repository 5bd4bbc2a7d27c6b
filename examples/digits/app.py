"""Handwritten digits: a network that trains itself on first start, and settings that change while it serves.

`user_config` has the settings. Change them in config.yaml and `serve deploy` it again: `reconfigure` gets
them, and no replica is started anew.
"""

import asyncio
import importlib.util
import io
from typing import Annotated

import torch
from fastapi import Body, FastAPI, HTTPException
from pydantic import BaseModel, Field
from torch import Tensor

from examples.digits.model import BRIGHTEST, SIDE, test_data, trained
from retinue import serve

Row = Annotated[list[Annotated[float, Field(ge=0, le=BRIGHTEST)]], Field(min_length=SIDE, max_length=SIDE)]
HAS_PILLOW = importlib.util.find_spec("PIL") is not None


class Settings(BaseModel, extra="forbid"):
    """`user_config`. `temperature`: above 1 the network is less sure of itself, below 1 more."""

    temperature: float = Field(default=1.0, gt=0)
    threshold: float = Field(default=0.5, ge=0, le=1, description="Below it, the answer is: no digit.")


class Image(BaseModel):
    pixels: Annotated[list[Row], Field(min_length=SIDE, max_length=SIDE)]


class Guess(BaseModel):
    """`digit` is None if the network is less sure than the threshold."""

    digit: int | None
    confidence: float
    probabilities: list[float]


class Accuracy(BaseModel):
    """Over images that no training has seen; `answered` is the share that was above the threshold."""

    images: int
    accuracy: float
    answered: float
    settings: Settings


api = FastAPI(title="Handwritten digits")


@serve.deployment(user_config={"temperature": 1.0, "threshold": 0.5}, ray_actor_options={"num_cpus": 0.2})
@serve.ingress(api)
class Digits:
    def __init__(self) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self._model = trained()
        self._settings = Settings()

    def reconfigure(self, user_config: dict[str, float]) -> None:
        """At the start, and whenever user_config changes. What this raises stops the update."""
        self._settings = Settings.model_validate(user_config)

    @api.post("/predict")
    async def predict(self, image: Image) -> Guess:
        """An image as 8 rows of 8 values from 0 (background) to 16 (ink)."""
        return self._guess(torch.tensor(image.pixels)[None, None] / BRIGHTEST)

    @api.post("/image")
    async def predict_image(self, content: Annotated[bytes, Body(media_type="image/png")]) -> Guess:
        """An image file of any size, dark on light or light on dark; it needs Pillow on the server."""
        if not HAS_PILLOW:
            raise HTTPException(501, "reading images needs Pillow: pip install pillow")
        return self._guess(await asyncio.to_thread(read_image, content))

    @api.get("/accuracy")
    async def accuracy(self) -> Accuracy:
        images, labels = test_data()
        best, digits = self._probabilities(images).max(dim=1)
        return Accuracy(
            images=len(labels),
            accuracy=float((digits == labels).float().mean()),
            answered=float((best >= self._settings.threshold).float().mean()),
            settings=self._settings,
        )

    def _guess(self, image: Tensor) -> Guess:
        probabilities = self._probabilities(image)[0]
        confidence, digit = probabilities.max(dim=0)
        is_sure = bool(confidence >= self._settings.threshold)
        return Guess(
            digit=int(digit) if is_sure else None,
            confidence=float(confidence),
            probabilities=probabilities.tolist(),
        )

    def _probabilities(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            result: Tensor = self._model(images).div(self._settings.temperature).softmax(dim=1)
        return result


def read_image(content: bytes) -> Tensor:
    """The file's image as the network wants it. Raises HTTPException if it is none."""
    from PIL import Image as Picture
    from PIL import UnidentifiedImageError

    try:
        with Picture.open(io.BytesIO(content)) as picture:
            small = picture.convert("L").resize((SIDE, SIDE), Picture.Resampling.BOX)
    except (UnidentifiedImageError, OSError, Picture.DecompressionBombError) as error:
        raise HTTPException(422, f"this is no image: {error}") from error
    pixels = torch.tensor(list(small.tobytes()), dtype=torch.float32).view(1, 1, SIDE, SIDE) / 255
    return 1 - pixels if pixels.mean() > 0.5 else pixels


app = Digits.bind()
