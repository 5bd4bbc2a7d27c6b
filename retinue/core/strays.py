"""Which worker a process comes from, whatever it has done to its session, its parents and its environment.

A worker marks itself, and by that all that it will start, with a limit which Linux hands on from process to
process and has had no use for since 2.4: the number of file locks. Lives here: the mark, and ending what is
left of a node that was killed. Does not: what a living agent does about it (`node.orphans`).
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator

_RLIMIT_LOCKS = 10
_LIMIT_NAME = b"Max file locks"
_NODE_BYTES = 4  # the part of a node's id that names its folder, too
_WORKER_BITS = 30


def mark_of(node_id: bytes, worker_id: bytes) -> int:
    """What a worker and all that it starts are marked with."""
    worker = int.from_bytes(worker_id[:4], "big") >> 2
    return _node_part(node_id) << _WORKER_BITS | worker


def is_of_node(mark: int, node_id: bytes) -> bool:
    return mark >> _WORKER_BITS == _node_part(node_id)


def _node_part(node_id: bytes) -> int:
    return int.from_bytes(node_id[:_NODE_BYTES], "big")


def mark_this_process(mark: int) -> None:
    """From here on, for this process and those that it starts."""
    try:
        resource.setrlimit(_RLIMIT_LOCKS, (mark, resource.getrlimit(_RLIMIT_LOCKS)[1]))
    except (ValueError, OSError):
        pass  # a system that allows no such limit: what leaves its worker's group ends with the node


def read_mark(pid: int) -> int | None:
    """The mark of a process; None if it has none, or is gone, or another user's."""
    try:
        with open(f"/proc/{pid}/limits", "rb") as file:
            for line in file:
                if line.startswith(_LIMIT_NAME):
                    soft = line[len(_LIMIT_NAME) :].split()[0]
                    return int(soft) if soft.isdigit() else None
    except OSError:
        return None
    return None


def end_strays(node_id: bytes) -> int:
    """Kill every process on this machine that comes from the node's workers; returns how many there were.

    `node_id`: its first four bytes are enough.
    """
    seen: set[int] = {os.getpid()}
    while new := {pid for pid in _pids() if pid not in seen and _is_from(pid, node_id)}:
        for pid in new:
            kill(pid)
        seen |= new  # what they start while they die is found the next time
    return len(seen) - 1


def end_strays_of_folder(name: str) -> None:
    """As `end_strays`, for the node that had the folder `n-<id>`, and has left it."""
    try:
        node_id = bytes.fromhex(name.removeprefix("n-"))
    except ValueError:
        return
    if name.startswith("n-") and len(node_id) == _NODE_BYTES:
        end_strays(node_id)


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _is_from(pid: int, node_id: bytes) -> bool:
    mark = read_mark(pid)
    return mark is not None and is_of_node(mark, node_id)


def _pids() -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdecimal():
            yield int(name)
