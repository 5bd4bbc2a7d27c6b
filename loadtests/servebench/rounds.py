"""Run rows: peers in turn, round by round, each work of each peer on a server of its own.

Lives here: the order, and what became of each row. Does not: tables, files.
"""

import sys
import traceback
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from servebench.catalogue import Row, Setting
from servebench.peers import Folder, Peer
from servebench.ready import ServerFailedError, served


@dataclass
class Results:
    """Each figure's value of every round, by peer; errors by peer and row; versions by peer."""

    values: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    errors: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    versions: dict[str, dict[str, str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"values": self.values, "errors": self.errors, "versions": self.versions}

    def add(self, record: dict[str, Any]) -> None:
        """Take in what `to_json` gave of another run, so that a run can be made in pieces."""
        for peer, figures in record["values"].items():
            for name, values in figures.items():
                self.values[peer][name].extend(values)
        for peer, errors in record["errors"].items():
            self.errors[peer].update(errors)
        self.versions.update(record["versions"])

    def followed_by(self, later: "Results") -> "Results":
        """This one with what was measured later behind it."""
        self.add(later.to_json())
        return self


def run_rounds(
    peers: Sequence[Peer], rows: Sequence[Row], rounds: int, seconds: float, *, is_quick: bool = False
) -> Results:
    """The first peer of a round is the last of the next."""
    results = Results()
    for peer in peers:
        results.versions[peer.name] = peer.versions()
    for number in range(rounds):
        for peer in peers if number % 2 == 0 else reversed(peers):
            progress(f"round {number + 1} of {rounds}: {peer.title}")
            for work in dict.fromkeys(row.work for row in rows if row.can_run_on(peer)):
                mine = [row for row in rows if row.work == work and row.can_run_on(peer)]
                _run_work(peer, work, mine, seconds, is_quick, results)
    return results


def _run_work(
    peer: Peer, work: str, rows: Sequence[Row], seconds: float, is_quick: bool, results: Results
) -> None:
    with Folder() as folder:
        if not work:
            for row in rows:
                _run_row(row, Setting(peer, None, folder, seconds, is_quick), results)
            return
        try:
            with served(peer, work, folder) as server:
                for row in rows:
                    _run_row(row, Setting(peer, server, folder, seconds, is_quick), results)
        except ServerFailedError as error:
            for row in rows:
                results.errors[peer.name][row.name] = str(error).splitlines()[0]
            progress(f"  {work}: {error}")


def _run_row(row: Row, setting: Setting, results: Results) -> None:
    name = setting.peer.name
    try:
        figures = row.run(setting)
    except Exception as error:  # noqa: BLE001  (a row that fails is a result; the others still run)
        traceback.print_exc()
        results.errors[name][row.name] = f"{type(error).__name__}: {error}"
        return
    for figure, value in figures.items():
        results.values[name][figure].append(value)
        progress(f"  {figure}: {value:,.5g}")


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
