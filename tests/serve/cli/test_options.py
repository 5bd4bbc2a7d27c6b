"""Words of the command line into what they mean."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from retinue.serve.cli.options import is_config_file, read_arguments, read_environment


def test_arguments_are_split_at_their_first_sign() -> None:
    assert read_arguments(["model=/a=b", "size=2"]) == {"model": "/a=b", "size": "2"}


@pytest.mark.parametrize("words", [["model"], ["=x"], ["model="], ["size=1", "size=2"]])
def test_half_an_argument_or_one_twice_is_refused(words: list[str]) -> None:
    with pytest.raises(click.UsageError):
        read_arguments(words)


def test_a_runtime_env_comes_from_a_file_or_from_json(tmp_path: Path) -> None:
    file = tmp_path / "env.yaml"
    file.write_text("env_vars: {A: b}\nworking_dir: /elsewhere\n")
    assert read_environment(str(file), None, str(tmp_path)) == {
        "env_vars": {"A": "b"},
        "working_dir": str(tmp_path),
    }
    assert read_environment(None, '{"env_vars": {}}', None) == {"env_vars": {}}
    assert read_environment(None, None, None) == {}


@pytest.mark.parametrize(("file", "text"), [(None, "{"), (None, "[1]"), ("env.yaml", "{}")])
def test_what_is_no_runtime_env_is_refused(file: str | None, text: str | None) -> None:
    with pytest.raises(click.UsageError):
        read_environment(file, text, None)


def test_a_name_that_looks_like_a_config_file_has_to_be_one(tmp_path: Path) -> None:
    config = tmp_path / "app.conf"
    config.write_text("applications: []")
    assert is_config_file(str(config))
    assert not is_config_file("main:app")
    with pytest.raises(click.UsageError, match="there is no file"):
        is_config_file(str(tmp_path / "config.yaml"))
