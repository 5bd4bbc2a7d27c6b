"""`retinue start` and `retinue stop`: nodes of this machine that outlive the command."""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import os
import signal
import socket
from types import FrameType
from typing import Any, NoReturn

import click

from retinue.core import cluster
from retinue.core import session as sessions
from retinue.core.cli.options import say
from retinue.core.cli.texts import parse_bytes, parse_labels, parse_resources
from retinue.core.cluster import LOOPBACK, NodeOptions, StartedNode
from retinue.core.transport.endpoints import listen_tcp

DEFAULT_PORT = 6379
DEFAULT_ADMIN_PORT = 8265


class Parsed(click.ParamType):  # type: ignore[type-arg] # generic only in later versions of click
    """An option's text through one of the functions of `texts`."""

    def __init__(self, name: str, parse: Any) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(short_help="Start a node, or a whole cluster.")
@click.option("--head", is_flag=True, help="Start a new cluster: its head, and its first node.")
@click.option("--address", metavar="HOST:PORT", help="Start one more node, of the cluster with this head.")
@click.option("--block", is_flag=True, help="Stay in the foreground; the node ends with the command.")
@click.option(
    "--num-cpus", type=click.FloatRange(min=0), help="CPUs to offer; by default all that there are."
)
@click.option(
    "--num-gpus", type=click.FloatRange(min=0), help="GPUs to offer; by default all that there are."
)
@click.option("--memory", type=Parsed("amount", parse_bytes), help="Memory to offer, such as 8GiB.")
@click.option(
    "--resources", type=Parsed("json", parse_resources), help="""More resources: '{"license": 2}'."""
)
@click.option("--labels", type=Parsed("k=v,...", parse_labels), help="Labels of the node.")
@click.option(
    "--object-store-memory",
    type=Parsed("amount", parse_bytes),
    help="Size of the object store, such as 4GiB; by default 30 % of the memory.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), help=f"The head's port; by default {DEFAULT_PORT} if it is free."
)
@click.option(
    "--admin-port",
    type=click.IntRange(0, 65535),
    help=f"The admin server's port; by default {DEFAULT_ADMIN_PORT} if it is free.",
)
@click.option("--admin-host", default=LOOPBACK, show_default=True, help="The admin server's address.")
@click.option("--no-admin", is_flag=True, help="Start no admin server.")
@click.option("--host", default=LOOPBACK, show_default=True, help="The address to listen on.")
@click.option(
    "--temp-dir", type=click.Path(file_okay=False), help="For the session; by default RETINUE_TEMP_DIR."
)
@click.option(
    "--timeout", type=float, default=cluster.START_TIMEOUT_S, show_default=True, help="Seconds to wait."
)
def start(
    head: bool,
    address: str | None,
    block: bool,
    num_cpus: float | None,
    num_gpus: float | None,
    memory: int | None,
    resources: dict[str, float] | None,
    labels: dict[str, str] | None,
    object_store_memory: int | None,
    port: int | None,
    host: str,
    admin_port: int | None,
    admin_host: str,
    no_admin: bool,
    temp_dir: str | None,
    timeout: float,
) -> None:
    """Start a node on this machine: with --head of a new cluster, with --address of one that runs."""
    if head is (address is not None):
        raise click.UsageError("give --head for a new cluster, or --address HOST:PORT to join one")
    if address is not None and port is not None:
        raise click.UsageError("--port is the head's: it goes with --head")
    options = NodeOptions(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        memory=memory,
        object_store_memory=object_store_memory,
        resources=resources or {},
        labels=labels or {},
        node_ip=host,
    )
    if not is_loopback(host):
        say(exposure_warning(host))
    admin = None if no_admin or not head else admin_listener(admin_host, admin_port)
    common: dict[str, Any] = {"host": host, "block": block, "temp_dir": temp_dir, "timeout_s": timeout}
    with ended_by_signals():
        if head:
            with admin or contextlib.nullcontext():
                usual = choose_port(host, port, DEFAULT_PORT)
                started = cluster.start_head_node(options, port=usual, admin=admin, **common)
        else:
            assert address is not None
            started = cluster.start_node(address, options, **common)
        click.echo(greeting(started, is_head=head, temp_dir=temp_dir))
        if block:
            wait(started)


