"""What a bar says about itself, and the line of output in which a worker says it to the driver."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

MAGIC: Final = "__retinue_tqdm_magic_token__"


class BarState(msgspec.Struct, frozen=True, kw_only=True):
    """The whole state of one bar: a later state replaces an earlier one, so that a lost line costs delay."""

    uuid: str
    ip: str
    pid: int
    pos: int
    desc: str
    x: float
    total: float | None
    unit: str
    closed: bool
    # Tells such a line from ordinary output; under Ray's name for the field.
    token: Literal["__retinue_tqdm_magic_token__"] = msgspec.field(default=MAGIC, name="__magic_token__")


def encode(state: BarState) -> str:
    """Return the state as one line of output, newline included."""
    return msgspec.json.encode(state).decode() + "\n"


def decode(line: str) -> BarState | None:
    """Return the state that a line of worker output carries; None for a line that is ordinary output."""
    if MAGIC not in line:
        return None
    try:
        return msgspec.json.decode(line, type=BarState)
    except msgspec.DecodeError:
        return None


def from_fields(fields: Any) -> BarState | None:
    """Return the state in a line that is decoded already; None if it is anything else."""
    try:
        return msgspec.convert(fields, BarState) if MAGIC in fields.values() else None
    except msgspec.ValidationError:
        return None
