"""The state of a cluster as rows: listing, get and summarize, over what head and agents answer.

Lives here: which questions make which rows, and what is said of answers that did not come. Does not: the
rows themselves (`rows`), the connections (`ask`), or showing anything.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from retinue.core.admin import rows, summaries
from retinue.core.admin.ask import Answers, Asker, RetinueStateApiException
from retinue.core.admin.filters import (
    DEFAULT_LIMIT,
    MAX_LIMIT,
    Filter,
    Row,
    checked_filters,
    select,
    without_details,
)
from retinue.core.admin.schemas import SCHEMAS, StateSchema
from retinue.core.wire.messages import ListActors, ListJobs, Query

# Of one kind, from one source. What lies beyond is counted, and said.
SOURCE_LIMIT = MAX_LIMIT


@dataclass(slots=True)
class Table:
    """All rows of a kind. `missing`: what could not be asked; `notes`: what is left out on purpose."""

    rows: list[Row]
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Listing:
    """The rows that were asked for, as objects, and what there is to say about them."""

    states: list[Any]
    notes: list[str] = field(default_factory=list)


class StateReader:
    """Reads one cluster, once."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._tables: dict[str, Callable[[], Table]] = {
            "actors": self._actors,
            "jobs": self._jobs,
            "nodes": self._nodes,
            "workers": self._workers,
            "tasks": self._tasks,
            "objects": self._objects,
            "runtime_envs": self._runtime_envs,
            "cluster_events": self._cluster_events,
            "placement_groups": lambda: Table([]),  # there are none yet, and nothing that makes one
        }

    def table(self, resource: str) -> Table:
        """All rows of a kind."""
        return self._tables[resource]()

    def listing(
        self,
        resource: str,
        *,
        filters: Sequence[Filter] | None = None,
        limit: int = DEFAULT_LIMIT,
        detail: bool = False,
        raise_on_missing_output: bool = True,
    ) -> Listing:
        """The rows that all filters match, at most `limit`.

        Raises RetinueStateApiException for a filter or limit that makes no sense, where the cluster does
        not answer, and (with `raise_on_missing_output`) where a part of it does not.
        """
        schema = SCHEMAS[resource]
        try:
            conditions = checked_filters(filters, schema)
            select([], conditions, limit=limit)
            table = self.table(resource)
            selection = select(table.rows, conditions, limit=limit)
        except ValueError as error:
            raise RetinueStateApiException(str(error)) from error
        check_complete(resource, table, raise_on_missing_output=raise_on_missing_output)
        notes = table.notes + table.missing
        if selection.found > limit:
            notes.append(f"{limit} of {selection.found} {resource} are shown; a higher limit shows more")
        return Listing([without_details(row, schema, detail=detail) for row in selection.rows], notes)

    def get(self, resource: str, id: str) -> list[StateSchema]:
        """The rows of that id, with their details: one, none, or several attempts or holders."""
        schema = SCHEMAS[resource]
        if not schema.id_column:
            raise RetinueStateApiException(f"{resource} have no id to get one by")
        table = self.table(resource)
        check_complete(resource, table, raise_on_missing_output=False)
        found = [row for row in table.rows if id in (row[schema.id_column], row.get("submission_id"))]
        return [without_details(row, schema, detail=True) for row in found]

    def summarize(self, resource: str, *, raise_on_missing_output: bool = True) -> dict[str, Any]:
        """Counts of tasks, actors or objects."""
        table = self.table(resource)
        check_complete(resource, table, raise_on_missing_output=raise_on_missing_output)
        if resource == "tasks":
            return summaries.summarize_tasks(table.rows)
        if resource == "actors":
            return summaries.summarize_actors(table.rows)
        return summaries.summarize_objects(table.rows)

    # --- tables

    def _actors(self) -> Table:
        infos = self._asker.ask_head(ListActors(0, limit=SOURCE_LIMIT)).actors
        return Table(rows.actor_rows(infos), missing=_cut("actors", len(infos)))

    def _jobs(self) -> Table:
        return Table(rows.job_rows(self._asker.ask_head(ListJobs(0)).jobs))

    def _nodes(self) -> Table:
        return Table(rows.node_rows(self._asker.nodes()))

    def _workers(self) -> Table:
        answers = self._asker.ask_nodes("workers", {"limit": str(SOURCE_LIMIT)})
        return Table(rows.worker_rows(answers.answers), answers.missing)

    def _runtime_envs(self) -> Table:
        answers = self._asker.ask_nodes("workers", {"limit": "0"})
        return Table(rows.runtime_env_rows(answers.answers), answers.missing)

    def _tasks(self) -> Table:
        answers = self._asker.ask_nodes("tasks", {"limit": str(SOURCE_LIMIT)})
        missing = answers.missing + [
            f"process {pid} of node {answer.node_id[:12]} does not answer"
            for answer in answers.answers
            for pid in answer.document["silent"]
        ]
        missing += _omitted("unfinished tasks", sum(answer.document["omitted"] for answer in answers.answers))
        dropped = sum(answer.document["dropped"] for answer in answers.answers)
        notes = [f"{dropped} older finished tasks are not kept any more"] if dropped else []
        return Table(rows.task_rows(answers.answers), missing, notes)

    def _objects(self) -> Table:
        answers = self._asker.ask_nodes("references", {"limit": str(SOURCE_LIMIT)})
        omitted = sum(
            process["answer"]["omitted"]
            for answer in answers.answers
            for process in answer.document
            if process["answer"] is not None
        )
        missing = answers.missing + _silent(answers) + _omitted("objects", omitted)
        return Table(rows.object_rows(answers.answers), missing)

    def _cluster_events(self) -> Table:
        return Table(rows.event_rows(self._asker.ask_head(Query(0, "events"))))


def _silent(answers: Answers) -> list[str]:
    return [
        f"process {process['pid']} of node {answer.node_id[:12]} does not answer"
        for answer in answers.answers
        for process in answer.document
        if process["answer"] is None
    ]


def _omitted(what: str, count: int) -> list[str]:
    return [f"{count} more {what} are not told, beyond {SOURCE_LIMIT} of a node"] if count else []


def _cut(resource: str, count: int) -> list[str]:
    return [f"only the first {count} {resource} were asked for"] if count >= SOURCE_LIMIT else []


def check_complete(resource: str, table: Table, *, raise_on_missing_output: bool) -> None:
    """Raise, or warn, where a part of the cluster did not answer."""
    if not table.missing:
        return
    text = f"not all {resource} are known: {'; '.join(table.missing)}"
    if raise_on_missing_output:
        raise RetinueStateApiException(f"{text}. Pass raise_on_missing_output=False for what there is")
    warnings.warn(text, UserWarning, stacklevel=4)
