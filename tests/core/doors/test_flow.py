"""Windows, items from pieces, and clocks: pure."""

import random

import pytest

from retinue.core.doors.errors import DoorBodyTooLargeError
from retinue.core.doors.flow import WINDOW_BYTES, WINDOW_ITEMS, ClockOffset, Inbox, SendWindow
from retinue.core.wire.framing import ProtocolError

PIECE = 100_000


def test_pieces_become_one_item() -> None:
    inbox = Inbox()
    inbox.part(b"a")
    inbox.part(b"b")
    inbox.item(b"c")
    inbox.item(b"d")
    assert inbox.take_all() == [b"abc", b"d"]


def test_a_joined_frame_is_cut_again() -> None:
    inbox = Inbox()
    inbox.items([1, 0, 2], b"abb")
    assert inbox.take_all() == [b"a", b"", b"bb"]


def test_an_item_above_the_limit_is_refused() -> None:
    inbox = Inbox(max_item_bytes=10)
    inbox.part(bytes(10))
    with pytest.raises(DoorBodyTooLargeError):
        inbox.part(b"x")


def test_more_items_than_the_window_break_the_protocol() -> None:
    inbox = Inbox(window_items=2)
    inbox.items([1, 1], b"ab")
    with pytest.raises(ProtocolError):
        inbox.item(b"c")


@pytest.mark.parametrize("seed", range(20))
def test_credit_never_runs_dry_and_never_exceeds_the_window(seed: int) -> None:
    rng = random.Random(seed)
    print(f"seed {seed}")
    window, inbox = SendWindow(WINDOW_ITEMS), Inbox()
    sizes = [rng.choice([0, 1, 1000, PIECE, 5 * PIECE, 60 * PIECE, 130 * PIECE]) for _ in range(300)]
    left = [(size, size) for size in sizes]  # (of the item, still to be sent)
    taken: list[int] = []
    while len(taken) < len(sizes):
        progress = False
        if left and window.has_room() and rng.random() < 0.7:
            size, rest = left[0]
            piece = min(rest, PIECE)
            window.bytes_left -= piece
            progress = True
            if rest > PIECE:
                inbox.part(bytes(piece))
                left[0] = (size, rest - piece)
            else:
                window.items_left -= 1
                inbox.item(bytes(piece))
                left.pop(0)
        if inbox.ready and rng.random() < 0.5:
            taken.append(len(inbox.take()))
            progress = True
        credit = inbox.credit()
        if credit is not None:
            window.granted(*credit)
        assert window.items_left <= WINDOW_ITEMS
        assert window.bytes_left <= WINDOW_BYTES
        if not progress:
            assert inbox.ready or (left and window.has_room()), "nobody may go on"
    assert taken == sizes


def test_the_quickest_of_the_last_samples_tells_the_clock() -> None:
    clock = ClockOffset()
    clock.sample(sent=10.0, received=14.0, theirs=112.0)  # slow, and wrong by up to 2
    assert clock.offset_s == 100.0
    clock.sample(sent=20.0, received=20.5, theirs=121.25)
    assert clock.offset_s == 101.0
    clock.sample(sent=30.0, received=39.0, theirs=99.0)
    assert clock.offset_s == 101.0
    for _ in range(8):
        clock.sample(sent=40.0, received=41.0, theirs=142.5)
    assert clock.offset_s == 102.0
