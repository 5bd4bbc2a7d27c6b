"""What a bar says about itself, and the line of output in which a worker says it to the driver."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, get_type_hints

MAGIC = "__retinue_tqdm_magic_token__"

_TOKEN_KEY = "__magic_token__"


@dataclass(frozen=True, slots=True)
class BarState:
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


_TYPES = get_type_hints(BarState)


def encode(state: BarState) -> str:
    """Return the state as one line of output, newline included."""
    return json.dumps({_TOKEN_KEY: MAGIC, **asdict(state)}) + "\n"


def decode(line: str) -> BarState | None:
    """Return the state that a line of worker output carries; None for a line that is ordinary output."""
    if MAGIC not in line:
        return None
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    return from_fields(fields)


def from_fields(fields: Any) -> BarState | None:
    """Return the state in a decoded line; None if it is anything else."""
    if not isinstance(fields, dict) or fields.get(_TOKEN_KEY) != MAGIC:
        return None
    values: dict[str, Any] = {name: fields.get(name) for name in _TYPES}
    if not all(_fits(values[name], expected) for name, expected in _TYPES.items()):
        return None
    return BarState(**values)


def _fits(value: Any, expected: Any) -> bool:
    # A float may arrive as an int; a bool is an int to Python, and to nobody else.
    if isinstance(value, bool):
        return expected is bool
    return isinstance(value, expected) or (isinstance(value, int) and isinstance(0.0, expected))
