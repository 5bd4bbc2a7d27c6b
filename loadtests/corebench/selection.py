"""All rows in the order of the report, and the choice among them by name."""

from collections.abc import Sequence

from corebench import calls, clusters, objects, tasks
from corebench.catalogue import ROWS, Row

MODULES = [module.__name__ for module in (calls, tasks, objects, clusters)]


def choose(patterns: Sequence[str]) -> list[Row]:
    """Return the rows that a pattern names exactly, or else those whose name contains it; all without any."""
    if unknown := [p for p in patterns if not any(p in name for name in ROWS)]:
        raise ValueError(f"no row's name contains {', '.join(unknown)}; there are {', '.join(ROWS)}")
    rows = sorted(ROWS.values(), key=lambda row: MODULES.index(row.run.__module__))
    return [row for row in rows if not patterns or any(_matches(p, row.name) for p in patterns)]


def _matches(pattern: str, name: str) -> bool:
    return pattern == name if pattern in ROWS else pattern in name
