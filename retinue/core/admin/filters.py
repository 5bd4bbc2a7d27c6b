"""Choose among rows: filters as (key, "=" or "!=", value), and a limit. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retinue.core.admin.schemas import StateSchema

Filter = tuple[str, str, Any]
Row = dict[str, Any]

DEFAULT_LIMIT = 100
MAX_LIMIT = 10_000
_TRUE, _FALSE = ("true", "1"), ("false", "0")


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows asked for; `found` says how many matched before the limit."""

    rows: list[Row]
    found: int


def parse_filter(text: str) -> Filter:
    """Read `key=value` or `key!=value`. Raises ValueError for anything else.

    >>> parse_filter("state!=DEAD")
    ('state', '!=', 'DEAD')
    """
    key, sign, value = text.partition("=")
    operator = "="
    if key.endswith("!"):
        key, operator = key[:-1], "!="
    key = key.strip()
    if not (sign and key and value):
        raise ValueError(f"a filter is key=value or key!=value, got {text!r}")
    return key, operator, value


def checked_filters(filters: Sequence[Filter] | None, schema: type[StateSchema]) -> list[Filter]:
    """The filters with keys in lower case. Raises ValueError for what the schema cannot be filtered by."""
    checked = []
    for given in filters or ():
        if len(given) != 3:
            raise ValueError(f"a filter is (key, '=' or '!=', value), got {given!r}")
        key, operator, value = given
        if operator not in ("=", "!="):
            raise ValueError(f"a filter compares by '=' or '!=', not by {operator!r}")
        key = str(key).lower()
        possible = schema.filterable_columns()
        if key not in possible:
            raise ValueError(
                f"{key!r} is not a column to filter by; these are: {', '.join(sorted(possible))}"
            )
        checked.append((key, operator, value))
    return checked


def select(rows: Sequence[Row], filters: Sequence[Filter], *, limit: int) -> Selection:
    """The first `limit` of the rows that all filters match. Raises ValueError for a bad value or limit."""
    if limit < 0 or limit > MAX_LIMIT:
        raise ValueError(f"the limit is between 0 and {MAX_LIMIT}, got {limit}")
    found = [row for row in rows if all(matches(row, condition) for condition in filters)]
    return Selection(found[:limit], len(found))


def matches(row: Row, condition: Filter) -> bool:
    """Text is compared without regard to case; text for a column of numbers or flags is read as one."""
    key, operator, wanted = condition
    value = row.get(key)
    return (_is_equal(key, value, wanted)) is (operator == "=")


def _is_equal(key: str, value: Any, wanted: Any) -> bool:
    if not isinstance(wanted, str):
        return bool(value == wanted)
    if isinstance(value, str):
        return value.lower() == wanted.lower()
    if isinstance(value, bool):
        return value is _flag(key, wanted)
    if isinstance(value, int | float):
        return float(value) == _number(key, wanted)
    return bool(value == wanted)


def _flag(key: str, text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(f"{key} is true or false, got {text!r}")


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{key} is a number, got {text!r}") from None


def without_details(row: Row, schema: type[StateSchema], *, detail: bool) -> StateSchema:
    """The row as an object; columns of the details are None unless asked for, unknown ones as well."""
    shown = set(schema.list_columns(detail=detail))
    return schema(**{name: row.get(name) if name in shown else None for name in schema.list_columns()})
