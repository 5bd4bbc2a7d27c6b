from __future__ import annotations

import dis
import struct
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.core.wire import messages as m
from retinue.core.wire.framing import MAX_ACCEPTED_BYTES, FrameDecoder, ProtocolError, encode

MESSAGES = st.one_of(
    st.builds(m.Ok, rid=st.integers(0, 2**31), value=st.integers(0, 2**31)),
    st.builds(m.HandBack, task_ids=st.lists(st.binary(max_size=30), max_size=5)),
    st.builds(m.Failure, rid=st.integers(0, 9), kind=st.text(max_size=5), message=st.text(max_size=20)),
    st.builds(
        m.Call,
        task_id=st.binary(min_size=24, max_size=24),
        target=st.binary(max_size=16),
        method=st.text(max_size=10),
        num_returns=st.integers(0, 3),
        args_size=st.integers(0, 10),
        options=st.none() | st.builds(m.CallOptions, name=st.text(max_size=5)),
    ),
)
FRAMES = st.lists(st.tuples(MESSAGES, st.binary(max_size=200)), max_size=12)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    chunks = []
    for size in sizes:
        chunks.append(data[:size])
        data = data[size:]
    return [c for c in (*chunks, data) if c]


@given(FRAMES, st.lists(st.integers(1, 60), max_size=60))
def test_any_chunking_gives_the_same_messages(frames, sizes):
    decoder = FrameDecoder()
    found = []
    for chunk in cut(b"".join(encode(*f) for f in frames), sizes):
        decoder.feed(chunk)
        found += decoder.frames()
    assert found == frames
    assert list(decoder.frames()) == []


@given(FRAMES.filter(bool), st.lists(st.integers(1, 60), max_size=20), st.data())
def test_an_interrupted_handler_sees_its_frame_again_and_loses_none(frames, sizes, data):
    decoder = FrameDecoder()
    handled: list[Any] = []

    def drain() -> None:
        for frame in decoder.frames():
            if data.draw(st.booleans()):
                raise KeyboardInterrupt
            handled.append(frame)

    def drain_until_done() -> None:
        while True:
            try:
                drain()
            except KeyboardInterrupt:
                continue
            return

    for chunk in cut(b"".join(encode(*f) for f in frames), sizes):
        if data.draw(st.booleans()):
            drain_until_done()
        decoder.feed(chunk)
    drain_until_done()
    assert handled == frames


def test_long_frame_comes_out_of_many_chunks_in_one_piece():
    payload = bytes(range(256)) * 4096
    data = encode(m.Ok(1), payload) + encode(m.Ok(2))
    decoder = FrameDecoder()
    found = []
    for start in range(0, len(data), 1000):
        decoder.feed(data[start : start + 1000])
        found += decoder.frames()
    assert [message.rid for message, _ in found] == [1, 2]
    assert found[0][1] == payload
    assert type(found[0][1]) is bytes


@given(st.binary(max_size=300), st.lists(st.integers(1, 60), max_size=8))
def test_bytes_that_are_not_ours_raise_protocol_error_and_nothing_else(garbage, sizes):
    decoder = FrameDecoder()
    try:
        for chunk in cut(garbage, sizes):
            decoder.feed(chunk)
            list(decoder.frames())
    except ProtocolError:
        with pytest.raises(ProtocolError):
            list(decoder.frames())  # it stays broken


@given(st.binary(max_size=80), st.integers(0, 100))
def test_a_header_of_garbage_raises_protocol_error_and_nothing_else(header, extra):
    decoder = FrameDecoder()
    decoder.feed(struct.pack("<II", 4 + len(header) + extra, len(header)) + header + b"x" * extra)
    try:
        list(decoder.frames())
    except ProtocolError:
        pass


@pytest.mark.parametrize(
    ("size", "header_size"), [(MAX_ACCEPTED_BYTES + 1, 8), (2**32 - 1, 0), (0, 0), (3, 0), (10, 7)]
)
def test_impossible_lengths_are_refused_before_their_bytes_come(size, header_size):
    decoder = FrameDecoder()
    decoder.feed(struct.pack("<II", size, header_size))
    with pytest.raises(ProtocolError, match="not our protocol"):
        list(decoder.frames())


def test_frames_before_a_broken_one_are_delivered():
    decoder = FrameDecoder()
    decoder.feed(encode(m.Ok(1)) + b"\0" * 8)
    frames = decoder.frames()
    assert next(frames)[0] == m.Ok(1)
    with pytest.raises(ProtocolError):
        next(frames)


def test_every_message_has_a_tag_of_its_own():
    tags = [cls.__struct_config__.tag for cls in m.all_messages()]
    assert len(tags) == len(set(tags))


def test_older_reader_ignores_fields_that_a_newer_process_appended():
    # Messages are arrays: a field more at the end is skipped, a field less takes its default.
    newer = struct.pack("<II", 4 + 5, 5) + b"\x94\x02\x07\x00\xc3"
    older = struct.pack("<II", 4 + 3, 3) + b"\x92\x02\x07"
    decoder = FrameDecoder()
    decoder.feed(newer + older)
    assert [message for message, _ in decoder.frames()] == [m.Ok(7), m.Ok(7)]


CHECKED = {"CALL", "CALL_FUNCTION_EX", "PRECALL", "RESUME", "JUMP_BACKWARD", "CALL_KW"}


class Interrupter:
    """Raises KeyboardInterrupt in one function where CPython looks at signals: behind its n-th call."""

    def __init__(self, code: CodeType, moment: int) -> None:
        self._code = code
        self._names = {i.offset: i.opname for i in dis.get_instructions(code)}
        self._left = moment
        self._last = ""
        self.has_raised = False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code is not self._code:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            last, self._last = self._last, self._names[frame.f_lasti]
            if last in CHECKED:
                self._left -= 1
                if self._left == 0:
                    self.has_raised = True
                    raise KeyboardInterrupt
        return self


def interrupted(function: Callable[..., None], moment: int, *args: Any) -> bool:
    interrupter = Interrupter(function.__code__, moment)
    outer = sys.gettrace()
    sys.settrace(interrupter)
    try:
        function(*args)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(outer)
    return interrupter.has_raised


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="names of instructions as of 3.11 and 3.12")
@pytest.mark.parametrize("size", [3, 11, 40, 1000])
def test_feed_that_is_interrupted_has_taken_nothing(size):
    frames = [(m.Ok(i), bytes(50 * i)) for i in range(8)]
    data = b"".join(encode(*f) for f in frames)
    for moment in range(1, 30):
        decoder = FrameDecoder()
        found = []
        any_interrupt = False
        for start in range(0, len(data), size):
            chunk = data[start : start + size]
            if interrupted(FrameDecoder.feed, moment, decoder, chunk):
                any_interrupt = True
                decoder.feed(chunk)  # as the connection does: the chunk is still in its inbox
            found += decoder.frames()
        assert found == frames
        if not any_interrupt:
            break
    assert moment > 1
