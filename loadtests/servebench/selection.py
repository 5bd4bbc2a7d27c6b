"""All rows in the order of the report, and the choice among rows and peers by name."""

from collections.abc import Sequence

from servebench import living, machine, traffic
from servebench.catalogue import ROWS, Row
from servebench.peers import PEERS, Peer

MODULES = [module.__name__ for module in (traffic, machine, living)]


def choose_rows(patterns: Sequence[str]) -> list[Row]:
    """The rows that a pattern names exactly, or else those whose name contains it; all without any."""
    if unknown := [p for p in patterns if not any(p in name for name in ROWS)]:
        raise ValueError(f"no row's name contains {', '.join(unknown)}; there are {', '.join(ROWS)}")
    rows = sorted(ROWS.values(), key=lambda row: MODULES.index(row.run.__module__))
    return [
        row
        for row in rows
        if not patterns or any(p == row.name if p in ROWS else p in row.name for p in patterns)
    ]


def choose_peers(names: Sequence[str]) -> list[Peer]:
    if unknown := [name for name in names if name not in PEERS]:
        raise ValueError(f"no peer {', '.join(unknown)}; there are {', '.join(PEERS)}")
    return [peer for name, peer in PEERS.items() if not names or name in names]
