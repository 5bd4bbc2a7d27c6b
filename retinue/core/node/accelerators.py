"""Which accelerators this machine has, and the node resources that follow.

Lives here: asking NVML (the only file that imports it), `CUDA_VISIBLE_DEVICES`, names. Does not: handing
indices out (`scheduling.resources`), or setting a worker's environment (the worker).
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct

logger = logging.getLogger(__name__)

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
TYPE_PREFIX = "accelerator_type:"
_CONTROL_DEVICE = "/dev/nvidiactl"
# "NVIDIA H200" -> H200, "Tesla V100-SXM2-16GB" -> V100, "NVIDIA GeForce RTX 3090" -> 3090
_MODEL = re.compile(r"\b([A-Z]*\d+[A-Z]*)\b")
_DEVICE_ID = re.compile(r"\d+|(GPU|MIG)-.*")


class Gpu(Struct, frozen=True):
    index: int
    uuid: str
    name: str


class GpuSource(Protocol):
    def gpus(self) -> Sequence[Gpu]:
        """The machine's GPUs, by index; empty where there are none or their driver is not there."""
        ...


class NvmlGpus:
    """The GPUs that NVIDIA's management library lists."""

    def gpus(self) -> Sequence[Gpu]:
        if not os.path.exists(_CONTROL_DEVICE):
            return ()
        try:
            import pynvml
        except ImportError:
            logger.warning("this machine seems to have a GPU; install retinue[gpu] to use it")
            return ()
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            logger.warning("the GPUs cannot be listed: %s", error)
            return ()
        try:
            return [self._gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            logger.warning("the GPUs cannot be listed: %s", error)
            return ()
        finally:
            pynvml.nvmlShutdown()

    @staticmethod
    def _gpu(pynvml: object, index: int) -> Gpu:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)  # type: ignore[attr-defined]
        uuid = pynvml.nvmlDeviceGetUUID(handle)  # type: ignore[attr-defined]
        return Gpu(index, str(uuid), str(pynvml.nvmlDeviceGetName(handle)))  # type: ignore[attr-defined]


def visible(gpus: Sequence[Gpu], environment: Mapping[str, str]) -> list[Gpu]:
    """Those that `CUDA_VISIBLE_DEVICES` allows, in its order; as CUDA, up to the first unknown one."""
    wanted = _wanted(environment)
    if wanted is None:
        return list(gpus)
    found = (_find(gpus, part) for part in wanted)
    return [gpu for gpu in itertools.takewhile(lambda gpu: gpu is not None, found) if gpu is not None]


def device_ids(gpus: Sequence[Gpu], environment: Mapping[str, str]) -> list[str]:
    """By what names CUDA knows the node's GPUs: the first is that of index 0. Empty: by their indices.

    They are those in `CUDA_VISIBLE_DEVICES`, as they stand there; a worker's own variable is made of them.
    Where no driver lists GPUs, the variable is believed.
    """
    wanted = _wanted(environment)
    if wanted is None:
        return []
    if gpus:
        return list(itertools.takewhile(lambda part: _find(gpus, part) is not None, wanted))
    return list(itertools.takewhile(_DEVICE_ID.fullmatch, wanted))


def _wanted(environment: Mapping[str, str]) -> list[str] | None:
    value = environment.get(VISIBLE_DEVICES)
    return None if value is None else [part.strip() for part in value.split(",")]


def _find(gpus: Sequence[Gpu], part: str) -> Gpu | None:
    return next((g for g in gpus if part == str(g.index) or (part and g.uuid.startswith(part))), None)


def gpu_resources(gpus: Sequence[Gpu], *, count: float | None = None) -> dict[str, float]:
    """The node's resources: `count` GPUs (default: all), and their type by name."""
    number = float(len(gpus)) if count is None else count
    if not number:
        return {}
    resources = {"GPU": number}
    for gpu in gpus:
        model = model_of(gpu.name)
        if model:
            resources[TYPE_PREFIX + model] = 1.0
    return resources


def model_of(name: str) -> str:
    """The model in a device's name; "" if there is none to be seen."""
    found = _MODEL.search(name.upper())
    return found.group(1) if found else ""
