"""Say things once, however often the code that says them runs."""

from __future__ import annotations

import time

PERIOD_S = 60.0

_seen: set[str] = set()
_is_disabled = False
_is_periodic = False
_last_new_s = 0.0


def log_once(key: str) -> bool:
    """Return True the first time this process asks for `key`, else False.

    if log_once("slow-disk"):
        logger.warning("the spill folder is on a slow disk")
    """
    global _last_new_s
    if _is_disabled:
        return False
    if key not in _seen:
        _seen.add(key)
        _last_new_s = time.monotonic()
        return True
    if _is_periodic and time.monotonic() - _last_new_s > PERIOD_S:
        _seen.clear()
        _last_new_s = time.monotonic()
    return False


def disable_log_once_globally() -> None:
    """Make `log_once` return False in this process from now on."""
    global _is_disabled
    _is_disabled = True


def enable_periodic_logging() -> None:
    """Make `log_once` forget what it has seen about once a minute, so that messages come again."""
    global _is_periodic
    _is_periodic = True


def reset_log_once(key: str | None = None) -> None:
    """Forget that `key` was seen, or everything without one."""
    if key is None:
        _seen.clear()
    else:
        _seen.discard(key)
