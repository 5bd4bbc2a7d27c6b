"""`serve run --reload`: notice changed files, and import the application afresh.

Lives here: that. Does not: deploying what was imported (`run`).
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Iterator

LOOK_EVERY_S = 0.3
SUFFIXES = (".py", ".yaml", ".yml", ".json", ".toml", ".txt")

Snapshot = dict[str, tuple[int, int]]


def snapshot(folder: str) -> Snapshot:
    """Time and size of the source files in the folder and below; not of hidden folders and environments."""
    found: Snapshot = {}
    for parent, folders, names in os.walk(folder):
        if "pyvenv.cfg" in names:
            folders.clear()
            continue
        folders[:] = [
            n for n in folders if not n.startswith(".") and n not in ("__pycache__", "node_modules")
        ]
        for name in names:
            if name.endswith(SUFFIXES):
                path = os.path.join(parent, name)
                try:
                    stat = os.stat(path)
                except FileNotFoundError:
                    continue  # an editor is about to put another in its place
                found[path] = stat.st_mtime_ns, stat.st_size
    return found


def changed(folder: str, before: Snapshot) -> Iterator[list[str]]:
    """The files that were changed, added or removed, each time that there are some; never ends."""
    while True:
        time.sleep(LOOK_EVERY_S)
        after = snapshot(folder)
        paths = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
        if paths:
            yield paths
        before = after


def forget_modules(folder: str) -> None:
    """Have every module of the folder imported anew when it is next asked for."""
    inside = os.path.join(os.path.abspath(folder), "")
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        is_inside = isinstance(file, str) and os.path.abspath(file).startswith(inside)
        if is_inside and "site-packages" not in str(file) and name != "__main__":
            del sys.modules[name]
    importlib.invalidate_caches()
