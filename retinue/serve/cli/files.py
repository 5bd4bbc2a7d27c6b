"""Commands about config files: build, validate, schema. They touch no cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from retinue import __version__
from retinue.serve.cli.options import add_to_path, app_dir_option, say
from retinue.serve.cli.output import to_json, to_yaml
from retinue.serve.deployment import Deployment
from retinue.serve.proxy_options import DEFAULT_HTTP_HOST, DEFAULT_HTTP_PORT

_TOP_LEVEL_KEY = re.compile(r"^(?=\w)", re.MULTILINE)


@click.command(short_help="Check a config file; nothing is touched.")
@click.argument("files", nargs=-1, required=True, type=click.Path(dir_okay=False))
def validate(files: tuple[str, ...]) -> None:
    """Check config files: every error with its line and field. Nothing is imported, no cluster is needed."""
    from retinue.serve.schema_file import ConfigFileError, load_config

    is_valid = True
    for file in files:
        try:
            config = load_config(file)
        except ConfigFileError as error:
            is_valid = False
            say("\n".join(error.problems))
            continue
        count = len(config.applications)
        click.echo(f"{file}: valid, {count} application{'' if count == 1 else 's'}")
    if not is_valid:
        raise click.exceptions.Exit(1)


@click.command(short_help="The config file's JSON Schema, for editors.")
@click.option("--output-path", "-o", type=click.Path(dir_okay=False), help="A file instead of the terminal.")
def schema(output_path: str | None) -> None:
    """Print the JSON Schema of config files.

    Editors that know YAML's language server check and complete with this line on top of a config file:

    # yaml-language-server: $schema=serve-config.schema.json
    """
    from retinue.serve.schema import json_schema

    _write(to_json(json_schema()) + "\n", output_path)


@click.command(short_help="Write a config file for applications.")
@click.argument("import_paths", nargs=-1, required=True)
@app_dir_option
@click.option("--output-path", "-o", type=click.Path(dir_okay=False), help="A file instead of the terminal.")
@click.option(
    "--grpc-servicer-functions", multiple=True, help="Import path of an add_..._to_server function."
)
@click.option("--grpc-enable-reflection/--grpc-disable-reflection", default=True, show_default=True)
def build(
    import_paths: tuple[str, ...],
    app_dir: str,
    output_path: str | None,
    grpc_servicer_functions: tuple[str, ...],
    grpc_enable_reflection: bool,
) -> None:
    """Import applications, and write a config file for `serve deploy` with the options that their code sets.

    They are named app1, app2, ...; with several, each has its name as the route prefix.
    """
    from retinue.serve.schema import ServeDeploySchema

    add_to_path(app_dir)
    document: dict[str, Any] = {
        "proxy_location": "EveryNode",
        "http_options": {"host": DEFAULT_HTTP_HOST, "port": DEFAULT_HTTP_PORT},
        "applications": [
            application(path, f"app{index}", "/" if len(import_paths) == 1 else f"/app{index}")
            for index, path in enumerate(import_paths, start=1)
        ],
    }
    if grpc_servicer_functions:
        document["grpc_options"] = {
            "grpc_servicer_functions": list(grpc_servicer_functions),
            "enable_reflection": grpc_enable_reflection,
        }
    ServeDeploySchema.model_validate(document)
    text = _TOP_LEVEL_KEY.sub("\n", to_yaml(document)).lstrip()
    _write(f"# Written by `serve build` of Retinue {__version__}.\n\n{text}", output_path)


def application(import_path: str, name: str, route_prefix: str) -> dict[str, Any]:
    """An application's part of a config file: its deployments with the options that the code sets."""
    from retinue.serve.build import Graph, import_application

    graph = Graph(name, lambda deployment, app: None)
    graph.add(import_application(import_path))
    deployments = [{"name": node.name, **written(node.deployment)} for node in graph.nodes]
    return {
        "name": name,
        "route_prefix": route_prefix,
        "import_path": import_path,
        "runtime_env": {},
        "deployments": deployments,
    }


def written(deployment: Deployment) -> dict[str, Any]:
    """The options that the code sets, as a config file says them: those that differ from the defaults."""
    default = Deployment(_nothing, {"name": "default"})
    options = _changed(deployment.config.model_dump(mode="json"), default.config.model_dump(mode="json"))
    actor = _changed(deployment.ray_actor_options, default.ray_actor_options)
    if "autoscaling_config" in options:
        options.pop("num_replicas", None)
        options["autoscaling_config"] = deployment.config.model_dump(mode="json", exclude_unset=True)[
            "autoscaling_config"
        ]
    return {**options, **({"ray_actor_options": actor} if actor else {})}


def _changed(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value != defaults.get(name)}


def _nothing() -> None:
    """Has the defaults."""


def _write(text: str, path: str | None) -> None:
    if path is None:
        click.echo(text, nl=False)
    else:
        Path(path).write_text(text, encoding="utf-8")
        say(f"Wrote {path}.")
