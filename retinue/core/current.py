"""The runtime that this process uses, and starting one on first use.

Lives here: one variable and its access. Does not: how a driver connects (`driver`).
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retinue.core.client.runtime import Runtime

_runtime: Runtime | None = None
_pid = 0
_lock = threading.Lock()
_auto_init: Callable[[], object] | None = None
# Sets `_auto_init` when it is imported, which a script that never names `init` does not do before.
_DRIVER = "retinue.core.driver"


def set_runtime(runtime: Runtime | None) -> None:
    global _runtime, _pid
    _runtime = runtime
    _pid = os.getpid()


def set_auto_init(function: Callable[[], object]) -> None:
    """What to call when the API is used before `init()`."""
    global _auto_init
    _auto_init = function


def runtime_or_none() -> Runtime | None:
    """The process's runtime, if it has one; a child forked by user code has none."""
    if _runtime is not None and _pid == os.getpid():
        return _runtime
    return None


def get_runtime() -> Runtime:
    """The process's runtime; the first use starts a cluster, as `init()` without arguments does."""
    runtime = _runtime
    if runtime is not None:
        return runtime
    with _lock:
        if _runtime is None:
            if _auto_init is None:
                importlib.import_module(_DRIVER)
            assert _auto_init is not None
            _auto_init()
    assert _runtime is not None
    return _runtime
