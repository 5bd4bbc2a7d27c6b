from pathlib import Path

import pytest

from retinue.core.objects.budget import default_budget_bytes, memory_limit_bytes

GIB = 1 << 30


def machine(root: Path, files: dict[str, str]) -> Path:
    """A /proc and /sys with 64 GiB of memory."""
    for name, text in {"proc/meminfo": f"MemTotal:  {64 << 20} kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/memory"
CASES = {
    "no cgroup": ({}, 64),
    "v2, no limit": ({"proc/self/cgroup": "0::/a/b\n", f"{V2}/a/b/memory.max": "max\n"}, 64),
    "v2, own limit": ({"proc/self/cgroup": "0::/a/b\n", f"{V2}/a/b/memory.max": f"{8 * GIB}\n"}, 8),
    "v2, limit above": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            f"{V2}/a/b/memory.max": f"{8 * GIB}\n",
            f"{V2}/a/memory.max": f"{4 * GIB}\n",
        },
        4,
    ),
    "v2, in a container": ({"proc/self/cgroup": "0::/\n", f"{V2}/memory.max": f"{2 * GIB}\n"}, 2),
    "v2, host path that the container does not see": (
        {"proc/self/cgroup": "0::/docker/abc\n", f"{V2}/memory.max": f"{2 * GIB}\n"},
        2,
    ),
    "v1, limit": (
        {"proc/self/cgroup": "5:cpu:/x\n4:memory:/x\n", f"{V1}/x/memory.limit_in_bytes": f"{3 * GIB}\n"},
        3,
    ),
    "v1, no limit": (
        {"proc/self/cgroup": "4:memory:/x\n", f"{V1}/x/memory.limit_in_bytes": "9223372036854771712\n"},
        64,
    ),
}


@pytest.mark.parametrize(("files", "gib"), CASES.values(), ids=CASES.keys())
def test_smallest_limit_counts(tmp_path: Path, files: dict[str, str], gib: int) -> None:
    assert memory_limit_bytes(machine(tmp_path, files)) == gib * GIB


def test_default_is_thirty_percent(tmp_path: Path) -> None:
    assert default_budget_bytes(machine(tmp_path, {})) == int(0.3 * 64 * GIB)


def test_this_machine_has_a_limit() -> None:
    assert 0 < memory_limit_bytes() < 1 << 50
