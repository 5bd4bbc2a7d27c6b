"""Waiting for applications, with progress on a terminal.

Lives here: that. Does not: what a status means (`reading`), asking (`controller_client`).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence

import click
from pydantic import TypeAdapter

from retinue.serve.cli.options import say
from retinue.serve.cli.reading import failure, outcome, urls
from retinue.serve.controller_client import BlockingControllerClient
from retinue.serve.proxy_options import ProxyLocation
from retinue.serve.status_schema import ProxyStatus, ServeInstanceDetails, ServeStatus

_status = TypeAdapter(ServeStatus)

LOOK_AGAIN_S = 0.25  # why a proxy cannot start is no change of status, and wakes nobody

Tell = Callable[[str], None]


def read_status(client: BlockingControllerClient) -> ServeStatus:
    return _status.validate_json(client.status())


def read_details(client: BlockingControllerClient) -> ServeInstanceDetails:
    return ServeInstanceDetails.model_validate_json(client.details())


@contextlib.contextmanager
def progress(title: str) -> Iterator[Tell]:
    """Tells what is waited for: on a terminal in one moving line, else nowhere."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(escape(title)) as line:
        yield lambda text: line.update(escape(f"{title}: {text}" if text else title))


def wait_running(client: BlockingControllerClient, names: Sequence[str]) -> None:
    """Until all of them run. Raises ClickException, with the reasons, if one cannot or is deleted."""
    with progress(f"Waiting for {', '.join(names)}") as tell:
        version = -1
        while True:
            version = client.changed(version)
            found = outcome(read_status(client), names)
            if found.is_settled or found.failed:
                break
            tell("; ".join(found.waiting.values()))
    bad = [*found.failed, *found.gone]
    if bad:
        applications = read_details(client).applications
        raise click.ClickException("\n".join(failure(name, applications.get(name)) for name in bad))


def wait_gone(client: BlockingControllerClient, names: Sequence[str]) -> None:
    """Until none of them is there any more: what they had accepted is answered."""
    with progress(f"Deleting {', '.join(names)}") as tell:
        version = -1
        while True:
            version = client.changed(version)
            left = [name for name in names if name in read_status(client).applications]
            if not left:
                return
            tell(f"{', '.join(left)} finish what they have accepted")


def wait_proxies(client: BlockingControllerClient) -> None:
    """Until the proxies answer. Raises ClickException, with the reason, if one cannot start."""
    with progress("Waiting for the proxies") as tell:
        while True:
            version = client.changed(-1)
            details = read_details(client)
            is_served = details.proxy_location is not ProxyLocation.Disabled
            proxies = details.proxies.values()
            if not is_served or (proxies and all(p.status is not ProxyStatus.STARTING for p in proxies)):
                return
            for proxy in proxies:
                if proxy.message:
                    raise click.ClickException(f"the proxy cannot start: {proxy.message}")
            tell(f"{len(details.proxies)} started")
            client.changed(version, timeout_s=LOOK_AGAIN_S)


def tell_where(client: BlockingControllerClient, names: Sequence[str]) -> None:
    """Say where applications are reached."""
    details = read_details(client)
    for name in names:
        app = details.applications.get(name)
        if app is not None:
            where = urls(details, app)
            say(f"{name}: running" + (f" at {' '.join(where)}" if where else ", not reachable by HTTP"))
