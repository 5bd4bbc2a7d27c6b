"""What workers leave behind: children of theirs in sessions of their own, which fall to the agent.

A worker's process group is killed with it; a child that has left the group (`start_new_session=True`, a
daemon) is known by its mark (`core.strays`). One whose worker lives is left alone: a daemon's parent ends
early, too. Lives here: finding and killing them. Does not: waiting for them (`spawner`).
"""

from __future__ import annotations

import asyncio
import logging
import os

from retinue.core import strays
from retinue.core.node.zygote import kill_group

logger = logging.getLogger(__name__)


class Orphans:
    """`began` and `ended` for each worker; `look` whenever an unknown child of the agent has ended."""

    def __init__(self, node_id: bytes) -> None:
        self._node_id = node_id
        self._living: set[int] = set()
        self._is_due = False

    def began(self, worker_id: bytes) -> None:
        """It is about to be started."""
        self._living.add(strays.mark_of(self._node_id, worker_id))

    def ended(self, worker_id: bytes) -> None:
        self._living.discard(strays.mark_of(self._node_id, worker_id))
        self.look()

    def look(self) -> None:
        """Soon, and once for all that end together."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._is_due = False
        for pid in children_of(os.getpid()):
            mark = strays.read_mark(pid)
            if mark is not None and mark not in self._living and strays.is_of_node(mark, self._node_id):
                logger.info("process %d is ended: it came from a worker that has ended", pid)
                kill_group(pid)
                strays.kill(pid)  # its end brings us its own children


def children_of(parent: int) -> set[int]:
    """Children of a process, those that have ended and were not waited for included."""
    found: set[int] = set()
    try:
        for thread in os.listdir(f"/proc/{parent}/task"):
            with open(f"/proc/{parent}/task/{thread}/children", "rb") as file:
                found.update(map(int, file.read().split()))
    except OSError:
        return _children_by_parent(parent)  # a kernel without that file
    return found


def _children_by_parent(parent: int) -> set[int]:
    found: set[int] = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                found.add(int(name))
    return found
