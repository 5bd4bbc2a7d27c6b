"""Run the sides in turn, each in a process of its own, with the floor measured before and after.

Lives here: processes, environments, temporary folders. Does not: what the rows do, how figures are shown.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from corebench import floor
from corebench.catalogue import Row


@dataclass(frozen=True)
class Side:
    """A module to measure, the interpreter that has it, and what goes before its command (a profiler)."""

    module: str
    python: str
    prefix: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pace:
    seconds: float
    divisor: int
    row_timeout_s: float


@dataclass
class Results:
    """What all rounds measured: a value per side, figure and round, the errors, every floor reading."""

    values: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    errors: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    floor: list[float] = field(default_factory=list)


def run_rounds(sides: Sequence[Side], rows: Sequence[Row], rounds: int, pace: Pace) -> Results:
    """Measure every side once a round, the first one of a round last in the next."""
    results = Results()
    results.floor.append(floor.measure())
    for number in range(rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            progress(f"round {number + 1} of {rounds}: {side.module}")
            for line in run_side(side, rows, pace):
                _record(line, side.module, results)
            results.floor.append(floor.measure())
    return results


def run_side(side: Side, rows: Sequence[Row], pace: Pace) -> Iterator[dict]:
    """Start a side; yield its report line by line, with an error for each row owed if it ends early."""
    owed = [row.name for row in rows]
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        reader, writer = os.pipe()
        command = [
            *side.prefix, side.python, "-m", "corebench.side", side.module,
            "--rows", ",".join(owed), "--report-to", str(writer),
            "--seconds", str(pace.seconds), "--divisor", str(pace.divisor),
            "--row-timeout", str(pace.row_timeout_s),
        ]  # fmt: skip
        with (
            open(Path(folder, "output.log"), "w+") as log,
            os.fdopen(reader) as report,
            _child(command, env=_environment(folder), log=log, descriptor=writer) as process,
        ):
            for text in report:
                line = json.loads(text)
                if "done" in line:
                    break
                owed.remove(line["row"])
                yield line
            status = process.wait()
            log.seek(0)
            last_words = log.read()[-4000:]
    if status != 0 or owed:
        progress(last_words)
    for name in owed:
        yield {"row": name, "error": f"the {side.module} process ended with status {status}"}


@contextlib.contextmanager
def _child(command: Sequence[str], env: dict[str, str], log, descriptor: int) -> Iterator[subprocess.Popen]:
    """Run a command that alone holds `descriptor`; end it when we leave early."""
    try:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[descriptor]
        )
    finally:
        os.close(descriptor)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def _environment(folder: str) -> dict[str, str]:
    """Let a side import this package and, from the checkout, `retinue`; keep its files in `folder`."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(floor.LOADTESTS), str(floor.LOADTESTS.parent)]),
        "RETINUE_TEMP_DIR": folder,
        "RAY_TMPDIR": folder,
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _record(line: dict, module: str, results: Results) -> None:
    if "error" in line:
        results.errors[module][line["row"]] = line["error"]
        progress(f"  {line['row']}: {line['error']}")
        return
    for name, value in line["figures"].items():
        results.values[module][name].append(value)
        progress(f"  {name}: {value:,.5g}")


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
