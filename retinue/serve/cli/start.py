"""`serve start`: serve on a cluster that runs, without applications yet."""

from __future__ import annotations

import importlib.util

import click

from retinue.serve.cli.options import address_option, find_cluster, say
from retinue.serve.cli.reading import base_urls
from retinue.serve.cli.waiting import progress, read_details, wait_proxies
from retinue.serve.cluster_start import start_on
from retinue.serve.controller_client import BlockingControllerClient
from retinue.serve.proxy_options import HTTPOptions, ProxyLocation, gRPCOptions


@click.command(short_help="Start serve on a running cluster.")
@address_option
@click.option("--http-host", default="127.0.0.1", show_default=True, help="Where HTTP proxies listen.")
@click.option(
    "--http-port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one."
)
@click.option(
    "--proxy-location",
    type=click.Choice(["Disabled", "HeadOnly", "EveryNode"]),
    default="EveryNode",
    show_default=True,
    help="Which nodes have proxies; EveryNode: the head's, and each with a replica.",
)
@click.option("--grpc-port", type=click.IntRange(0, 65535), default=9000, show_default=True)
@click.option(
    "--grpc-servicer-functions",
    multiple=True,
    help="Import path of an add_..._to_server function; without one there is no gRPC.",
)
@click.option("--grpc-enable-reflection/--grpc-disable-reflection", default=True, show_default=True)
def start(
    address: str | None,
    http_host: str,
    http_port: int,
    proxy_location: str,
    grpc_port: int,
    grpc_servicer_functions: tuple[str, ...],
    grpc_enable_reflection: bool,
) -> None:
    """Start serve (its controller and proxies) on a cluster that runs; applications come with `serve deploy`.

    These options hold until `serve shutdown`. Where serve runs already, nothing changes, and it says so.
    """
    if grpc_servicer_functions and importlib.util.find_spec("grpc") is None:
        raise click.ClickException("gRPC needs the extra: pip install 'retinue[grpc]'")
    cluster = find_cluster(address)
    with BlockingControllerClient(cluster) as client:
        if client.is_running():
            say("Serve runs already; its options stay until `serve shutdown`.")
            return
        with progress("Starting serve"):
            start_on(
                cluster,
                http_options=HTTPOptions(host=http_host, port=http_port),
                grpc_options=gRPCOptions(
                    port=grpc_port,
                    grpc_servicer_functions=list(grpc_servicer_functions),
                    enable_reflection=grpc_enable_reflection,
                ),
                proxy_location=ProxyLocation(proxy_location),
            )
        wait_proxies(client)
        where = " ".join(base_urls(read_details(client)))
    say("Serve runs" + (f" at {where}" if where else "") + "; `serve deploy` brings applications.")
