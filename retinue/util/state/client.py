"""One cluster to ask, as often as one likes.

Lives here: `StateApiClient`. Does not: the functions that people call (`api`), asking (`retinue.core.admin`).
"""

from __future__ import annotations

import warnings
from typing import Any

from retinue.core.admin.ask import Asker, find_target
from retinue.core.admin.state import StateReader
from retinue.util.state.options import (
    GetApiOptions,
    ListApiOptions,
    StateResource,
    SummaryApiOptions,
    SummaryResource,
)


class StateApiClient:
    """Asks one cluster, as often as it likes: what the functions below do, without finding it each time.

    Raises ConnectionError if there is none at `address`.
    """

    def __init__(self, address: str | None = None) -> None:
        self._target = find_target(address)

    def _reader(self, timeout: float) -> StateReader:
        return StateReader(Asker(self._target, timeout_s=timeout))

    def list(
        self,
        resource: StateResource,
        options: ListApiOptions,
        raise_on_missing_output: bool = True,
        _explain: bool = False,
    ) -> Any:
        """The rows that all filters match, as a list. Raises RetinueStateApiException."""
        listing = self._reader(options.timeout).listing(
            resource.value,
            filters=options.filters,
            limit=options.limit,
            detail=options.detail,
            raise_on_missing_output=raise_on_missing_output,
        )
        if _explain:
            for note in listing.notes:
                warnings.warn(note, UserWarning, stacklevel=2)
        return listing.states

    def get(
        self, resource: StateResource, id: str, options: GetApiOptions | None = None, _explain: bool = False
    ) -> Any:
        """The row of that id or None; of objects a list, of a task with several attempts as well."""
        timeout = (options or GetApiOptions()).timeout
        found = self._reader(timeout).get(resource.value, id)
        if resource is StateResource.OBJECTS:
            return found
        if len(found) > 1:
            return found
        return found[0] if found else None

    def summary(
        self,
        resource: SummaryResource,
        *,
        options: SummaryApiOptions | None = None,
        raise_on_missing_output: bool = True,
        _explain: bool = False,
    ) -> dict[str, Any]:
        """Counts, below the key "cluster"."""
        timeout = (options or SummaryApiOptions()).timeout
        return self._reader(timeout).summarize(
            resource.value, raise_on_missing_output=raise_on_missing_output
        )
