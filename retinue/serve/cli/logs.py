"""`serve logs`: what replicas, proxies and the controller log; printed output is in `retinue logs`."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import click

from retinue.serve.cli.options import address_option, find_cluster

DEFAULT_TAIL = 100
FOLDER = "serve/"
LOOK_AGAIN_S = 1.0
COMPONENTS = ("replica", "proxy", "controller")


@dataclass(frozen=True, slots=True)
class Selection:
    """Whose logs: `target` is "", "app", "app#deployment" or a replica's id; `component` of COMPONENTS."""

    target: str = ""
    component: str = ""

    def has(self, name: str) -> bool:
        """Whether the file (its name without folder) is one of them."""
        stem = name.removesuffix(".log")
        if self.component and not stem.startswith(self.component):
            return False
        if not self.target:
            return True
        wanted = "replica_" + "_".join(self.target.split("#"))
        return stem == wanted or stem.startswith(f"{wanted}_")


@dataclass(frozen=True, slots=True)
class File:
    node_id: str
    name: str  # as the node knows it, with its folder

    @property
    def shown(self) -> str:
        return self.name.removeprefix(FOLDER)


@click.command(short_help="Log files of replicas, proxies and the controller.")
@click.argument("target", default="", metavar="[APP[#DEPLOYMENT[#REPLICA]]]")
@click.option(
    "--component", type=click.Choice(COMPONENTS), default=None, help="Only logs of these processes."
)
@click.option("--follow", "-f", is_flag=True, help="Go on with what is added, also by new replicas.")
@click.option(
    "--tail", type=int, default=DEFAULT_TAIL, show_default=True, help="Last lines of each; -1: all."
)
@address_option
def logs(target: str, component: str | None, follow: bool, tail: int, address: str | None) -> None:
    """Show log files: all of serve's, or those of an application's, a deployment's or one replica.

    They hold what is logged. What code prints is on the terminal of `serve run`, and in `retinue logs`.
    """
    selection = Selection(target, component or "")
    cluster = find_cluster(address)
    files = sorted(_find(cluster.address, selection), key=lambda file: file.name)
    if not files and not follow:
        raise click.ClickException(
            f"there are no logs of {target or component}" if target or component else "serve has no logs yet"
        )
    if follow:
        _follow(cluster.address, selection, tail)
        return
    for index, file in enumerate(files):
        if len(files) > 1:
            click.echo(f"{chr(10) if index else ''}==> {file.shown} <==")
        for part in _read(cluster.address, file, tail, follow=False):
            click.echo(part, nl=False)


def _find(address: str, selection: Selection) -> Iterator[File]:
    from retinue.util.state import list_logs, list_nodes

    seen: set[str] = set()
    for node in list_nodes(address, filters=[("state", "=", "ALIVE")]):
        groups = list_logs(address, node_id=node["node_id"], glob_filter=f"{FOLDER}*.log")
        for name in sorted(name for group in groups.values() for name in group):
            # Nodes of one machine share the session's folder.
            if name not in seen and selection.has(name.removeprefix(FOLDER)):
                seen.add(name)
                yield File(node["node_id"], name)


def _read(address: str, file: File, tail: int, *, follow: bool) -> Iterable[Any]:
    from retinue.util.state import get_log

    return get_log(
        address, node_id=file.node_id, filename=file.name, tail=tail, follow=follow, errors="replace"
    )


def _follow(address: str, selection: Selection, tail: int) -> None:
    """Lines of all files as they come, each with its file's name; until Ctrl-C."""
    lines: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()

    def follow(file: File, from_tail: int) -> None:
        rest = ""
        for part in _read(address, file, from_tail, follow=True):
            *whole, rest = (rest + part).split("\n")
            for line in whole:
                lines.put((file.shown, line))

    known: set[str] = set()
    is_first = True
    while True:
        for file in _find(address, selection):
            if file.name not in known:
                known.add(file.name)
                # A file that is new has begun while we looked: all of it is news.
                threading.Thread(target=follow, args=(file, tail if is_first else -1), daemon=True).start()
        is_first = False
        look_again_at = time.monotonic() + LOOK_AGAIN_S
        while (left := look_again_at - time.monotonic()) > 0:
            try:
                name, line = lines.get(timeout=left)
            except queue.Empty:
                break
            click.echo(f"{name} | {line}" if len(known) > 1 else line)
