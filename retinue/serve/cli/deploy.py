"""Commands that change what a running cluster serves: deploy, delete, shutdown."""

from __future__ import annotations

import os
from typing import Any

import click

from retinue.serve.cli.options import (
    address_option,
    app_dir_option,
    environment_options,
    find_cluster,
    is_config_file,
    read_arguments,
    say,
    yes_option,
)
from retinue.serve.cli.waiting import progress, read_status, tell_where, wait_gone, wait_proxies, wait_running
from retinue.serve.cluster_start import start_for
from retinue.serve.controller_client import BlockingControllerClient, ServeNotRunningError
from retinue.serve.deploy_schema import ServeApplicationSchema, ServeDeploySchema
from retinue.serve.models import hint
from retinue.serve.names import DEFAULT_APP_NAME
from retinue.serve.schema_file import load_config


@click.command(short_help="Deploy applications on a running cluster.")
@click.argument("config_or_import_path")
@click.argument("arguments", nargs=-1)
@environment_options
@app_dir_option
@click.option("--name", help="The application's name. A config file has its own.")
@click.option("--route-prefix", help="Where it is reached; / by default. A config file has its own.")
@address_option
@click.option("--wait/--no-wait", default=True, show_default=True, help="Return only when all of it runs.")
def deploy(
    config_or_import_path: str,
    arguments: tuple[str, ...],
    runtime_env: dict[str, Any],
    app_dir: str,
    name: str | None,
    route_prefix: str | None,
    address: str | None,
    wait: bool,
) -> None:
    """Deploy what a config file says, or the application of an import path such as main:app.

    Applications that were deployed so before and are not in it are deleted. A function that builds an
    application is given the key=value ARGUMENTS:

      serve deploy main:app model=/path/to/model size=2

    The cluster imports the applications, in the folder --app-dir unless their runtime_env has a working_dir.
    """
    if is_config_file(config_or_import_path):
        refuse_beside_config(
            arguments=arguments, runtime_env=runtime_env, name=name, route_prefix=route_prefix
        )
        config = load_config(config_or_import_path)
    else:
        config = config_of(
            config_or_import_path,
            read_arguments(arguments),
            runtime_env,
            name=name,
            route_prefix=route_prefix,
        )
    config = in_folder(config, app_dir)
    cluster = find_cluster(address)
    with BlockingControllerClient(cluster) as client:
        if not client.is_running():
            with progress("Starting serve"):
                start_for(cluster, config)
        client.apply_config(config.model_dump_json(exclude_unset=True).encode())
        names = [app.name for app in config.applications]
        if not wait:
            say(f"Deploying {', '.join(names) or 'nothing'}; `serve status` tells how it goes.")
        elif names:
            wait_running(client, names)
            wait_proxies(client)
            tell_where(client, names)


def refuse_beside_config(**given: Any) -> None:
    """Raises UsageError for what a config file has its own key for."""
    for name, value in given.items():
        if value:
            what = "arguments are" if name == "arguments" else f"--{name.replace('_', '-')} is"
            raise click.UsageError(f"{what} for import paths; a config file has its own keys for that")


def config_of(
    import_path: str,
    arguments: dict[str, str],
    runtime_env: dict[str, Any],
    *,
    name: str | None,
    route_prefix: str | None,
) -> ServeDeploySchema:
    """The config of one application by its import path."""
    app: dict[str, Any] = {"name": name or DEFAULT_APP_NAME, "import_path": import_path}
    if runtime_env:
        app["runtime_env"] = runtime_env
    if arguments:
        app["args"] = arguments
    if route_prefix is not None:
        app["route_prefix"] = route_prefix
    return ServeDeploySchema(applications=[ServeApplicationSchema(**app)])


def in_folder(config: ServeDeploySchema, app_dir: str) -> ServeDeploySchema:
    """The config with `app_dir` as the working folder of applications that say none."""
    folder = os.path.abspath(app_dir)
    applications = []
    for app in config.applications:
        env = {"working_dir": folder, **app.runtime_env}
        if isinstance(env["working_dir"], str):
            env["working_dir"] = os.path.abspath(os.path.join(folder, env["working_dir"]))
        applications.append(app.model_copy(update={"runtime_env": env}))
    return config.model_copy(update={"applications": applications})


@click.command(short_help="Delete applications.")
@click.argument("names", nargs=-1, required=True)
@address_option
@yes_option
@click.option("--wait/--no-wait", default=True, show_default=True, help="Return only when they are gone.")
def delete(names: tuple[str, ...], address: str | None, yes: bool, wait: bool) -> None:
    """Delete applications by name; what they have accepted is answered first."""
    with BlockingControllerClient(find_cluster(address)) as client:
        known = read_status(client).applications
        for name in names:
            if name not in known:
                raise click.ClickException(f"there is no application {name!r}{hint(name, known)}")
        if not yes:
            click.confirm(f"Delete {', '.join(names)}?", abort=True, err=True)
        client.delete(list(names))
        if wait:
            wait_gone(client, names)
            say(f"Deleted {', '.join(names)}.")


@click.command(short_help="Delete all applications and end serve.")
@address_option
@yes_option
def shutdown(address: str | None, yes: bool) -> None:
    """Delete all applications, then end proxies and controller; returns when they are gone."""
    cluster = find_cluster(address)
    with BlockingControllerClient(cluster) as client:
        try:
            names = list(read_status(client).applications)
        except ServeNotRunningError:
            say("Serve does not run on this cluster; there is nothing to shut down.")
            return
        if not yes:
            what = f" with {', '.join(names)}" if names else ""
            click.confirm(f"Shut down serve{what} on the cluster at {cluster.address}?", abort=True, err=True)
        with progress("Shutting down"):
            client.shutdown()
    say("Serve is shut down.")
