"""`serve`: the command's entry point. Each command's module is imported when it is used."""

from __future__ import annotations

import importlib

import click

from retinue import __version__
from retinue.exceptions import RetinueError
from retinue.serve.cli.options import problem
from retinue.serve.extras import advice

# Command -> module, name of its function, and what it does: help must not import them all.
COMMANDS = {
    "run": ("run", "run", "Run applications here, until Ctrl-C."),
    "start": ("start", "start", "Start serve on a running cluster."),
    "deploy": ("deploy", "deploy", "Deploy applications on a running cluster."),
    "status": ("look", "status", "Applications, deployments, and where they are reached."),
    "config": ("look", "config", "The configs of the applications."),
    "logs": ("logs", "logs", "Log files of replicas, proxies and the controller."),
    "delete": ("deploy", "delete", "Delete applications."),
    "shutdown": ("deploy", "shutdown", "Delete all applications and end serve."),
    "build": ("files", "build", "Write a config file for applications."),
    "validate": ("files", "validate", "Check a config file; nothing is touched."),
    "schema": ("files", "schema", "The config file's JSON Schema, for editors."),
    "controller-health": ("look", "controller_health", "How the controller does."),
}


class LazyCommands(click.Group):
    """Imports a command when it is used. What is not so ends it with the reason and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        found = COMMANDS.get(name)
        if found is None:
            return None
        module, function, _ = found
        command = getattr(importlib.import_module(f"retinue.serve.cli.{module}"), function)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            text = advice(error)
            if text is None:
                raise
            raise click.ClickException(text) from error
        except (RetinueError, OSError, TimeoutError, ValueError) as error:
            raise click.ClickException(problem(error)) from error


@click.group(
    cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="serve")
def main() -> None:
    """Run and deploy applications with Retinue."""


if __name__ == "__main__":
    main()
