"""What `serve run --reload` looks at."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

from retinue.serve.cli.reload import forget_modules, snapshot


def test_sources_are_looked_at_and_environments_are_not(tmp_path: Path) -> None:
    for name in (
        "a.py",
        "below/b.py",
        "config.yaml",
        "model.bin",
        ".git/c.py",
        "__pycache__/d.py",
        "env/e.py",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    assert sorted(os.path.relpath(path, tmp_path) for path in snapshot(str(tmp_path))) == [
        "a.py",
        "below/b.py",
        "config.yaml",
    ]


def test_a_module_is_imported_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = tmp_path / "reloaded_module.py"
    file.write_text("value = 1")
    assert importlib.import_module("reloaded_module").value == 1
    file.write_text("value = 2")
    forget_modules(str(tmp_path))
    assert importlib.import_module("reloaded_module").value == 2
    forget_modules(str(tmp_path))
    assert "reloaded_module" not in sys.modules
