from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from retinue.core.worker.order import FrameOrder


def test_frames_go_at_once_while_none_is_missing() -> None:
    sent: list[bytes] = []
    order = FrameOrder(sent.append)
    order.send(b"0")
    order.reserve()(b"1")
    order.send(b"2")
    assert sent == [b"0", b"1", b"2"]


def test_what_comes_after_a_late_frame_waits_for_it() -> None:
    sent: list[bytes] = []
    order = FrameOrder(sent.append)
    late = order.reserve()
    order.send(b"1")
    order.reserve()(b"2")
    assert sent == []
    late(b"0")
    assert sent == [b"0", b"1", b"2"]
    order.send(b"3")
    assert sent[-1] == b"3"


def test_a_filled_gap_is_sent_where_run_says() -> None:
    sent: list[bytes] = []
    later: list[Callable[[], None]] = []
    order = FrameOrder(sent.append, later.append)
    order.reserve()(b"0")
    order.send(b"1")
    assert sent == []
    for function in later:
        function()
    assert sent == [b"0", b"1"]


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_filling_gives_one_order_of_sending(seed: int) -> None:
    rng = random.Random(seed)
    sent: list[bytes] = []
    order = FrameOrder(sent.append)
    gaps: list[tuple[bytes, Callable[[bytes], None]]] = []
    expected = []
    for index in range(50):
        frame = str(index).encode()
        expected.append(frame)
        if rng.random() < 0.5:
            order.send(frame)
        else:
            gaps.append((frame, order.reserve()))
        if gaps and rng.random() < 0.5:
            frame, fill = gaps.pop(rng.randrange(len(gaps)))
            fill(frame)
    rng.shuffle(gaps)
    for frame, fill in gaps:
        fill(frame)
    assert sent == expected
