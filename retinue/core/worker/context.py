"""What this worker process is: its node, lease, actor; and what runs on each thread or asyncio task.

Lives here: facts for the runtime context and for executors. Does not: running anything.
"""

from __future__ import annotations

import contextvars
import os
import sys
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from retinue.core.wire.messages import ActorSpec, Call, WorkerEnv
from retinue.core.worker.order import FrameOrder


class RunningCall(Struct):
    """One call while it runs: what `get_runtime_context()` tells, and what its end needs."""

    task_id: bytes
    name: str
    function_name: str
    attempt: int = 0
    is_cancelled: bool = False
    call: Call | None = None
    started: float = 0.0  # monotonic
    was_interrupted: bool = False  # KeyboardInterrupt was raised in it: once is enough
    borrowed: list[bytes] | None = None  # references that came to this process by it, not counted by owners
    order: FrameOrder | None = None  # of a streaming call: its items, then its reply

    def borrow(self, object_ids: list[bytes]) -> None:
        """References arrived in arguments, or in what the call fetched."""
        if self.borrowed is None:
            self.borrowed = list(object_ids)
        else:
            self.borrowed += object_ids


@dataclass(slots=True)
class WorkerFacts:
    """What stays the same for a worker, or changes with its lease."""

    env: WorkerEnv
    node_ip: str = ""
    resources: dict[str, float] = field(default_factory=dict)
    instances: dict[str, list[float]] = field(default_factory=dict)
    node_accelerators: dict[str, list[str]] = field(default_factory=dict)  # names by index, if not the index
    has_lease: bool = False
    actor: Any = None
    actor_spec: ActorSpec | None = None
    constructing: RunningCall | None = None  # the constructor, while it runs
    incarnation: int = 0

    def accelerator_ids(self) -> dict[str, list[str]]:
        """By what names the system knows the accelerators of the lease, e.g. {"GPU": ["0"]}."""
        return {
            kind: [self._name(kind, i) for i, share in enumerate(shares) if share > 0]
            for kind, shares in self.instances.items()
            if kind != "CPU"
        }

    def _name(self, kind: str, index: int) -> str:
        names = self.node_accelerators.get(kind, ())
        return names[index] if index < len(names) else str(index)


# A context variable costs 0.07 us per call and is right for threads and asyncio tasks alike.
running: contextvars.ContextVar[RunningCall | None] = contextvars.ContextVar("retinue_running", default=None)
# What a library runs in this context, a request for instance: anything with `is_cancelled`.
cancellable: contextvars.ContextVar[Any] = contextvars.ContextVar("retinue_cancellable", default=None)
facts: WorkerFacts | None = None


def set_facts(new: WorkerFacts | None) -> None:
    global facts
    facts = new


def apply_lease(worker: WorkerFacts, resources: dict[str, float], instances: dict[str, list[float]]) -> None:
    """Make the process fit its lease: visible GPUs, threads of BLAS and torch."""
    if worker.has_lease and resources == worker.resources and instances == worker.instances:
        return
    worker.has_lease = True
    worker.resources = resources
    worker.instances = instances
    if "GPU" in instances:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(worker.accelerator_ids()["GPU"])
    elif "CUDA_VISIBLE_DEVICES" not in worker.env.env_vars and worker.resources.get("GPU", 0) == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # whatever the agent, or the last lease, could see
    threads = max(1, int(resources.get("CPU", 1)))
    if os.environ.get("OMP_NUM_THREADS") != str(threads) and "OMP_NUM_THREADS" not in worker.env.env_vars:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(threads)
