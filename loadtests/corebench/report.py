"""The table that a run prints, and the record that it writes: medians, ratios, shares, targets met or missed.

Lives here: arithmetic and layout. Does not: processes, files.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from corebench.catalogue import Figure, Row
from corebench.rounds import Results

HEADINGS = ("figure", "unit", "Retinue", "Ray", "ratio", "target", "of floor", "target", "limit", "")


@dataclass(frozen=True)
class Outcome:
    """One figure over all rounds, as medians."""

    figure: Figure
    retinue: float | None
    ray: float | None
    floor: float

    @property
    def ratio(self) -> float | None:
        """How many times better than Ray: above one is better, whichever direction the unit has."""
        if not self.retinue or not self.ray:
            return None
        return self.ray / self.retinue if self.figure.is_less_better else self.retinue / self.ray

    @property
    def share(self) -> float | None:
        return self.retinue / self.floor if self.retinue and self.figure.is_call_rate else None

    @property
    def shortfalls(self) -> list[str]:
        """Name each target that was measured and missed."""
        figure = self.figure
        missed = []
        if self.ratio is not None and figure.target_ratio and self.ratio < figure.target_ratio:
            missed.append("ratio")
        if self.share is not None and figure.target_share and self.share < figure.target_share:
            missed.append("share")
        if self.retinue is not None and figure.limit is not None:
            within = self.retinue <= figure.limit if figure.is_less_better else self.retinue >= figure.limit
            missed += [] if within else ["limit"]
        return missed


def outcomes(rows: Sequence[Row], results: Results) -> Iterator[Outcome]:
    floor = statistics.median(results.floor)
    for row in rows:
        for figure in row.figures:
            yield Outcome(figure, _median(results, "retinue", figure), _median(results, "ray", figure), floor)


def table(rows: Sequence[Row], results: Results) -> str:
    lines = [HEADINGS, *(_cells(outcome) for outcome in outcomes(rows, results))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    text = ["  ".join(_aligned(line, widths)).rstrip() for line in lines]
    low, high = min(results.floor), max(results.floor)
    floor = statistics.median(results.floor)
    text.append(f"\nfloor: {floor:,.0f} msgpack round trips/s ({low:,.0f} to {high:,.0f})")
    for side, errors in results.errors.items():
        text += [f"{side} {name}: {error}" for name, error in errors.items()]
    return "\n".join(text)


def markdown(rows: Sequence[Row], results: Results) -> str:
    """Return the rows that both sides have, as the table of the README."""
    lines = ["| row | unit | Retinue | Ray | ratio |", "|---|---|---|---|---|"]
    for outcome in outcomes(rows, results):
        if outcome.ratio is not None:
            title, unit, retinue, ray, ratio = _cells(outcome)[:5]
            lines.append(f"| {title.strip()} | {unit} | {retinue} | {ray} | {ratio} |")
    return "\n".join(lines)


def record(rows: Sequence[Row], results: Results) -> dict:
    """Return everything measured, each round's value too, in a form that JSON can hold."""
    return {
        "floor": results.floor,
        "errors": results.errors,
        "figures": {
            outcome.figure.name: {
                "unit": outcome.figure.unit,
                "retinue": results.values["retinue"].get(outcome.figure.name, []),
                "ray": results.values["ray"].get(outcome.figure.name, []),
                "ratio": outcome.ratio,
                "target_ratio": outcome.figure.target_ratio,
                "share": outcome.share,
                "target_share": outcome.figure.target_share,
                "limit": outcome.figure.limit,
                "shortfalls": outcome.shortfalls,
            }
            for outcome in outcomes(rows, results)
        },
    }


def _median(results: Results, side: str, figure: Figure) -> float | None:
    values = results.values[side].get(figure.name)
    return statistics.median(values) if values else None


def _cells(outcome: Outcome) -> tuple[str, ...]:
    figure = outcome.figure
    sign = "<=" if figure.is_less_better else ">="
    return (
        figure.title,
        figure.unit,
        _number(outcome.retinue),
        _number(outcome.ray),
        _number(outcome.ratio, "x"),
        _number(figure.target_ratio, "x"),
        _number(outcome.share),
        _number(figure.target_share),
        f"{sign} {figure.limit:g}" if figure.limit is not None else "",
        f"short: {', '.join(outcome.shortfalls)}" if outcome.shortfalls else "",
    )


def _number(value: float | None, suffix: str = "") -> str:
    if value is None:
        return ""
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text + suffix


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Text columns to the left, numbers to the right."""
    return [
        cell.ljust(width) if column in (0, 1, len(widths) - 1) else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
