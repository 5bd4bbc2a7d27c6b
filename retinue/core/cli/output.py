"""Rows on the terminal: as a table, JSON or YAML.

Lives here: the three forms. Does not: which rows. `rich` is imported only where a table is drawn on a
terminal; into a pipe goes plain text that `cut` and `awk` can read.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

FORMATS = ("table", "json", "yaml")

# Text that YAML would read as something else without quotes, or that needs them.
_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./ -]*[A-Za-z0-9_./]|[A-Za-z_]")
_RESERVED = {"true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan", "inf"}


def to_json(value: Any) -> str:
    return json.dumps(value, indent=2, default=str)


def to_yaml(value: Any, indent: int = 0) -> str:
    """Plain lists, dicts and scalars as YAML; what is not surely plain text is quoted."""
    pad = " " * indent
    if isinstance(value, Mapping) and value:
        lines = [f"{pad}{_scalar(str(key))}:{_below(item, indent + 2)}" for key, item in value.items()]
        return "\n".join(lines)
    if isinstance(value, list | tuple) and value:
        return "\n".join(f"{pad}- {to_yaml(item, indent + 2).lstrip()}" for item in value)
    return pad + _scalar(value)


def _below(item: Any, indent: int) -> str:
    is_nested = isinstance(item, Mapping | list | tuple) and len(item) > 0
    return "\n" + to_yaml(item, indent) if is_nested else " " + _scalar(item)


def _scalar(value: Any) -> str:
    if value is None or isinstance(value, bool | int):
        return json.dumps(value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, list | tuple):
        return "[]"
    text = str(value)
    return text if _PLAIN.fullmatch(text) and text.lower() not in _RESERVED else _quoted(text)


def _float(value: float) -> str:
    if not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    mantissa, exponent, power = repr(value).partition("e")
    # YAML 1.1 reads 1e+16 as text: a number has a point.
    return (mantissa if "." in mantissa else mantissa + ".0") + exponent + power


def _quoted(text: str) -> str:
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


def cell(value: Any) -> str:
    """One value in a table.

    >>> cell({"CPU": 2.0, "GPU": 0.5})
    'CPU: 2, GPU: 0.5'
    """
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {cell(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(cell(item) for item in value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str = "", file: TextIO | None = None
) -> None:
    """A table; rows of a pipe are lines with two spaces between columns."""
    file = file or sys.stdout
    cells = [[cell(value) for value in row] for row in rows]
    if not file.isatty():
        _print_plain(columns, cells, title, file)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for line in cells:
        table.add_row(*(Text(text) for text in line))
    Console(file=file).print(table)


def _print_plain(columns: Sequence[str], cells: Sequence[Sequence[str]], title: str, file: TextIO) -> None:
    lines = [
        [name.upper() for name in columns],
        *([text.replace("\n", " ") for text in row] for row in cells),
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    if title:
        print(title, file=file)
    for line in lines:
        padded = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        print("  ".join(padded).rstrip(), file=file)


def print_rows(rows: Sequence[Mapping[str, Any]], format: str, *, columns: Sequence[str], empty: str) -> None:
    """Rows in one of FORMATS; a table has these columns."""
    if format == "json":
        print(to_json([dict(row) for row in rows]))
    elif format == "yaml":
        print(to_yaml([dict(row) for row in rows]))
    elif rows:
        print_table(columns, [[row.get(name) for name in columns] for row in rows])
    else:
        print(empty)
