"""Commands that show what there is: status, list, get, summary, memory."""

from __future__ import annotations

from typing import Any

import click

from retinue.core.admin.ask import Asker
from retinue.core.admin.filters import DEFAULT_LIMIT, parse_filter
from retinue.core.admin.schemas import SCHEMAS, StateSchema, memory
from retinue.core.admin.state import StateReader
from retinue.core.admin.status import ClusterStatus, read_status
from retinue.core.admin.summaries import distinct_bytes, holdings
from retinue.core.cli.options import asking, format_option, reading, say
from retinue.core.cli.output import print_rows, print_table, to_json, to_yaml

RESOURCES = tuple(name.replace("_", "-") for name in SCHEMAS)
GETTABLE = tuple(
    name.removesuffix("s").replace("_", "-") for name, schema in SCHEMAS.items() if schema.id_column
)


@click.command("list", short_help="List actors, tasks, objects, workers, ...")
@click.argument("resource", type=click.Choice(RESOURCES))
@click.option(
    "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Also KEY!=VALUE; all must match."
)
@click.option("--limit", type=int, default=DEFAULT_LIMIT, show_default=True, help="How many rows at most.")
@click.option("--detail", is_flag=True, help="All columns; as YAML unless --format says otherwise.")
@format_option
@click.pass_context
@reading
def list_(
    context: click.Context,
    resource: str,
    filters: tuple[str, ...],
    limit: int,
    detail: bool,
    format_: str,
    reader: StateReader,
) -> None:
    """List actors, tasks, objects, workers, nodes, jobs, ..."""
    name = resource.replace("-", "_")
    schema = SCHEMAS[name]
    conditions = [parse_filter(text) for text in filters]
    listing = reader.listing(
        name, filters=conditions, limit=limit, detail=detail, raise_on_missing_output=False
    )
    is_given = context.get_parameter_source("format_") is click.core.ParameterSource.COMMANDLINE
    format_ = "yaml" if detail and not is_given else format_
    columns = schema.list_columns(detail=detail)
    shown = [{key: row[key] for key in columns} for row in humanified(listing.states, schema, format_)]
    print_rows(shown, format_, columns=columns, empty=f"There are no {resource}.")
    for note in listing.notes:
        say(f"Note: {note}")


def humanified(states: list[Any], schema: type[StateSchema], format_: str) -> list[dict[str, Any]]:
    """Rows for people; tools that read JSON get the plain numbers."""
    rows = [state.asdict() for state in states]
    return rows if format_ == "json" else [schema.humanify(row) for row in rows]


@click.command(short_help="Everything about one of them.")
@click.argument("resource", type=click.Choice((*GETTABLE, *RESOURCES)))
@click.argument("id")
@format_option
@click.pass_context
@reading
def get(context: click.Context, resource: str, id: str, format_: str, reader: StateReader) -> None:
    """Everything about one actor, task, object, worker, node or job (YAML by default)."""
    name = resource.replace("-", "_")
    name = name if name in SCHEMAS else f"{name}s"
    found = reader.get(name, id)
    if not found:
        raise click.ClickException(
            f"there is no {resource} {id}; `retinue list {name}` shows which there are"
        )
    is_given = context.get_parameter_source("format_") is click.core.ParameterSource.COMMANDLINE
    format_ = format_ if is_given else "yaml"
    rows = humanified(found, SCHEMAS[name], format_)
    if format_ == "table":
        columns = SCHEMAS[name].list_columns()
        print_rows(rows, "table", columns=columns, empty="")
        return
    document = rows[0] if len(rows) == 1 else rows
    click.echo(to_json(document) if format_ == "json" else to_yaml(document))


@click.command(short_help="Count tasks, actors or objects.")
@click.argument("resource", type=click.Choice(("tasks", "actors", "objects")))
@format_option
@reading
def summary(resource: str, format_: str, reader: StateReader) -> None:
    """Count tasks by function, actors by class, or objects by call site."""
    cluster = reader.summarize(resource, raise_on_missing_output=False)["cluster"]
    if format_ != "table":
        click.echo(to_json(cluster) if format_ == "json" else to_yaml(cluster))
        return
    groups = cluster.pop("summary")
    by = cluster.pop("summary_by")
    for name, value in cluster.items():
        if name != "callsite_enabled":
            click.echo(f"{name.replace('_', ' ')}: {value:g}")
    if groups:
        columns = [by, *(key for key in next(iter(groups.values())) if key not in _GROUP_NAMES)]
        print_table(columns, [[name, *(group[key] for key in columns[1:])] for name, group in groups.items()])


_GROUP_NAMES = ("func_or_class_name", "class_name")


@click.command(short_help="The nodes and their resources.")
@format_option
@asking
def status(format_: str, asker: Asker) -> None:
    """The nodes, what is used of them, and what waits for resources."""
    found = read_status(asker)
    if format_ != "table":
        click.echo(to_json(found.document()) if format_ == "json" else to_yaml(found.document()))
        return
    _print_status(found)


def _print_status(found: ClusterStatus) -> None:
    alive = sum(not node["state"].startswith("DEAD") for node in found.nodes)
    click.echo(
        f"Cluster {found.cluster_id[:12]}: {alive} nodes alive, {found.actors} actors, {found.jobs} jobs"
    )
    columns = [
        "node",
        "address",
        "state",
        "CPU used",
        "memory",
        "store used",
        "spilled",
        "workers",
        "waiting",
    ]
    print_table(columns, [[node.get(name, "") for name in columns] for node in found.nodes])
    click.echo("\nResources (used / total):")
    print_table(
        ["resource", "used", "total"],
        [[name, used, total] for name, (used, total) in found.resources_for_people().items()],
    )
    if not found.demand:
        click.echo("\nNothing waits for resources.")
        return
    click.echo("\nWaiting for resources:")
    print_table(["needs", "how many"], [[shape, count] for shape, count in found.demand])


@click.command("memory", short_help="Who holds which objects.")
@click.option("--limit", type=int, default=50, show_default=True, help="How many holders at most.")
@format_option
@asking
def memory_(limit: int, format_: str, asker: Asker) -> None:
    """Who holds which objects: by process, call site and kind of reference; and the stores' totals."""
    table = StateReader(asker).table("objects")
    for missing in table.missing:
        say(f"Warning: {missing}")
    found = holdings(table.rows)
    objects, size_bytes = distinct_bytes(table.rows)
    stores = read_status(asker).stores
    if format_ != "table":
        document = {
            "objects": objects,
            "size_bytes": size_bytes,
            "stores": stores,
            "holders": [{name: getattr(held, name) for name in held.__slots__} for held in found[:limit]],
        }
        click.echo(to_json(document) if format_ == "json" else to_yaml(document))
        return
    click.echo(f"{objects} objects, {memory(size_bytes)}")
    if found:
        columns = ["holder", "node", "references", "objects", "size", "call site"]
        rows = [
            [h.holder, h.ip, h.reference_type, h.objects, memory(h.size_bytes), h.call_site]
            for h in found[:limit]
        ]
        print_table(columns, rows)
    if len(found) > limit:
        say(f"Note: {limit} of {len(found)} holders are shown")
    click.echo("\nStores:")
    columns = ["node", "used", "size", "pinned", "spilled", "objects"]
    print_table(columns, [[store["node_id"][:12], *_sizes(store), store["objects"]] for store in stores])


def _sizes(store: dict[str, Any]) -> list[str]:
    return [memory(store[name]) for name in ("used_bytes", "budget_bytes", "pinned_bytes", "on_disk_bytes")]
