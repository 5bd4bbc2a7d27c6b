"""What a node has, where nobody says: CPUs, GPUs and memory of this machine, or of its container."""

from __future__ import annotations

import os
from pathlib import Path

from retinue.core.config import AgentConfig
from retinue.core.node.accelerators import GpuSource, gpu_resources, visible
from retinue.core.objects.budget import default_budget_bytes, memory_limit_bytes

# Of the memory that is not the store's: the rest is for the system, the agent and user code outside tasks.
TASK_MEMORY_SHARE = 0.9


def store_bytes(config: AgentConfig) -> int:
    if config.object_store_memory is not None:
        return int(config.object_store_memory)
    return default_budget_bytes()


def node_resources(config: AgentConfig, gpus: GpuSource) -> dict[str, float]:
    """The node's total resources, as Ray names them."""
    found = visible(gpus.gpus(), os.environ) if config.num_gpus != 0 else []
    store = store_bytes(config)
    memory = config.memory
    if memory is None:
        memory = float(max(0, int((memory_limit_bytes() - store) * TASK_MEMORY_SHARE)))
    resources = {
        "CPU": float(cpu_count() if config.num_cpus is None else config.num_cpus),
        **gpu_resources(found, count=config.num_gpus),
        "memory": memory,
        "object_store_memory": float(store),
        f"node:{config.node_ip}": 1.0,
        f"node:{config.node_id.hex()}": 1.0,  # several nodes may have one address
        **config.resources,
    }
    if config.is_head_node:
        resources["node:__internal_head__"] = 1.0
    return {name: amount for name, amount in resources.items() if amount}


def cpu_count(root: Path = Path("/")) -> int:
    """CPUs that this process may use: its affinity, and the quota of its cgroup."""
    count = len(os.sched_getaffinity(0))
    quota = _cpu_quota(root)
    return count if quota is None else max(1, min(count, int(quota)))


def _cpu_quota(root: Path) -> float | None:
    mount = root / "sys/fs/cgroup"
    try:
        quota, period = (mount / "cpu.max").read_text().split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((mount / "cpu" / "cpu.cfs_quota_us").read_text())
        period_us = int((mount / "cpu" / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota_us / period_us if quota_us > 0 else None
