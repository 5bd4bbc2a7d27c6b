from __future__ import annotations

import pytest

from retinue.core.node.accelerators import Gpu, device_ids, gpu_resources, model_of, visible

GPUS = [
    Gpu(0, "GPU-aa11", "NVIDIA H200"),
    Gpu(1, "GPU-bb22", "NVIDIA H200"),
    Gpu(2, "GPU-cc33", "NVIDIA H200"),
]


@pytest.mark.parametrize(
    ("value", "indices"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("2,0", [2, 0]),
        ("GPU-bb", [1]),
        ("0,9,1", [0]),
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices_is_honoured(value: str | None, indices: list[int]) -> None:
    environment = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    assert [gpu.index for gpu in visible(GPUS, environment)] == indices


@pytest.mark.parametrize(
    ("value", "ids"),
    [(None, []), ("2,0", ["2", "0"]), ("GPU-bb", ["GPU-bb"]), ("1,9,0", ["1"]), ("", [])],
)
def test_devices_keep_the_names_that_the_variable_gives_them(value: str | None, ids: list[str]) -> None:
    environment = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    assert device_ids(GPUS, environment) == ids


def test_without_a_driver_the_variable_is_believed() -> None:
    assert device_ids([], {"CUDA_VISIBLE_DEVICES": "2, 3,-1,4"}) == ["2", "3"]


def test_a_node_names_its_gpus_and_their_type() -> None:
    assert gpu_resources(GPUS) == {"GPU": 3.0, "accelerator_type:H200": 1.0}
    assert gpu_resources(GPUS, count=1) == {"GPU": 1.0, "accelerator_type:H200": 1.0}
    assert gpu_resources([]) == {}
    assert gpu_resources([], count=2) == {"GPU": 2.0}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 3090", "3090"),
        ("Mystery", ""),
    ],
)
def test_the_model_is_read_from_the_name(name: str, model: str) -> None:
    assert model_of(name) == model
