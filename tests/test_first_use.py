"""Scripts that never call `init()`: the first use starts a cluster, which ends with the script."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

USES = {
    "a task": "retinue.get(retinue.remote(lambda: 3).remote())",
    "an actor": "retinue.get(retinue.remote(Box).remote(3).get.remote())",
    "an object": "retinue.get(retinue.put(3))",
    "the cluster's nodes": "len(retinue.nodes()) + 2",
}
SCRIPT = """
import retinue

class Box:
    def __init__(self, value):
        self.value = value

    def get(self):
        return self.value

print({use})
"""


@pytest.mark.parametrize("use", list(USES))
def test_the_first_use_starts_a_cluster(use: str, tmp_path: Path) -> None:
    env = {**os.environ, "RETINUE_TEMP_DIR": str(tmp_path)}
    env.pop("RETINUE_ADDRESS", None)
    script = SCRIPT.format(use=USES[use])
    done = subprocess.run(
        [sys.executable, "-"], input=script, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
