"""`retinue`: the command's entry point. Each command's module is imported when it is used."""

from __future__ import annotations

import importlib

import click

from retinue import __version__
from retinue.core.cli.options import OneLineErrors

# Command -> module and name of its function.
COMMANDS = {
    "start": ("nodes", "start"),
    "stop": ("nodes", "stop"),
    "status": ("look", "status"),
    "list": ("look", "list_"),
    "get": ("look", "get"),
    "summary": ("look", "summary"),
    "memory": ("look", "memory_"),
    "logs": ("logs", "logs"),
    "timeline": ("tools", "timeline"),
    "stack": ("tools", "stack"),
    "kill-actor": ("tools", "kill_actor"),
    "microbenchmark": ("bench", "microbenchmark"),
}


class LazyCommands(OneLineErrors):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        found = COMMANDS.get(name)
        if found is None:
            return None
        module, function = found
        command = getattr(importlib.import_module(f"retinue.core.cli.{module}"), function)
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="retinue")
def main() -> None:
    """Start and stop Retinue clusters, and look at them."""


if __name__ == "__main__":
    main()
