"""Options that several commands share, and what they are read into.

Lives here: flags, `key=value` arguments, runtime_env, finding the cluster. Does not: what is done with them.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from retinue.core.doors.admin import AdminContext

Command = Callable[..., Any]

NO_CLUSTER = (
    "no running cluster of yours was found on this machine; `serve run` starts one with an application, "
    "`retinue start --head` one that goes on in the background; --address names one elsewhere"
)

address_option = click.option(
    "--address",
    "-a",
    metavar="HOST:PORT",
    help="The cluster's head. By default RETINUE_ADDRESS, else your newest cluster on this machine.",
)
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
app_dir_option = click.option(
    "--app-dir",
    "-d",
    default=".",
    type=click.Path(file_okay=False, exists=True),
    help="Where the application's modules are. By default this folder.",
)


def find_cluster(address: str | None) -> AdminContext:
    """The cluster that is meant. Raises ClickException, which says what to type, if there is none."""
    from retinue.core.doors import admin

    try:
        return admin.find_cluster(address)
    except ConnectionError as error:
        text = str(error) if address not in (None, "auto") else NO_CLUSTER
        raise click.ClickException(text) from error


def output_option(
    default: str, *, formats: Sequence[str] = ("table", "json", "yaml")
) -> Callable[[Command], Command]:
    return click.option(
        "--output",
        "output",
        type=click.Choice(list(formats)),
        default=default or None,
        show_default=bool(default),
        help="How to print." + ("" if default else " By default a table; into a pipe YAML."),
    )


def environment_options(command: Command) -> Command:
    """--runtime-env, --runtime-env-json and --working-dir, handed over as `runtime_env`."""

    @click.option(
        "--runtime-env",
        "runtime_env_file",
        type=click.Path(exists=True, dir_okay=False),
        help="A YAML file with the replicas' runtime_env. Config files have their own.",
    )
    @click.option("--runtime-env-json", metavar="JSON", help="The same, as JSON.")
    @click.option(
        "--working-dir",
        type=click.Path(exists=True, file_okay=False),
        help="The replicas' working folder; goes before that of the runtime_env.",
    )
    @functools.wraps(command)
    def wrapped(
        *args: Any,
        runtime_env_file: str | None,
        runtime_env_json: str | None,
        working_dir: str | None,
        **kwargs: Any,
    ) -> Any:
        environment = read_environment(runtime_env_file, runtime_env_json, working_dir)
        return command(*args, runtime_env=environment, **kwargs)

    return wrapped


def read_environment(file: str | None, text: str | None, working_dir: str | None) -> dict[str, Any]:
    """Raises UsageError for what is no runtime_env."""
    if file is not None and text is not None:
        raise click.UsageError("give --runtime-env or --runtime-env-json, not both")
    found: Any = {}
    if file is not None:
        import yaml

        with open(file, encoding="utf-8") as stream:
            try:
                found = yaml.safe_load(stream) or {}
            except yaml.YAMLError as error:
                raise click.UsageError(f"--runtime-env: {file} is no YAML: {error}") from error
    elif text is not None:
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise click.UsageError(f"--runtime-env-json is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise click.UsageError(f"a runtime_env is a mapping, got {found!r}")
    if working_dir is not None:
        found["working_dir"] = working_dir
    if isinstance(found.get("working_dir"), str):
        found["working_dir"] = os.path.abspath(found["working_dir"])
    return found


def read_arguments(words: Sequence[str]) -> dict[str, str]:
    """`key=value` words. Raises UsageError.

    >>> read_arguments(["model=/path/to=it", "size=2"])
    {'model': '/path/to=it', 'size': '2'}
    """
    found: dict[str, str] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not key or not sign or not value:
            raise click.UsageError(f"an application's argument has the form key=value, got {word!r}")
        if key in found:
            raise click.UsageError(f"the argument {key!r} is given twice")
        found[key] = value
    return found


def is_config_file(target: str) -> bool:
    """Whether the word names a file, and not something to import. Raises UsageError for a missing file."""
    if os.path.isfile(target):
        return True
    if target.endswith((".yaml", ".yml", ".json")):
        raise click.UsageError(f"there is no file {target}")
    return False


def say(text: str) -> None:
    """To stderr: stdout is for what was asked for."""
    click.echo(text, err=True)


def problem(error: BaseException) -> str:
    """What an error says, or its kind where it says nothing."""
    return str(error).strip() or type(error).__name__


def add_to_path(folder: str) -> str:
    """Let modules be imported from the folder; returns it as an absolute path."""
    path = os.path.abspath(folder)
    if path not in sys.path:
        sys.path.insert(0, path)
    return path
