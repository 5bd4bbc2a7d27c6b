"""Which bar is drawn in which row."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.util.bars.board import Board, Change, Close, Instruction, Move, Open
from retinue.util.bars.wire import BarState


def state(
    uuid: str, *, pid: int = 1, ip: str = "here", pos: int = 0, x: float = 0, closed: bool = False
) -> BarState:
    return BarState(uuid=uuid, ip=ip, pid=pid, pos=pos, desc="d", x=x, total=9, unit="it", closed=closed)


def opened(uuid: str, row: int, desc: str = "d", x: float = 0) -> Open:
    return Open(uuid, row, desc, x, 9, "it")


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board(ip="here", pid=1)
    yield board
    board.check_invariants()


def test_a_bar_opens_changes_and_closes(board: Board) -> None:
    assert board.state_received(state("a")) == [opened("a", 0)]
    assert board.state_received(state("a", x=4)) == [Change("a", "d", 4, 9)]
    assert board.state_received(state("a", x=9, closed=True)) == [Change("a", "d", 9, 9), Close("a")]
    assert board.is_empty


def test_bars_of_other_processes_say_where_they_are(board: Board) -> None:
    assert board.state_received(state("b", pid=2)) == [opened("b", 0, "(pid=2) d")]
    assert board.state_received(state("c", pid=2, ip="there")) == [opened("c", 1, "(pid=2, ip=there) d")]


def test_bars_of_one_process_are_neighbours(board: Board) -> None:
    board.state_received(state("a", pid=2))
    board.state_received(state("b", pid=3))
    assert board.state_received(state("c", pid=2)) == [Move("b", 2), opened("c", 1, "(pid=2) d")]


def test_a_position_leaves_room_above(board: Board) -> None:
    assert board.state_received(state("a", pos=2)) == [opened("a", 2)]
    assert board.state_received(state("b", pid=2)) == [opened("b", 3, "(pid=2) d")]
    assert board.state_received(state("c", pos=2)) == [opened("c", 0)], "taken: the first free row"


def test_bars_below_a_closed_one_move_up(board: Board) -> None:
    board.state_received(state("a"))
    board.state_received(state("b", pid=2))
    assert board.state_received(state("a", closed=True)) == [Change("a", "d", 0, 9), Close("a"), Move("b", 0)]


def test_a_bar_that_closes_at_once_is_shown_once(board: Board) -> None:
    assert board.state_received(state("a", x=9, closed=True)) == [opened("a", 0, x=9), Close("a")]
    assert board.is_empty


def test_what_a_dead_process_left_is_closed(board: Board) -> None:
    board.state_received(state("a", pid=2))
    board.state_received(state("b", pid=2))
    board.state_received(state("c", pid=3))
    assert board.process_ended("here", 2) == [Close("a"), Close("b"), Move("c", 0)]
    assert board.process_ended("here", 2) == []


@given(
    st.lists(
        st.builds(
            state,
            st.sampled_from("abcdef"),
            pid=st.integers(1, 3),
            pos=st.integers(0, 3),
            closed=st.booleans(),
        ),
        max_size=30,
    )
)
def test_the_screen_always_shows_each_open_bar_in_a_row_of_its_own(states: list[BarState]) -> None:
    board = Board(ip="here", pid=1)
    rows: dict[tuple[int, str], int] = {}

    def carry_out(pid: int, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Open(uuid, row):
                    rows[uuid] = row  # type: ignore[index]
                case Move(uuid, row):
                    assert uuid in rows
                    rows[uuid] = row  # type: ignore[index]
                case Close(uuid):
                    del rows[uuid]  # type: ignore[arg-type]
                case Change(uuid):
                    assert uuid in rows

    for received in states:
        # Bars have ids of their own, whichever process they are in.
        unique = msgspec.structs.replace(received, uuid=f"{received.pid}{received.uuid}")
        carry_out(received.pid, board.state_received(unique))
        board.check_invariants()
        assert len(set(rows.values())) == len(rows)
    assert board.is_empty == (not rows)
