"""Measure serving: Retinue, Ray Serve, LitServe, mosec, BentoML and bare uvicorn, in turn.

    python loadtests/compare.py --install                     make the peers' environments
    python loadtests/compare.py                               all rows on all peers, three rounds
    python loadtests/compare.py --rows echo --only retinue,uvicorn --rounds 1
    python loadtests/compare.py --rows stream --json run.json --append     add to what run.json holds
    python loadtests/compare.py --from run.json --docs        only print, and write docs/benchmarks.md

`docs/benchmarks.md` says what the rows do. Exit status 1: a row failed; a missed target is none.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from servebench import catalogue, plots, processes, report, rounds
from servebench.catalogue import Row
from servebench.peers import PEERS, ROOT, Peer
from servebench.rounds import Results
from servebench.selection import choose_peers, choose_rows

DOCUMENT = ROOT / "docs" / "benchmarks.md"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    processes.end_in_order_when_told()
    try:
        rows = choose_rows(_names(options.rows))
        peers = choose_peers(_names(options.only))
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        print(catalogue.titles(rows))
        return 0
    if options.install:
        for peer in peers:
            rounds.progress(f"installing {peer.title}")
            peer.install(with_embedding=options.with_embedding)
        return 0
    results = _read(options.source) if options.source else _measure(parser, options, peers, rows)
    print(report.table(rows, results))
    if options.json:
        if options.append and options.json.exists():
            results = _read(options.json).followed_by(results)
        options.json.write_text(json.dumps(report.record(rows, results), indent=1) + "\n")
    if options.docs:
        DOCUMENT.write_text(report.insert(DOCUMENT.read_text(), report.markdown(rows, results)))
    if options.plots:
        for path in plots.write(rows, results, options.plots):
            rounds.progress(f"wrote {path}")
    return 1 if any(results.errors.values()) else 0


def _measure(
    parser: argparse.ArgumentParser, options: argparse.Namespace, peers: Sequence[Peer], rows: Sequence[Row]
) -> Results:
    if missing := [peer.name for peer in peers if not peer.is_installed]:
        parser.error(f"not installed: {', '.join(missing)}; `compare.py --install` does it, `--only` without")
    return rounds.run_rounds(peers, rows, options.rounds, options.seconds, is_quick=options.quick)


def _read(path: Path) -> Results:
    results = Results()
    results.add(json.loads(path.read_text()))
    return results


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--rows", default="", help="names or parts of names, with commas; all when empty")
    add("--only", default="", help=f"peers, with commas, of {', '.join(PEERS)}; all when empty")
    add("--rounds", type=int, default=3, help="how often each peer runs")
    add("--seconds", type=float, default=4, help="measured time of a load")
    add("--quick", action="store_true", help="shorten what has a length of its own, such as the overload")
    add("--json", type=Path, help="write all figures, every round's too, to this file")
    add("--append", action="store_true", help="add to the figures that the file has already")
    add("--from", dest="source", type=Path, help="measure nothing, read such a file")
    add("--docs", action="store_true", help="write the table into docs/benchmarks.md")
    add("--plots", type=Path, metavar="FOLDER", help="write a plot for each figure that several peers have")
    add("--install", action="store_true", help="make the peers' environments and end")
    add("--with-embedding", action="store_true", help="install torch and the embedding model in them too")
    add("--list", action="store_true", help="print the rows and end")
    return parser


if __name__ == "__main__":
    sys.exit(main())
