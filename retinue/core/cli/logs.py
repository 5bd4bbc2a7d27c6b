"""`retinue logs`: the output of actors, workers and tasks, and the logs of the nodes themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from retinue.core.admin import log_reader
from retinue.core.admin.ask import Asker
from retinue.core.admin.log_reader import LogFile
from retinue.core.cli.options import OneLineErrors, asking
from retinue.core.wire.messages import NodeInfo

DEFAULT_TAIL = 1000
_NAMES = ("actor", "worker", "task", "cluster")


class LogCommands(OneLineErrors):
    """A first word that is no command is a file's name: `retinue logs head.log`. None lists the files."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["cluster"])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in _NAMES:
            args = ["cluster", *args]
        return super().resolve_command(ctx, args)


def _reading(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--follow", "-f", is_flag=True, help="Go on with what is added."),
        click.option(
            "--tail", type=int, default=DEFAULT_TAIL, show_default=True, help="Last lines; -1 for all."
        ),
        click.option("--interval", type=float, default=0.5, help="Seconds between looks, with --follow."),
    ):
        command = option(command)
    return asking(command)


_err = click.option("--err", is_flag=True, help="Standard error instead of standard output.")
_node = click.option("--node-id", help="On which node; by default the head's.")


def _suffix(err: bool) -> str:
    return "err" if err else "out"


def show(asker: Asker, file: LogFile, *, tail: int, follow: bool, interval: float) -> None:
    """Print the file; Ctrl-C ends following."""
    parts = log_reader.read_file(asker, file, tail=tail, follow=follow, interval_s=interval, errors="replace")
    try:
        for part in parts:
            click.echo(part, nl=False)
    except KeyboardInterrupt:
        parts.close()


@click.group(cls=LogCommands, short_help="Output and log files.")
def logs() -> None:
    """Show what actors, workers and tasks print, and the cluster's own log files."""


@logs.command()
@click.option("--id", "-a", "actor_id", required=True, help="The actor's id.")
@_err
@_reading
def actor(actor_id: str, err: bool, asker: Asker, **how: Any) -> None:
    """The output of an actor's process."""
    show(asker, log_reader.file_of_actor(asker, actor_id, _suffix(err)), **how)


@logs.command()
@click.option("--pid", type=int, required=True, help="The worker's process id.")
@_node
@_err
@_reading
def worker(pid: int, node_id: str | None, err: bool, asker: Asker, **how: Any) -> None:
    """The output of a worker."""
    node = log_reader.choose_node(asker, node_id, None) if node_id is not None else None
    show(asker, log_reader.file_of_pid(asker, pid, _suffix(err), node), **how)


@logs.command()
@click.option("--id", "task_id", required=True, help="The task's id.")
@click.option("--attempt-number", "-a", type=int, default=0, show_default=True)
@_err
@_reading
def task(task_id: str, attempt_number: int, err: bool, asker: Asker, **how: Any) -> None:
    """The output of the worker that ran a task, its other tasks' lines included."""
    show(asker, log_reader.file_of_task(asker, task_id, attempt_number, _suffix(err)), **how)


@logs.command()
@click.argument("glob", default="*")
@_node
@_reading
def cluster(glob: str, node_id: str | None, asker: Asker, **how: Any) -> None:
    """A node's log file by its name; a pattern that fits several lists them."""
    node = log_reader.choose_node(asker, node_id, None)
    groups = log_reader.list_files(asker, node, glob)
    names = [name for group in groups.values() for name in group]
    if len(names) == 1:
        show(asker, LogFile(node, {"file": names[0]}), **how)
        return
    if not names:
        raise click.ClickException(f"node {node.node_id.hex()[:12]} has no log file that fits {glob!r}")
    _print_names(node, groups)


def _print_names(node: NodeInfo, groups: dict[str, list[str]]) -> None:
    click.echo(f"Log files of node {node.node_id.hex()[:12]}:")
    for group, names in sorted(groups.items()):
        click.echo(f"{group}:")
        for name in names:
            click.echo(f"  {name}")
