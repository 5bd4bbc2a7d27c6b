"""Options that several commands share, and how their errors reach the terminal."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import click

from retinue.core.admin.ask import Asker, find_target
from retinue.core.admin.state import StateReader
from retinue.core.cli.output import FORMATS
from retinue.core.errors import RetinueError

Command = Callable[..., Any]

address_option = click.option(
    "--address",
    metavar="HOST:PORT",
    help="The cluster's head. By default RETINUE_ADDRESS, else your newest cluster on this machine.",
)
timeout_option = click.option(
    "--timeout", type=float, default=30.0, show_default=True, help="Seconds to wait for answers."
)
format_option = click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="How to print.",
)


def asking(command: Command) -> Command:
    """--address and --timeout, handed over as `asker`."""

    @address_option
    @timeout_option
    @functools.wraps(command)
    def wrapped(*args: Any, address: str | None, timeout: float, **kwargs: Any) -> Any:
        return command(*args, asker=Asker(find_target(address), timeout_s=timeout), **kwargs)

    return wrapped


def reading(command: Command) -> Command:
    """--address and --timeout, handed over as `reader`."""

    @asking
    @functools.wraps(command)
    def wrapped(*args: Any, asker: Asker, **kwargs: Any) -> Any:
        return command(*args, reader=StateReader(asker), **kwargs)

    return wrapped


def say(text: str) -> None:
    """To stderr: stdout is for what was asked for."""
    click.echo(text, err=True)


class OneLineErrors(click.Group):
    """A group whose commands end with one line on stderr and exit code 1 where something is not so."""

    def invoke(self, ctx: click.Context) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.simplefilter("always", UserWarning)
            try:
                return super().invoke(ctx)
            except (RetinueError, OSError, TimeoutError, ValueError) as error:
                raise click.ClickException(one_line(error)) from error


def one_line(error: BaseException) -> str:
    """The error's first line, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _show_warning(message: Warning | str, *rest: Any, **more: Any) -> None:
    say(f"Warning: {message}")
