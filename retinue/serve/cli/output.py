"""What is printed: tables, JSON, YAML. `rich` is imported only where a table is drawn on a terminal."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from enum import Enum
from typing import Any

import click

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def chosen(output: str | None) -> str:
    """What was asked for; else a table for people, and YAML, as Ray Serve prints it, for pipes."""
    return output or ("table" if sys.stdout.isatty() else "yaml")


def show(document: Any, output: str) -> None:
    """As JSON, or as YAML."""
    click.echo(to_json(document) if output == "json" else to_yaml(document), nl=output == "json")


def to_json(document: Any) -> str:
    return json.dumps(plain(document), indent=2, default=str)


def to_yaml(document: Any) -> str:
    """Text of several lines stands as it is, so that tracebacks can be read."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return yaml.dump(plain(document), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


def plain(value: Any) -> Any:
    """Without enums, and text without terminal colours or blanks at its lines' ends (YAML would quote it)."""
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, str):
        text = _ANSI.sub("", value)
        return "\n".join(line.rstrip() for line in text.expandtabs().split("\n")) if "\n" in text else text
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; in a pipe, lines with two spaces between columns."""
    if not sys.stdout.isatty():
        lines = [[name.upper() for name in columns], *([t.replace("\n", " ") for t in row] for row in rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
        for line in lines:
            click.echo("  ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(text, style=_STYLES.get(text, "")) for text in row))
    Console().print(table)


_GOOD, _BAD, _CHANGING = "green", "bold red", "yellow"
_STYLES = {
    "RUNNING": _GOOD,
    "HEALTHY": _GOOD,
    "UNHEALTHY": _BAD,
    "DEPLOY_FAILED": _BAD,
    "DEPLOYING": _CHANGING,
    "UPDATING": _CHANGING,
    "UPSCALING": _CHANGING,
    "DOWNSCALING": _CHANGING,
    "DELETING": _CHANGING,
}
