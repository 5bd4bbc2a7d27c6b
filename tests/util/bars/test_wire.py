from __future__ import annotations

import json

import msgspec
import pytest

from retinue.util.bars.wire import MAGIC, BarState, decode, encode, from_fields

STATE = BarState(
    uuid="u", ip="10.0.0.1", pid=7, pos=0, desc="epoch\n1", x=3, total=None, unit="it", closed=False
)


def test_a_state_survives_its_line() -> None:
    line = encode(STATE)
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert decode(line) == STATE
    assert decode(encode(msgspec.structs.replace(STATE, x=0.5, total=10))) is not None


@pytest.mark.parametrize(
    "line",
    [
        "ordinary output",
        "",
        MAGIC,
        "{" + MAGIC,
        f'["{MAGIC}"]',
        json.dumps({"__magic_token__": MAGIC}),
        json.dumps({"other": MAGIC}),
        encode(STATE).replace('"pid":7', '"pid":"7"'),
        encode(STATE).replace('"closed":false', '"closed":0'),
        encode(STATE).replace('"pid":7', '"pid":true'),
    ],
)
def test_anything_else_is_ordinary_output(line: str) -> None:
    assert decode(line) is None


def test_fields_of_another_version_are_ignored() -> None:
    assert from_fields({**json.loads(encode(STATE)), "colour": "red"}) == STATE
