"""How large the arena may be when nobody says: 30 % of the memory that this process's cgroup allows."""

import os
from pathlib import Path

DEFAULT_SHARE = 0.30
NO_LIMIT = 1 << 60  # cgroup v1 says "unlimited" with a number near 2**63


def default_budget_bytes(root: Path = Path("/")) -> int:
    """30 % of the smallest memory limit above this process (cgroup v1 or v2), else of the machine."""
    return int(DEFAULT_SHARE * memory_limit_bytes(root))


def memory_limit_bytes(root: Path = Path("/")) -> int:
    """The memory that this process may use at most, in bytes; `root` is where /proc and /sys lie (tests)."""
    return min([_machine_bytes(root), *_cgroup_limits(root)])


def _machine_bytes(root: Path) -> int:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_limits(root: Path) -> list[int]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    mount = root / "sys/fs/cgroup"
    limits = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            limits += _limits_up_from(mount, path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits_up_from(mount / "memory", path, "memory.limit_in_bytes")
    return limits


def _limits_up_from(mount: Path, path: str, name: str) -> list[int]:
    """The limits of a group and of all above it. In a container the path may not be visible: skipped then."""
    group = mount / path.strip("/")
    limits = []
    while True:
        try:
            limit = int((group / name).read_text())
            if 0 < limit < NO_LIMIT:
                limits.append(limit)
        except (OSError, ValueError):  # no such group here, or "max"
            pass
        if group == mount or mount not in group.parents:
            return limits
        group = group.parent