def admin_listener(host: str, port: int | None) -> socket.socket | None:
    """The admin server's socket; None where the extra is not installed and nobody insists."""
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing and port is None:
        return None
    if missing:
        raise click.ClickException(
            f"the admin server needs {' and '.join(missing)}: pip install 'retinue[admin]'"
        )
    if not is_loopback(host):
        say(f"Warning: the admin server listens on {host}, unencrypted; the cluster's token opens it.")
    listener = listen_tcp(host, choose_port(host, port, DEFAULT_ADMIN_PORT))
    os.set_inheritable(listener.fileno(), True)
    return listener


def choose_port(host: str, wanted: int | None, usual: int) -> int:
    """The port that was asked for; else the usual one, or (0) any, if somebody listens there already."""
    if wanted is not None:
        return wanted
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, usual))
        except OSError:
            return 0
    return usual


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def exposure_warning(host: str) -> str:
    return (
        f"Warning: the node listens on {host}: whoever reaches that address and has the cluster's token can "
        "run code here. What travels is not encrypted; use it in a network that you trust."
    )


def greeting(started: StartedNode, *, is_head: bool, temp_dir: str | None) -> str:
    """What to type next."""
    address = f"{started.cluster.head.host}:{started.cluster.head.port}"
    lines = [
        f"Started the cluster's head and a node at {address}." if is_head else f"Started a node of {address}."
    ]
    if is_head:
        lines += [
            f"  token       {started.cluster.token_file}",
            f"  more nodes  retinue start --address {address}",
            "  in Python   retinue.init()",
        ]
    if started.cluster.admin:
        lines.append(f"  admin       {started.cluster.admin} (metrics, state; needs the token)")
    if temp_dir is not None:
        lines.append(f"  found with  {sessions.TEMP_DIR_VARIABLE}={os.path.abspath(temp_dir)}")
    return "\n".join([*lines, "  look at it  retinue status", "  end it      retinue stop"])


def wait(started: StartedNode) -> None:
    """Until the node ends, or a signal ends the wait, and with it the node."""
    try:
        code = started.wait()
    except (KeyboardInterrupt, SystemExit):
        say("Stopping the node.")
        raise
    finally:
        started.close()
    if code:
        raise click.ClickException(f"the node ended with code {code}")


class ended_by_signals:
    """Within it SIGTERM (a container's stop) ends the command as Ctrl-C does: in order."""

    def __enter__(self) -> None:
        self._previous = signal.signal(signal.SIGTERM, _leave)

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGTERM, self._previous)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


@click.command(short_help="End the nodes on this machine.")
@click.option("--force", "-f", is_flag=True, help="Kill at once, without an orderly end.")
@click.option(
    "--grace-period",
    "-g",
    type=click.FloatRange(min=0),
    default=cluster.STOP_TIMEOUT_S,
    show_default=True,
    help="Seconds for an orderly end, before what is left is killed.",
)
@click.option("--temp-dir", type=click.Path(file_okay=False), help="Where the nodes were started with one.")
def stop(force: bool, grace_period: float, temp_dir: str | None) -> None:
    """End all nodes of yours on this machine that `retinue start` started."""
    stopped = cluster.stop(force=force, grace_period_s=grace_period, temp_dir=temp_dir)
    total = stopped.ended + stopped.killed
    if not total:
        click.echo("No node of yours was running.")
        return
    killed = f" ({stopped.killed} had to be killed)" if stopped.killed else ""
    click.echo(f"Stopped {total} {'node' if total == 1 else 'nodes'}{killed}.")
