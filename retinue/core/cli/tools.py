"""Commands that do something to, or with, a running cluster: timeline, stack, kill-actor."""

from __future__ import annotations

import os
import time
from typing import Any

import click

from retinue.core.admin.ask import Asker
from retinue.core.admin.timeline import cluster_trace, write_trace
from retinue.core.cli.options import asking, say
from retinue.core.wire.messages import ActorInfo, FindActor, KillActor, ListActors


@click.command(short_help="Write a Chrome trace.")
@click.option("--output", "-o", type=click.Path(dir_okay=False), help="The file to write.")
@asking
def timeline(output: str | None, asker: Asker) -> None:
    """Write the finished calls as a Chrome trace (for chrome://tracing or ui.perfetto.dev)."""
    path = output or time.strftime("retinue-timeline-%Y-%m-%d_%H-%M-%S.json")
    events = cluster_trace(asker)
    write_trace(events, path)
    calls = sum(event["ph"] == "X" for event in events)
    click.echo(f"Wrote {calls} calls to {os.path.abspath(path)}.")


@click.command(short_help="What the processes are doing now.")
@click.option("--pid", type=int, help="Only of this process.")
@click.option("--actor-id", help="Only of the process that hosts this actor.")
@click.option("--worker-id", help="Only of this worker or driver.")
@asking
def stack(pid: int | None, actor_id: str | None, worker_id: str | None, asker: Asker) -> None:
    """What every thread of the cluster's workers and drivers is doing now."""
    given = {"pid": str(pid) if pid is not None else None, "actor_id": actor_id, "worker_id": worker_id}
    answers = asker.ask_nodes("stack", {name: value for name, value in given.items() if value is not None})
    for missing in answers.missing:
        say(f"Warning: {missing}")
    shown = 0
    for answer in answers.answers:
        for process in answer.document:
            shown += 1
            name = f" ({process['name']})" if process["name"] else ""
            click.secho(f"{process['kind']} {process['pid']}{name} on node {answer.node_id[:12]}", bold=True)
            click.echo(
                process["answer"] or "  it does not answer: it is stopped, or in a call that never returns"
            )
    if not shown:
        raise click.ClickException("no such process; `retinue list workers` shows which there are")


@click.command("kill-actor")
@click.argument("actor_id", required=False)
@click.option("--name", help="By its name instead of its id.")
@click.option("--namespace", help="Of the name; needed where several namespaces have it.")
@click.option("--no-restart/--restart", default=True, show_default=True, help="Whether it stays dead.")
@asking
def kill_actor(
    actor_id: str | None, name: str | None, namespace: str | None, no_restart: bool, asker: Asker
) -> None:
    """End an actor at once."""
    if (actor_id is None) is (name is None):
        raise click.UsageError("give the actor's id, or --name")
    found = _by_id(asker, actor_id) if actor_id is not None else _by_name(asker, str(name), namespace)
    if found.state == "DEAD":
        raise click.ClickException(f"actor {found.actor_id.hex()} is dead already: {found.death_cause}")
    asker.ask_head(KillActor(0, found.actor_id, no_restart))
    what = "Killed" if no_restart else "Killed, to restart if it may,"
    click.echo(f"{what} actor {found.actor_id.hex()} ({_class_name(found)}).")


def _by_id(asker: Asker, actor_id: str) -> ActorInfo:
    try:
        wanted = bytes.fromhex(actor_id)
    except ValueError:
        raise click.ClickException(f"an actor's id is hexadecimal, got {actor_id!r}") from None
    info: ActorInfo = asker.ask_head(FindActor(0, wanted)).info
    return info


def _by_name(asker: Asker, name: str, namespace: str | None) -> ActorInfo:
    actors = asker.ask_head(ListActors(0, True, namespace)).actors
    found: list[Any] = [a for a in actors if a.spec is not None and a.spec.name == name]
    if not found:
        raise click.ClickException(f"there is no living actor named {name!r}")
    if len(found) > 1:
        spaces = ", ".join(sorted(a.spec.namespace for a in found))
        raise click.ClickException(
            f"several namespaces have an actor named {name!r}: {spaces}; give --namespace"
        )
    info: ActorInfo = found[0]
    return info


def _class_name(info: ActorInfo) -> str:
    return info.spec.class_name if info.spec is not None else "unknown class"
