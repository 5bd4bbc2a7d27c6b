"""Which worker ends when memory runs short, before the kernel ends a stranger.

Counted is private memory per worker, and the arena once for the node. Lives here: the decision (pure) and
reading /proc and the cgroup. Does not: ending workers (`processes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

# Of the machine's memory, or of the container's: above it, it is short.
THRESHOLD_VARIABLE = "RETINUE_MEMORY_USAGE_THRESHOLD"
SHORT_SHARE = 0.95
# So much below it nobody's memory is looked at yet, unless some worker has a limit of its own.
UNWATCHED_SHARE = 0.15
LOOK_INTERVAL_S = 0.25
_PAGE = 4096


class WorkerUsage(Struct, frozen=True):
    worker_id: bytes
    name: str
    private_bytes: int
    limit_bytes: int | None  # the `memory` it was granted
    is_retriable: bool
    since: float  # when its lease began
    is_idle: bool = False  # without a lease: its end would free little, and objects of its own would go too


class MachineUsage(Struct, frozen=True):
    """The tightest of the machine, the cgroups above us, and what the node was given."""

    used_bytes: int
    limit_bytes: int
    name: str = "the machine"

    @property
    def share(self) -> float:
        return self.used_bytes / self.limit_bytes if self.limit_bytes else 0.0


class EndForMemory(Struct, frozen=True):
    worker_id: bytes
    reason: str


def threshold(environ: Mapping[str, str]) -> float:
    """The share above which memory is short. Raises ValueError."""
    text = environ.get(THRESHOLD_VARIABLE, "")
    share = float(text) if text else SHORT_SHARE
    if not 0 < share <= 1:
        raise ValueError(f"{THRESHOLD_VARIABLE} is a share between 0 and 1, not {text!r}")
    return share


def decide(
    machine: MachineUsage, workers: Sequence[WorkerUsage], *, short_share: float = SHORT_SHARE
) -> list[EndForMemory]:
    """Everyone above its own limit; else, if the machine is short, the newest that may be run again."""
    over = [
        EndForMemory(
            w.worker_id,
            f"out of memory: it used {_mib(w.private_bytes)} and had asked for {_mib(w.limit_bytes)}",
        )
        for w in workers
        if w.limit_bytes is not None and w.private_bytes > w.limit_bytes
    ]
    if over or not workers or machine.share < short_share:
        return over
    victim = max(workers, key=lambda w: (not w.is_idle, w.is_retriable, w.since))
    largest = sorted(workers, key=lambda w: -w.private_bytes)[:3]
    users = ", ".join(f"{w.name or w.worker_id.hex()[:12]} {_mib(w.private_bytes)}" for w in largest)
    kind = "retriable worker" if victim.is_retriable else "worker"
    reason = (
        f"out of memory: {machine.name} uses {_mib(machine.used_bytes)} of {_mib(machine.limit_bytes)}, and "
        f"this was the newest {kind}, with {_mib(victim.private_bytes)}; the largest were {users}"
    )
    return [EndForMemory(victim.worker_id, reason)]


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


# --- reading --------------------------------------------------------------------------------------------


def private_bytes(pid: int, root: Path = Path("/")) -> int:
    """Resident memory of a process that is not backed by a file or the arena; 0 if it is gone."""
    try:
        fields = (root / f"proc/{pid}/statm").read_text().split()
        return (int(fields[1]) - int(fields[2])) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0


def node_usage(workers: Sequence[WorkerUsage], limit_bytes: int) -> MachineUsage:
    """Of a node that shares its machine with others: what its workers use of what it may use."""
    return MachineUsage(sum(w.private_bytes for w in workers), limit_bytes, "the node")


def machine_usage(root: Path = Path("/")) -> MachineUsage:
    usages = [_machine(root), *_cgroups(root)]
    return max(usages, key=lambda usage: usage.share)


def _machine(root: Path) -> MachineUsage:
    values: dict[str, int] = {}
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("MemTotal", "MemAvailable"):
            values[name] = int(rest.split()[0]) * 1024
    total = values["MemTotal"]
    return MachineUsage(total - values.get("MemAvailable", total), total)


def _cgroups(root: Path) -> list[MachineUsage]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    mount = root / "sys/fs/cgroup"
    usages: list[MachineUsage] = []
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers:
            usages += _up_from(mount, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            usages += _up_from(mount / "memory", path, *names)
    return usages


def _up_from(mount: Path, path: str, limit: str, usage: str, inactive: str) -> list[MachineUsage]:
    group = mount / path.strip("/")
    usages: list[MachineUsage] = []
    while True:
        found = _group(group, limit, usage, inactive)
        if found is not None:
            usages.append(found)
        if group == mount or mount not in group.parents:
            return usages
        group = group.parent


def _group(group: Path, limit: str, usage: str, inactive: str) -> MachineUsage | None:
    """None for a group without a limit, or one that cannot be seen from here."""
    try:
        limit_bytes = int((group / limit).read_text())
        used = int((group / usage).read_text())
        for line in (group / "memory.stat").read_text().splitlines():
            if line.startswith(inactive + " "):
                used -= int(line.split()[1])  # page cache that the kernel gives up first
    except (OSError, ValueError):
        return None
    return MachineUsage(max(0, used), limit_bytes) if 0 < limit_bytes < 1 << 60 else None
