"""The table that a run prints, its Markdown, and the record of it. Arithmetic and layout only."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from servebench.catalogue import Figure, Row
from servebench.peers import PEERS
from servebench.rounds import Results

BEGIN = "<!-- serve figures: begin (written by loadtests/compare.py --docs) -->"
END = "<!-- serve figures: end -->"


@dataclass(frozen=True)
class Outcome:
    """One figure over all rounds: medians by peer."""

    figure: Figure
    medians: dict[str, float]

    @property
    def retinue(self) -> float | None:
        return self.medians.get("retinue")

    def verdicts(self) -> list[tuple[str, bool | None]]:
        """Each target, and whether it is met; None if it could not be judged."""
        if self.retinue is None:
            return [(str(target), None) for target in self.figure.targets]
        return [
            (
                str(target),
                target.is_met(
                    self.retinue, self.medians.get(target.peer), is_less_better=self.figure.is_less_better
                ),
            )
            for target in self.figure.targets
        ]


def outcomes(rows: Sequence[Row], results: Results) -> Iterator[Outcome]:
    for row in rows:
        for figure in row.figures:
            medians = {
                peer: statistics.median(values[figure.name])
                for peer, values in results.values.items()
                if values.get(figure.name)
            }
            if medians:
                yield Outcome(figure, medians)


def table(rows: Sequence[Row], results: Results) -> str:
    """For a terminal: a column for each peer measured, then targets."""
    lines = [list(line) for line in _lines(rows, results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    last = len(widths) - 1
    text = [
        "  ".join(
            cell.ljust(width) if column in (0, 1, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    text += [
        f"{peer} {row}: {error}" for peer, errors in results.errors.items() for row, error in errors.items()
    ]
    return "\n".join(text)


def markdown(rows: Sequence[Row], results: Results) -> str:
    heading, *lines = _lines(rows, results)
    text = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    text += ["| " + " | ".join(cell.strip() for cell in line) + " |" for line in lines]
    text += ["", "Versions: " + "; ".join(_version(peer, v) for peer, v in results.versions.items()) + "."]
    if results.errors:
        failed = [f"{peer} {row}" for peer, errors in results.errors.items() for row in errors]
        text += ["", f"Failed: {', '.join(failed)}."]
    return "\n".join(text)


def insert(document: str, section: str) -> str:
    """The document with what is between its markers replaced. ValueError if it has none."""
    if BEGIN not in document or END not in document:
        raise ValueError(f"the document has no lines {BEGIN!r} and {END!r}")
    before, rest = document.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


def record(rows: Sequence[Row], results: Results) -> dict[str, Any]:
    """Everything measured, and how each target stands."""
    return {
        **results.to_json(),
        "figures": {
            outcome.figure.name: {
                "title": outcome.figure.title.strip(),
                "unit": outcome.figure.unit,
                "medians": outcome.medians,
                "targets": [{"target": t, "is_met": met} for t, met in outcome.verdicts()],
            }
            for outcome in outcomes(rows, results)
        },
    }


def _lines(rows: Sequence[Row], results: Results) -> Iterator[list[str]]:
    found = list(outcomes(rows, results))
    peers = [name for name in PEERS if any(name in outcome.medians for outcome in found)]
    yield ["figure", "unit", *(PEERS[name].title for name in peers), "wanted of Retinue", "met"]
    for outcome in found:
        verdicts = outcome.verdicts()
        sign = "<= " if outcome.figure.is_less_better else ">= "
        yield [
            outcome.figure.title,
            outcome.figure.unit,
            *(number(outcome.medians.get(name)) for name in peers),
            ", ".join(sign + target for target, _ in verdicts),
            ", ".join({True: "yes", False: "NO", None: "?"}[met] for _, met in verdicts),
        ]


def number(value: float | None) -> str:
    if value is None:
        return ""
    if not math.isfinite(value):
        return "never"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _version(peer: str, versions: dict[str, str]) -> str:
    return f"{PEERS[peer].title}: " + ", ".join(f"{name} {version}" for name, version in versions.items())
