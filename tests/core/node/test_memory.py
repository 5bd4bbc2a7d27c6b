from __future__ import annotations

import os
from pathlib import Path

import pytest

from retinue.core.node.memory import (
    MachineUsage,
    WorkerUsage,
    decide,
    machine_usage,
    node_usage,
    private_bytes,
    threshold,
)

MIB = 1 << 20
CALM, SHORT = MachineUsage(50, 100), MachineUsage(96, 100)


def worker(
    name: str, mib: int, *, limit: int | None = None, is_retriable: bool = True, since: float = 0.0
) -> WorkerUsage:
    return WorkerUsage(name.encode(), name, mib * MIB, limit and limit * MIB, is_retriable, since)


def test_nobody_ends_while_there_is_memory() -> None:
    assert decide(CALM, [worker("a", 1000)]) == []


def test_whoever_passes_its_own_limit_ends_whatever_the_machine_has() -> None:
    (end,) = decide(CALM, [worker("a", 300, limit=200), worker("b", 100, limit=200)])
    assert end.worker_id == b"a"
    assert end.reason == "out of memory: it used 300 MiB and had asked for 200 MiB"


def test_the_newest_retriable_worker_ends_when_the_machine_is_short() -> None:
    workers = [
        worker("old", 900),
        worker("new", 10, since=5.0),
        worker("newest", 10, is_retriable=False, since=9.0),
    ]
    (end,) = decide(SHORT, workers)
    assert end.worker_id == b"new"
    assert "the largest were old 900 MiB" in end.reason


def test_an_idle_worker_is_not_the_newest_while_others_run() -> None:
    idle = WorkerUsage(b"idle", "", 10 * MIB, None, is_retriable=True, since=9.0, is_idle=True)
    assert [end.worker_id for end in decide(SHORT, [worker("a", 1, is_retriable=False), idle])] == [b"a"]
    assert [end.worker_id for end in decide(SHORT, [idle])] == [b"idle"]


def test_the_threshold_and_the_nodes_own_limit_decide_what_is_short() -> None:
    assert threshold({}) == 0.95
    assert threshold({"RETINUE_MEMORY_USAGE_THRESHOLD": "0.5"}) == 0.5
    with pytest.raises(ValueError, match="between 0 and 1"):
        threshold({"RETINUE_MEMORY_USAGE_THRESHOLD": "0"})
    workers = [worker("a", 30), worker("b", 30, since=1.0)]
    usage = node_usage(workers, 100 * MIB)
    assert decide(usage, workers, short_share=0.7) == []
    (end,) = decide(usage, workers, short_share=0.6)
    assert end.worker_id == b"b"
    assert "the node uses 60 MiB of 100 MiB" in end.reason


def test_the_newest_ends_where_none_is_retriable() -> None:
    workers = [worker("a", 1, is_retriable=False), worker("b", 1, is_retriable=False, since=1.0)]
    assert [end.worker_id for end in decide(SHORT, workers)] == [b"b"]


def test_the_tightest_limit_above_us_counts_without_page_cache(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 900 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n")
    group = tmp_path / "sys/fs/cgroup/a"
    (group / "b").mkdir(parents=True)
    (group / "memory.max").write_text("1000\n")
    (group / "memory.current").write_text("950\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 50\n")
    (group / "b/memory.max").write_text("max\n")
    assert machine_usage(tmp_path) == MachineUsage(900, 1000)


def test_this_process_has_private_memory_and_a_dead_one_none() -> None:
    assert private_bytes(os.getpid()) > MIB
    assert private_bytes(2**22 + 1) == 0
