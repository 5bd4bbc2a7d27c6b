"""Descriptors that a process forked by the user's code must not inherit.

`multiprocessing` children of a driver would otherwise keep lifelines and session locks open, and so the
driver's cluster alive, after the driver itself is gone.
"""

from __future__ import annotations

import os

_close_in_child: set[int] = set()


def close_in_forks(fd: int) -> None:
    """Close `fd` in every child that is forked from now on. `forget` it before closing it here."""
    _close_in_child.add(fd)


def forget(fd: int) -> None:
    _close_in_child.discard(fd)


def _after_fork() -> None:
    for fd in _close_in_child:
        try:
            os.close(fd)
        except OSError:
            pass
    _close_in_child.clear()


os.register_at_fork(after_in_child=_after_fork)
