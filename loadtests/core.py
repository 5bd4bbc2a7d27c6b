"""Measure tasks, actors and objects: Retinue and Ray in turn, and the bare message round trip under both.

    python loadtests/core.py                              all rows, three rounds
    python loadtests/core.py --rows actor,put_small       rows whose name contains one of these
    python loadtests/core.py --only retinue --quick       a first look at one side, batches a tenth
    python loadtests/core.py --profile tasks_async        one row under py-spy, into results/

`docs/benchmarks.md` says what the rows do. Exit status 1: a row failed; a missed target is none.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from corebench import report, rounds
from corebench.catalogue import Row
from corebench.selection import choose

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        rows = choose([p for p in options.rows.split(",") if p])
        if options.profile:
            return profile(choose([options.profile]), options)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        print(listing(rows))
        return 0
    sides = _sides(options)
    if missing := [side for side in sides if not Path(side.python).exists()]:
        parser.error(f"no {missing[0].python}: `make bench` installs it, `--only` does without")
    results = rounds.run_rounds(sides, rows, options.rounds, _pace(options))
    print(report.markdown(rows, results) if options.markdown else report.table(rows, results))
    if options.json:
        options.json.write_text(json.dumps(report.record(rows, results), indent=1) + "\n")
    return 1 if any(results.errors.values()) else 0


def profile(rows: Sequence[Row], options: argparse.Namespace) -> int:
    """Run the rows on one side under py-spy; say where the profile lies."""
    side = options.only or "retinue"
    suffix = "svg" if options.format == "flamegraph" else "speedscope.json"
    target = ROOT / "results" / f"{options.profile}-{side}.{suffix}"
    target.parent.mkdir(exist_ok=True)
    spy = ["py-spy", "record", "--subprocesses", "--rate", "500", "--format", options.format]
    spy += ["--output", str(target), *(["--native"] if options.native else []), "--"]
    (only,) = _sides(options, side)
    beside = Path(sys.executable).parent / "py-spy"
    prefix = [str(beside) if beside.exists() else "py-spy", *spy[1:]]
    failed = False
    for line in rounds.run_side(rounds.Side(only.module, only.python, tuple(prefix)), rows, _pace(options)):
        failed |= "error" in line
        print(json.dumps(line))
    print(f"profile: {target}")
    return int(failed or not target.exists())


def listing(rows: Sequence[Row]) -> str:
    return "\n".join(f"{row.name:24} {row.figures[0].title.strip()}" for row in rows)


def _sides(options: argparse.Namespace, only: str | None = None) -> list[rounds.Side]:
    sides = [rounds.Side("retinue", options.python), rounds.Side("ray", options.ray_python)]
    wanted = only or options.only
    return [side for side in sides if wanted in (None, side.module)]


def _pace(options: argparse.Namespace) -> rounds.Pace:
    return rounds.Pace(options.seconds, 10 if options.quick else 1, options.row_timeout)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--rows", default="", help="names or parts of names, with commas; all when empty")
    add("--rounds", type=int, default=3, help="how often each side runs")
    add("--seconds", type=float, default=1.5, help="measured time per row and round")
    add("--row-timeout", type=float, default=180, help="seconds after which a row has failed")
    add("--quick", action="store_true", help="divide the sizes of batches and arrays by ten")
    add("--only", choices=["retinue", "ray"], help="measure one side")
    add("--json", type=Path, help="write all figures, every round's too, to this file")
    add("--markdown", action="store_true", help="print only what both sides have, as a Markdown table")
    add("--list", action="store_true", help="print the rows and end")
    add("--profile", metavar="ROW", help="run one row under py-spy instead (on Retinue, or see --only)")
    add("--format", choices=["speedscope", "flamegraph"], default="speedscope", help="of the profile")
    add("--native", action="store_true", help="show C frames in the profile too")
    add("--python", default=sys.executable, help="the interpreter for Retinue")
    add(
        "--ray-python",
        default=str(ROOT / ".venv-ray" / "bin" / "python"),
        help="the interpreter that has Ray",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
