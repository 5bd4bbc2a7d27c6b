"""`retinue microbenchmark`: a quick look at this machine's speed. `loadtests/core.py` measures thoroughly."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import click

from retinue.core import api, driver
from retinue.core.cli.options import format_option
from retinue.core.cli.output import print_table, to_json, to_yaml

BATCH = 1_000
SMALL = b"x" * 100


def rate(run: Callable[[], int], *, seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """How often a second: `run` does some and says how many, again and again, after once to warm up."""
    run()
    begin = clock()
    done = 0
    while (spent := clock() - begin) < seconds or done == 0:
        done += run()
    return done / spent if spent > 0 else 0.0


def _nothing() -> None:
    """The smallest task."""


class _Nobody:
    def nothing(self) -> None:
        """The smallest call."""


def rows() -> dict[str, Callable[[], int]]:
    """What is measured, by name, in the cluster that this process is connected to."""

    nothing = api.remote(_nothing)
    actor = api.remote(_Nobody).remote()

    def task_sync() -> int:
        api.get(nothing.remote())
        return 1

    def tasks_async() -> int:
        api.get([nothing.remote() for _ in range(BATCH)])
        return BATCH

    def call_sync() -> int:
        api.get(actor.nothing.remote())
        return 1

    def calls_async() -> int:
        api.get([actor.nothing.remote() for _ in range(BATCH)])
        return BATCH

    def put_small() -> int:
        for _ in range(BATCH):
            api.put(SMALL)
        return BATCH

    kept = api.put(SMALL)

    def get_small() -> int:
        for _ in range(BATCH):
            api.get(kept)
        return BATCH

    return {
        "tasks, one after the other": task_sync,
        f"tasks, {BATCH} at once": tasks_async,
        "actor calls, one after the other": call_sync,
        f"actor calls, {BATCH} at once": calls_async,
        "small puts": put_small,
        "small gets": get_small,
    }


@click.command(short_help="How fast this machine is.")
@click.option(
    "--address", default="local", show_default=True, help="A running cluster, or a new one of its own."
)
@click.option("--seconds", type=float, default=1.0, show_default=True, help="For each row.")
@format_option
def microbenchmark(address: str, seconds: float, format_: str) -> None:
    """Measure tasks, actor calls, puts and gets on this machine, about a second each."""
    with driver.init(
        address, logging_level="WARNING", num_cpus=os.cpu_count() if address == "local" else None
    ):
        found = {name: rate(run, seconds=seconds) for name, run in rows().items()}
    if format_ == "table":
        print_table(["what", "a second"], [[name, f"{value:,.0f}"] for name, value in found.items()])
    else:
        click.echo(to_json(found) if format_ == "json" else to_yaml(found))
