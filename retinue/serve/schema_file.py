"""Config files: read, checked whole, and errors told with their lines.

Lives here: YAML (and JSON, which is YAML) to ServeDeploySchema, and which line of a file an error is about.
Does not: what is valid (`deploy_schema`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from retinue.serve.deploy_schema import ServeDeploySchema
from retinue.serve.exceptions import RetinueServeException
from retinue.serve.models import explain_each


class ConfigFileError(RetinueServeException, ValueError):
    """A config file cannot be used; nothing was changed. `problems`: a line for each thing that is wrong."""

    fault = "caller"
    http_status = 400

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        super().__init__(source, list(problems))
        self.source = source
        self.problems = list(problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return "\n".join([f"{self.source}: {len(self.problems)} errors", *self.problems])


def load_config(path: str | os.PathLike[str]) -> ServeDeploySchema:
    """The config in a file. Raises ConfigFileError, which names file, line and field; also for no file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigFileError(str(path), [f"{path}: it cannot be read: {error}"]) from None
    return parse_config(text, source=str(path))


def parse_config(text: str, source: str = "config") -> ServeDeploySchema:
    """The config in a text; see `load_config`."""
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        lines = _Lines(root)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigFileError(source, [_yaml_problem(source, error)]) from None
    if lines.doubled:
        raise ConfigFileError(source, [f"{source}:{line}: {text}" for line, text in lines.doubled])
    if not isinstance(content, dict):
        raise ConfigFileError(
            source, [f"{source}: it has to hold keys such as 'applications', got {content!r}"]
        )
    try:
        return ServeDeploySchema.model_validate(content)
    except ValidationError as error:
        problems = [(lines.of(where), text) for where, text in explain_each(error)]
    raise ConfigFileError(source, [f"{source}:{line}: {text}" for line, text in sorted(problems)])


def _yaml_problem(source: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"{source}: {error}"
    problem = getattr(error, "problem", None) or "it is no YAML"
    return f"{source}:{mark.line + 1}: {problem} (column {mark.column + 1})"


class _Lines:
    """Where in the text the parts of the document are."""

    def __init__(self, root: yaml.Node | None) -> None:
        self._lines: dict[tuple[Any, ...], int] = {}
        self.doubled: list[tuple[int, str]] = []
        if root is not None:
            self._visit(root, ())

    def _visit(self, node: yaml.Node, path: tuple[Any, ...]) -> None:
        self._lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                line = key.start_mark.line + 1
                if key.value in seen:
                    self.doubled.append((line, f"the key {key.value!r} is there twice"))
                seen.add(str(key.value))
                self._lines[(*path, key.value)] = line
                self._visit(value, (*path, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self._visit(value, (*path, index))

    def of(self, path: Sequence[int | str]) -> int:
        """The line of the part, or of the nearest that is there: what is missing has no line of its own."""
        known = tuple(path)
        while known and known not in self._lines:
            known = known[:-1]
        return self._lines.get(known, 1)
