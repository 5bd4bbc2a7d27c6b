"""Which rows there are, which figures each gives, and what is aimed at.

Lives here: names, units and targets. The functions that run are in `calls`, `tasks`, `objects` and
`clusters`; each registers itself with `@row`, and `selection` imports them all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from corebench.stopwatch import Stopwatch


@dataclass(frozen=True)
class Figure:
    """One number of a row. Targets are minimums where more is better, and maximums where less is."""

    name: str
    title: str
    unit: str = "/s"
    target_ratio: float | None = None  # against Ray in the same run
    target_share: float | None = None  # of the floor in the same run
    limit: float | None = None  # in the figure's own unit
    is_less_better: bool = False

    @property
    def is_call_rate(self) -> bool:
        """Whether the floor, a number of round trips per second, says something about this figure."""
        return self.unit == "/s"


@dataclass(frozen=True)
class Setting:
    """What a row may know about the run it is part of."""

    side: str  # "retinue" or "ray"
    stopwatch: Stopwatch
    divisor: int = 1  # batches are divided by this: above one in a quick look

    def batch(self, size: int) -> int:
        return max(1, size // self.divisor)


Figures = dict[str, float]
RowFunction = Callable[[ModuleType, Setting], float | Figures]


@dataclass(frozen=True)
class Row:
    name: str
    run: RowFunction
    figures: tuple[Figure, ...]
    starts_cluster: bool  # True: calls init and shutdown itself

    def measure(self, ray: ModuleType, setting: Setting) -> Figures:
        result = self.run(ray, setting)
        return result if isinstance(result, dict) else {self.figures[0].name: result}


ROWS: dict[str, Row] = {}


def row(*figures: Figure, starts_cluster: bool = False) -> Callable[[RowFunction], RowFunction]:
    """Register a function as a row of its name; a single figure without a name gets that name too."""

    def register(run: RowFunction) -> RowFunction:
        name = run.__name__
        ROWS[name] = Row(name, run, figures, starts_cluster)
        return run

    return register


def rate(name: str, title: str, ratio: float | None = None, share: float | None = None) -> Figure:
    return Figure(name, title, target_ratio=ratio, target_share=share)
