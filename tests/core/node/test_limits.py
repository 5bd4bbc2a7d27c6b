from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from retinue.core.config import AgentConfig
from retinue.core.node.accelerators import Gpu
from retinue.core.node.limits import cpu_count, node_resources
from retinue.core.wire.messages import Address

ADDRESS = Address(b"a" * 16, b"n" * 16, "/tmp/x")


class FakeGpus:
    def gpus(self) -> Sequence[Gpu]:
        return [Gpu(0, "GPU-a", "NVIDIA H200"), Gpu(1, "GPU-b", "NVIDIA H200")]


def config(**options: object) -> AgentConfig:
    return AgentConfig("c", b"n" * 16, ADDRESS, ADDRESS, b"t", "/s", "/s/n", 3, **options)  # type: ignore[arg-type]


def test_what_nobody_says_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    resources = node_resources(config(object_store_memory=1 << 30, is_head_node=True), FakeGpus())
    assert resources["CPU"] == cpu_count()
    assert resources["GPU"] == resources["accelerator_type:H200"] == 1.0
    assert resources["memory"] > 0
    assert resources["object_store_memory"] == 1 << 30
    assert resources["node:127.0.0.1"] == resources["node:__internal_head__"] == 1.0


def test_what_is_said_counts() -> None:
    options = {
        "num_cpus": 0.5,
        "num_gpus": 0,
        "memory": 5.0,
        "object_store_memory": 7,
        "resources": {"x": 2.0},
    }
    resources = node_resources(config(**options), FakeGpus())
    assert resources == {
        "CPU": 0.5,
        "memory": 5.0,
        "object_store_memory": 7.0,
        "x": 2.0,
        "node:127.0.0.1": 1.0,
        f"node:{b'n'.hex() * 16}": 1.0,
    }


def test_a_cpu_quota_bounds_the_count(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    assert cpu_count(tmp_path) == len(os.sched_getaffinity(0))
    (group / "cpu.max").write_text("150000 100000\n")
    assert cpu_count(tmp_path) == 1
    (group / "cpu.max").write_text("max 100000\n")
    assert cpu_count(tmp_path) == len(os.sched_getaffinity(0))
