"""Draw the bars of a cluster on the driver's terminal or notebook. The only module that uses tqdm.

Importing this module makes the driver's log printer hand over the lines in which workers speak of their
bars. While a bar is open, `print` in this process makes room for the bars first; `RETINUE_TQDM_PATCH_PRINT=0`
turns that off. Without tqdm installed nothing is drawn, and one warning says so.
"""

from __future__ import annotations

import builtins
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from retinue.core import log_output
from retinue.util.bars import wire
from retinue.util.bars.board import Board, Change, Close, Instruction, Move, Open
from retinue.util.debug import log_once
from retinue.util.net import get_node_ip_address

logger = logging.getLogger(__name__)

_print = builtins.print
_lock = threading.Lock()
_manager: BarManager | None = None


def instance() -> BarManager:
    """Return the manager of this process, made on first use."""
    global _manager
    with _lock:
        if _manager is None or _manager.pid != os.getpid():
            _manager = BarManager(ip=get_node_ip_address(), pid=os.getpid(), new_bar=_tqdm_factory())
        return _manager


def draw_line(line: str) -> bool:
    """Draw what a line of worker output says about a bar; False, and nothing done, for any other line."""
    state = wire.decode(line)
    if state is None:
        return False
    instance().draw(state)
    return True


def take_line(source: str, line: str) -> bool:
    """Take a line of worker output from the log printer, if it is about a bar or bars are in its way."""
    if draw_line(line):
        return True
    if _manager is None or not _manager.has_bars:
        return False
    safe_print(f"({source}) {line}")
    return True


def safe_print(*args: Any, **kwargs: Any) -> None:
    """Print as `print` does, and leave the bars below the text whole."""
    if _manager is None or kwargs.get("file") not in (None, sys.stdout, sys.stderr):
        _print(*args, **kwargs)
        return
    _manager.hide_bars()
    try:
        _print(*args, **kwargs)
    finally:
        _manager.unhide_bars()


class BarManager:
    """Carries out what the board decides, on bars that `new_bar` makes (a tqdm class, or its like)."""

    def __init__(self, *, ip: str, pid: int, new_bar: Callable[..., Any] | None) -> None:
        self.pid = pid
        self._new_bar = new_bar
        self._board = Board(ip=ip, pid=pid)
        self._bars: dict[str, Any] = {}
        self._are_hidden = False
        # Reentrant: what tqdm writes may pass through safe_print again.
        self._lock = threading.RLock()

    @property
    def has_bars(self) -> bool:
        """Say whether a bar is on the screen."""
        return bool(self._bars)

    def process_state_update(self, state: dict[str, Any]) -> None:
        """Draw the decoded line of a bar; anything else is ignored."""
        decoded = wire.from_fields(state)
        if decoded is not None:
            self.draw(decoded)

    def draw(self, state: wire.BarState) -> None:
        """Draw what a bar says about itself."""
        with self._lock:
            self._carry_out(self._board.state_received(state))

    def process_ended(self, ip: str, pid: int) -> None:
        """Close the bars of a process that cannot do so any more."""
        with self._lock:
            self._carry_out(self._board.process_ended(ip, pid))

    def hide_bars(self) -> None:
        """Clear the bars from the screen, so that text can be written there."""
        with self._lock:
            if not self._are_hidden:
                self._are_hidden = True
                for bar in self._bars.values():
                    bar.clear()

    def unhide_bars(self) -> None:
        """Draw the hidden bars again."""
        with self._lock:
            if self._are_hidden:
                self._are_hidden = False
                for bar in self._bars.values():
                    bar.refresh()

    def _carry_out(self, instructions: Iterable[Instruction]) -> None:
        if self._new_bar is None:
            return
        for instruction in instructions:
            match instruction:
                case Open():
                    self._open(instruction)
                case Change():
                    self._change(instruction)
                case Move(uuid, row):
                    bar = self._bars[uuid]
                    bar.clear()
                    bar.pos = -row  # as tqdm counts them
                    bar.refresh()
                case Close(uuid):
                    self._bars.pop(uuid).close()
        _patch_print(bool(self._bars))

    def _open(self, new: Open) -> None:
        assert self._new_bar is not None
        self._bars[new.uuid] = self._new_bar(
            desc=new.desc,
            total=new.total,
            unit=new.unit,
            initial=0,
            position=new.row,
            dynamic_ncols=True,
            unit_scale=True,
        )
        if new.x:
            self._bars[new.uuid].update(new.x)

    def _change(self, change: Change) -> None:
        bar = self._bars[change.uuid]
        bar.total = change.total
        bar.set_description(change.desc, refresh=False)
        bar.update(change.x - bar.n)
        bar.refresh()


def _tqdm_factory() -> Callable[..., Any] | None:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        if log_once("retinue.util.bars: no tqdm"):
            logger.warning("progress bars are not drawn: install tqdm (pip install tqdm)")
        return None

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no thread of tqdm's own: the manager refreshes

    return Bar


def _patch_print(has_bars: bool) -> None:
    if os.environ.get("RETINUE_TQDM_PATCH_PRINT", "1") == "0":
        return
    if has_bars and builtins.print is _print:
        builtins.print = safe_print
    elif not has_bars and builtins.print is safe_print:
        builtins.print = _print


log_output.line_filters.append(take_line)
