"""One side of a comparison, in a process of its own: run rows on one module, report each as a line.

    python -m corebench.side ray --rows actor_sync,put_small --report-to 5

Lines are JSON: {"row": name, "figures": {...}} or {"row": name, "error": text}, and {"done": true} at last.
"""

import argparse
import contextlib
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from types import ModuleType
from typing import TextIO

from corebench.catalogue import Row, Setting
from corebench.kit import start
from corebench.selection import choose
from corebench.stopwatch import Stopwatch


def main() -> None:
    options = _options()
    os.set_inheritable(options.report_to, False)  # or a process that outlives this one keeps the pipe open
    ray = importlib.import_module(options.module)
    setting = Setting(options.module, Stopwatch(options.seconds), options.divisor)
    rows = choose(options.rows.split(","))
    with os.fdopen(options.report_to, "w", buffering=1) as report:
        shared = [row for row in rows if not row.starts_cluster]
        if shared:
            start(ray)
            for row in shared:
                _report(row, ray, setting, options.row_timeout, report)
            ray.shutdown()
        for row in rows:
            if row.starts_cluster:
                _report(row, ray, setting, options.row_timeout, report)
        print(json.dumps({"done": True}), file=report)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module", choices=["retinue", "ray"])
    parser.add_argument("--rows", required=True)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--divisor", type=int, default=1)
    parser.add_argument("--row-timeout", type=float, default=180)
    parser.add_argument("--report-to", type=int, default=sys.stdout.fileno())
    return parser.parse_args()


def _report(row: Row, ray: ModuleType, setting: Setting, timeout_s: float, report: TextIO) -> None:
    try:
        with _time_limit(timeout_s):
            line = {"row": row.name, "figures": row.measure(ray, setting)}
    except Exception as error:  # noqa: BLE001  (a row that fails is a result; the others still run)
        traceback.print_exc()
        line = {"row": row.name, "error": f"{type(error).__name__}: {error}"}
    print(json.dumps(line), file=report)


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after `seconds`, whatever native code made of it on the way out."""
    message = f"row took longer than {seconds:g} s"
    is_late = False

    def too_late(*_: object) -> None:
        nonlocal is_late
        is_late = True
        raise TimeoutError(message)

    previous = signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Exception as error:
        if is_late:
            raise TimeoutError(message) from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


if __name__ == "__main__":
    main()
