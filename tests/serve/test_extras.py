"""Serving without its extra: what is missing is said with what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

# An interpreter in which pydantic is not installed, as far as imports tell.
WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "pydantic":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""
ADVICE = "serving needs pydantic, which is not installed: pip install 'retinue[serve]'"


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT + script], capture_output=True, text=True, timeout=60, check=False
    )


def test_using_serve_says_what_to_install() -> None:
    done = run("from retinue import serve\nserve.deployment")
    assert done.stderr.strip().splitlines()[-1] == f"ModuleNotFoundError: {ADVICE}"


@pytest.mark.parametrize("command", ["status", "run nowhere:app", "validate nowhere.yaml"])
def test_commands_say_it_without_a_traceback(command: str) -> None:
    done = run(f"from retinue.serve.cli.main import main\nmain({command.split()!r})")
    assert (done.returncode, done.stderr) == (1, f"Error: {ADVICE}\n")
