from __future__ import annotations

import os

import pytest

import retinue
from retinue.core.wire.messages import WorkerEnv
from retinue.core.worker.context import WorkerFacts, apply_lease

CUDA = "CUDA_VISIBLE_DEVICES"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUDA, "2,3")  # as the agent has it
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def facts(**env: str) -> WorkerFacts:
    return WorkerFacts(WorkerEnv(b"job1", env), node_accelerators={"GPU": ["2", "3"]})


def test_a_workers_gpus_are_named_as_its_agent_sees_them() -> None:
    worker = facts()
    apply_lease(worker, {"GPU": 1.0}, {"GPU": [1.0, 0.0]})
    assert os.environ[CUDA] == "2"
    apply_lease(worker, {"GPU": 2.0}, {"GPU": [1.0, 1.0]})
    assert os.environ[CUDA] == "2,3"
    assert worker.accelerator_ids() == {"GPU": ["2", "3"]}


def test_without_names_indices_are_the_names() -> None:
    worker = WorkerFacts(WorkerEnv(b"job1"))
    apply_lease(worker, {"GPU": 0.5}, {"GPU": [0.0, 0.5]})
    assert os.environ[CUDA] == "1"


def test_a_lease_without_gpus_sees_none() -> None:
    worker = facts()
    apply_lease(worker, {}, {})
    assert os.environ[CUDA] == ""
    apply_lease(worker, {"GPU": 1.0}, {"GPU": [0.0, 1.0]})
    apply_lease(worker, {"CPU": 1.0}, {})
    assert os.environ[CUDA] == ""


def test_a_variable_that_the_user_sets_is_left_alone() -> None:
    apply_lease(facts(CUDA_VISIBLE_DEVICES="2,3"), {"CPU": 1.0}, {})
    assert os.environ[CUDA] == "2,3"


def test_tasks_on_an_agent_with_some_of_the_gpus_get_those(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    @retinue.remote(num_gpus=1)
    def seen() -> tuple[str, list[int]]:
        return os.environ[CUDA], retinue.get_gpu_ids()

    @retinue.remote
    def unseen() -> str:
        return os.environ[CUDA]

    monkeypatch.setenv("RETINUE_TEMP_DIR", str(tmp_path))
    retinue.init(address="local", num_cpus=1, num_gpus=2)
    try:
        assert retinue.get(seen.remote(), timeout=30) in (("2", [2]), ("3", [3]))
        assert retinue.get(unseen.remote(), timeout=30) == ""
        assert retinue.get(seen.options(num_gpus=2).remote(), timeout=30) == ("2,3", [2, 3])
    finally:
        retinue.shutdown()
