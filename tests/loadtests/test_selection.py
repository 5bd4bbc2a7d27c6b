"""Choosing rows by name, and the promises that every row keeps."""

import pytest

from corebench.selection import choose


def names(*patterns):
    return [row.name for row in choose(patterns)]


def test_without_patterns_all_rows_are_chosen_calls_first():
    assert names()[0] == "actor_sync"
    assert {"tasks_sync", "put_1gib", "init", "million_tasks"} <= set(names())


def test_a_whole_name_chooses_that_row_alone():
    assert names("actor_sync") == ["actor_sync"]


def test_a_part_of_a_name_chooses_every_row_that_has_it():
    assert names("1gib") == ["put_1gib", "get_1gib"]


def test_a_name_that_no_row_has_is_refused():
    with pytest.raises(ValueError, match="teleport"):
        names("teleport")


def test_figures_are_named_once():
    figures = [figure.name for row in choose([]) for figure in row.figures]
    assert len(figures) == len(set(figures))
