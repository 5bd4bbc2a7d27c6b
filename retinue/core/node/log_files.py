"""The log files of a node, for whoever asks for them: which there are, and parts of them.

Lives here: names and bytes. Does not: following workers' output for drivers (`logs`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

MAX_PART_BYTES = 128 * 1024


def list_files(folders: Iterable[str]) -> list[dict[str, Any]]:
    """Name and size of each file, by name; one in a folder below as "serve/controller.log"."""
    found = {}
    for folder in folders:
        for name in _names(folder):
            try:
                found[name] = os.stat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                pass  # removed just now
    return [{"file": name, "size": size} for name, size in sorted(found.items())]


def find_file(folders: Iterable[str], name: str) -> str:
    """The path of the file; a name that leads out of the folders is no file. Raises FileNotFoundError."""
    if name and not os.path.isabs(name) and not {"", ".", ".."} & set(name.split("/")):
        for folder in folders:
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                return path
    raise FileNotFoundError(f"there is no log file {name!r} on this node")


def read_part(path: str, offset: int, max_bytes: int = MAX_PART_BYTES) -> dict[str, Any]:
    """At most `max_bytes` from `offset` (negative: from the end), where they begin, and the file's size."""
    max_bytes = min(max_bytes, MAX_PART_BYTES)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        begin = max(0, size + offset) if offset < 0 else offset
        file.seek(begin)
        data = file.read(max_bytes)
    return {"file": os.path.basename(path), "data": data, "offset": begin, "size": size}


def _names(folder: str) -> list[str]:
    return [
        os.path.relpath(os.path.join(parent, name), folder)
        for parent, _, names in os.walk(folder)
        for name in names
        if os.path.isfile(os.path.join(parent, name))
    ]
