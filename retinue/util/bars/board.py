"""Decide which bars are on the screen and in which row. Pure.

The bars of one process are neighbours, in the order in which the processes came; a bar that closes makes
those below move up. States come in, drawing instructions go out; `manager` carries them out.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from retinue.util.bars.wire import BarState


class Open(Struct, frozen=True):
    uuid: str
    row: int
    desc: str
    x: float
    total: float | None
    unit: str


class Change(Struct, frozen=True):
    uuid: str
    desc: str
    x: float
    total: float | None


class Move(Struct, frozen=True):
    uuid: str
    row: int


class Close(Struct, frozen=True):
    uuid: str


Instruction = Open | Change | Move | Close
Process = tuple[str, int]  # ip and pid


class _Bar(Struct):
    state: BarState
    slot: int  # the row within the rows of its process
    row: int


class Board:
    """The bars of all processes, as the driver at `ip` and `pid` sees them."""

    def __init__(self, *, ip: str, pid: int) -> None:
        self._ip = ip
        self._pid = pid
        self._bars: dict[Process, dict[str, _Bar]] = {}

    @property
    def is_empty(self) -> bool:
        """Say whether no bar is open."""
        return not self._bars

    def state_received(self, state: BarState) -> list[Instruction]:
        """Take in what a bar says about itself: a new bar opens, and one that says so closes."""
        bar = self._bars.get((state.ip, state.pid), {}).get(state.uuid)
        if bar is None:
            instructions = self._open(state)
        else:
            bar.state = state
            instructions = [Change(state.uuid, self._desc(state), state.x, state.total)]
        if state.closed:
            instructions += self._close(state)
        return instructions

    def process_ended(self, ip: str, pid: int) -> list[Instruction]:
        """Close what a process left open."""
        instructions: list[Instruction] = [Close(uuid) for uuid in self._bars.pop((ip, pid), {})]
        return instructions + self._move_up()

    def _open(self, state: BarState) -> list[Instruction]:
        process = self._bars.setdefault((state.ip, state.pid), {})
        taken = {bar.slot for bar in process.values()}
        slot = state.pos if state.pos not in taken else min(set(range(len(taken) + 1)) - taken)
        bar = _Bar(state, slot, row=-1)
        process[state.uuid] = bar
        moves = [move for move in self._move_up() if move.uuid != state.uuid]
        return [*moves, Open(state.uuid, bar.row, self._desc(state), state.x, state.total, state.unit)]

    def _close(self, state: BarState) -> list[Instruction]:
        process = self._bars[state.ip, state.pid]
        del process[state.uuid]
        if not process:
            del self._bars[state.ip, state.pid]
        return [Close(state.uuid), *self._move_up()]

    def _move_up(self) -> list[Move]:
        moves = []
        for bar, row in self._layout():
            if bar.row != row:
                bar.row = row
                moves.append(Move(bar.state.uuid, row))
        return moves

    def _layout(self) -> Iterator[tuple[_Bar, int]]:
        offset = 0
        for process in self._bars.values():
            for bar in process.values():
                yield bar, offset + bar.slot
            offset += 1 + max(bar.slot for bar in process.values())

    def _desc(self, state: BarState) -> str:
        if (state.ip, state.pid) == (self._ip, self._pid):
            return state.desc
        where = f"pid={state.pid}" if state.ip == self._ip else f"pid={state.pid}, ip={state.ip}"
        return f"({where}) {state.desc}"

    def check_invariants(self) -> None:
        rows = [bar.row for process in self._bars.values() for bar in process.values()]
        assert len(rows) == len(set(rows)), "two bars share a row"
        assert all(self._bars.values()), "a process without bars is kept"
        assert all(bar.row == row for bar, row in self._layout()), "a bar is not where it belongs"
