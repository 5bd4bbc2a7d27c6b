"""Which rows there are, which figures each gives, and what is aimed at.

Lives here: names, units, targets. The functions that measure are in `traffic`, `machine` and `living`; each
registers itself with `@row`, and `selection` imports them all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from servebench.peers import Peer
from servebench.processes import Server


@dataclass(frozen=True)
class Target:
    """What Retinue's figure must reach: a multiple of a peer's, at most so much above a peer's, or a bound.

    The direction of a bound is the figure's: a maximum where less is better.
    """

    bound: float
    peer: str = ""  # "" for a plain bound
    is_difference: bool = False

    def is_met(self, value: float, of_peer: float | None, *, is_less_better: bool) -> bool | None:
        """None if the peer was not measured."""
        if not self.peer:
            return value <= self.bound if is_less_better else value >= self.bound
        if of_peer is None:
            return None
        if self.is_difference:
            return value - of_peer <= self.bound
        return value <= self.bound * of_peer if is_less_better else value >= self.bound * of_peer

    def __str__(self) -> str:
        if not self.peer:
            return f"{self.bound:g}"
        return f"{self.peer} + {self.bound:g}" if self.is_difference else f"{self.bound:g}x {self.peer}"


@dataclass(frozen=True)
class Figure:
    name: str
    title: str
    unit: str = "/s"
    targets: tuple[Target, ...] = ()
    is_less_better: bool = False


@dataclass(frozen=True)
class Setting:
    """What a row may know about the run."""

    peer: Peer
    server: Server | None  # None for rows that start their own
    folder: Path
    seconds: float
    is_quick: bool = False

    @property
    def served(self) -> Server:
        assert self.server is not None
        return self.server


Figures = dict[str, float]
RowFunction = Callable[[Setting], Figures]


@dataclass(frozen=True)
class Row:
    name: str
    work: str  # "" if it starts its own server, which only Retinue has
    run: RowFunction
    figures: tuple[Figure, ...]

    def can_run_on(self, peer: Peer) -> bool:
        return self.work in peer.works if self.work else peer.name == "retinue"


ROWS: dict[str, Row] = {}


def row(work: str, *figures: Figure) -> Callable[[RowFunction], RowFunction]:
    def register(run: RowFunction) -> RowFunction:
        ROWS[run.__name__] = Row(run.__name__, work, run, figures)
        return run

    return register


def at_least(ratio: float, peer: str) -> Target:
    return Target(ratio, peer)


def over(difference: float, peer: str) -> Target:
    return Target(difference, peer, is_difference=True)


def less(name: str, title: str, unit: str, *targets: Target) -> Figure:
    return Figure(name, title, unit, targets, is_less_better=True)


def more(name: str, title: str, unit: str, *targets: Target) -> Figure:
    return Figure(name, title, unit, targets)


def titles(rows: Sequence[Row]) -> str:
    return "\n".join(f"{row.name:22} {row.figures[0].title}" for row in rows)
