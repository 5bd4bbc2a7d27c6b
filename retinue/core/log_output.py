"""Workers' output on the driver's terminal: each line with its source.

Lives here: printing. Does not: collecting, folding repeats, limiting the rate (the node agent).
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable

logger = logging.getLogger(__name__)

# Libraries that draw on the terminal (progress bars) take their own lines out of the stream: they add
# themselves when they are imported, which a marked line from a worker brings about.
line_filters: list[Callable[[str, str], bool]] = []
MARKS = {b"__retinue_tqdm_magic_token__": "retinue.experimental.tqdm_ray"}


class LogPrinter:
    """Prints `(source) line`; to stderr what came from stderr."""

    def __init__(self) -> None:
        self._unseen = dict(MARKS)

    def show(self, source: str, text: bytes, *, is_stderr: bool) -> None:
        for mark in [m for m in self._unseen if m in text]:
            importlib.import_module(self._unseen.pop(mark))
        stream = sys.stderr if is_stderr else sys.stdout
        lines = text.decode("utf-8", "replace").splitlines()
        kept = [line for line in lines if not any(_takes(take, source, line) for take in line_filters)]
        if not kept:
            return
        try:
            stream.write("".join(f"({source}) {line}\n" for line in kept))
            stream.flush()
        except (OSError, ValueError):
            pass  # the terminal is gone, or the user closed the stream


def _takes(take: Callable[[str, str], bool], source: str, line: str) -> bool:
    try:
        return take(source, line)
    except Exception:  # drawing runs code of other packages, on the thread that also hears from the node
        logger.exception("a line of output could not be drawn")
        return False
