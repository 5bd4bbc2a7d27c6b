"""Commands that show what there is: status, config, controller-health."""

from __future__ import annotations

from dataclasses import asdict

import click

from retinue.serve.cli.options import address_option, find_cluster, output_option
from retinue.serve.cli.output import chosen, print_table, show
from retinue.serve.cli.reading import COLUMNS, base_urls, notes, table
from retinue.serve.cli.waiting import read_details
from retinue.serve.controller_client import BlockingControllerClient
from retinue.serve.models import hint
from retinue.serve.status_schema import ApplicationDetails, ServeInstanceDetails


def _details(address: str | None) -> ServeInstanceDetails:
    with BlockingControllerClient(find_cluster(address)) as client:
        return read_details(client)


def _application(details: ServeInstanceDetails, name: str) -> ApplicationDetails:
    found = details.applications.get(name)
    if found is None:
        raise click.ClickException(f"there is no application {name!r}{hint(name, details.applications)}")
    return found


@click.command(short_help="Applications, deployments, and where they are reached.")
@address_option
@click.option("--name", "-n", help="Only this application.")
@output_option("")
def status(address: str | None, name: str | None, output: str | None) -> None:
    """Show the applications and their deployments, what is wrong with them, and where they are reached.

    YAML and JSON are as Ray Serve's, with one more key, `urls`: where proxies listen. An application is
    DEPLOYING, RUNNING, DEPLOY_FAILED, UNHEALTHY or DELETING; a deployment is UPDATING, UPSCALING,
    DOWNSCALING, HEALTHY, UNHEALTHY or DEPLOY_FAILED.
    """
    details = _details(address)
    if name is not None:
        only = {name: _application(details, name)}
        details = details.model_copy(update={"applications": only})
    form = chosen(output)
    if form != "table":
        document = asdict(details.to_status())
        if name is not None:
            document = document["applications"][name]
        else:
            document["urls"] = base_urls(details)
        show(document, form)
        return
    if not details.applications:
        where = " ".join(base_urls(details))
        click.echo("Serve runs" + (f" at {where}" if where else "") + ", without applications.")
        return
    print_table(COLUMNS, table(details))
    for note in notes(details):
        click.echo(f"\n{note}")


@click.command(short_help="The configs of the applications.")
@address_option
@click.option("--name", "-n", help="Only this application's.")
@output_option("yaml", formats=("yaml", "json"))
def config(address: str | None, name: str | None, output: str) -> None:
    """Show the configs with which applications were deployed; those of `serve.run` in code have none."""
    details = _details(address)
    if name is not None:
        app = _application(details, name)
        if app.deployed_app_config is None:
            raise click.ClickException(f"application {name!r} was not deployed from a config")
        show(app.deployed_app_config.model_dump(mode="json", exclude_unset=True), output)
        return
    configs = [
        app.deployed_app_config.model_dump(mode="json", exclude_unset=True)
        for app in details.applications.values()
        if app.deployed_app_config is not None
    ]
    if output == "json":
        show(configs, output)
    elif not configs:
        raise click.ClickException("no application was deployed from a config")
    for index, document in enumerate(configs if output == "yaml" else ()):
        if index:
            click.echo("\n---\n")
        show(document, output)


@click.command("controller-health", short_help="How the controller does.")
@address_option
@click.option("--json", "is_json", is_flag=True, help="The same as --output json.")
@output_option("yaml", formats=("yaml", "json"))
def controller_health(address: str | None, is_json: bool, output: str) -> None:
    """Show how the controller does: uptime, rounds, memory. Times are Unix times, durations seconds."""
    metrics = _details(address).controller_health_metrics
    show(metrics.model_dump(mode="json"), "json" if is_json else output)
