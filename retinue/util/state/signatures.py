"""The three signatures of the state API, each written once, and decorators that give one to a function.

The decorated function is only a name and a docstring: `@lists(StateResource.NODES, NodeState)` makes of it a
function that lists nodes. Lives here: arguments and defaults. Does not: the functions (`api`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from retinue.core.admin.filters import DEFAULT_LIMIT, Filter
from retinue.util.state.client import StateApiClient
from retinue.util.state.options import (
    DEFAULT_RPC_TIMEOUT,
    GetApiOptions,
    ListApiOptions,
    StateResource,
    SummaryApiOptions,
    SummaryResource,
)

Filters = Sequence[Filter] | None
T = TypeVar("T")
Result_co = TypeVar("Result_co", covariant=True)
Function = TypeVar("Function", bound=Callable[..., Any])
Described = Callable[[], None]  # a name and a docstring


class Getter(Protocol[Result_co]):
    """What all `get_*` functions look like."""

    def __call__(
        self,
        id: str,
        address: str | None = None,
        timeout: float = DEFAULT_RPC_TIMEOUT,
        _explain: bool = False,
    ) -> Result_co: ...


class Lister(Protocol[Result_co]):
    """What all `list_*` functions look like."""

    def __call__(
        self,
        address: str | None = None,
        filters: Filters = None,
        limit: int = DEFAULT_LIMIT,
        timeout: float = DEFAULT_RPC_TIMEOUT,
        detail: bool = False,
        raise_on_missing_output: bool = True,
        _explain: bool = False,
    ) -> Result_co: ...


class Summarizer(Protocol):
    """What all `summarize_*` functions look like."""

    def __call__(
        self,
        address: str | None = None,
        timeout: float = DEFAULT_RPC_TIMEOUT,
        raise_on_missing_output: bool = True,
        _explain: bool = False,
    ) -> dict[str, Any]: ...


def gets(resource: StateResource, row: type[T]) -> Callable[[Described], Getter[T | None]]:
    """The function of that name and docstring, which asks for `resource`; as the next two."""

    def make(described: Described) -> Getter[T | None]:
        def get(
            id: str,
            address: str | None = None,
            timeout: float = DEFAULT_RPC_TIMEOUT,
            _explain: bool = False,
        ) -> Any:
            return StateApiClient(address).get(resource, id, GetApiOptions(timeout), _explain)

        return _named(get, described, row | None)

    return make


def lists(resource: StateResource, row: type[T]) -> Callable[[Described], Lister[list[T]]]:
    def make(described: Described) -> Lister[list[T]]:
        def list_rows(
            address: str | None = None,
            filters: Filters = None,
            limit: int = DEFAULT_LIMIT,
            timeout: float = DEFAULT_RPC_TIMEOUT,
            detail: bool = False,
            raise_on_missing_output: bool = True,
            _explain: bool = False,
        ) -> Any:
            options = ListApiOptions(limit, timeout, detail, filters)
            return StateApiClient(address).list(resource, options, raise_on_missing_output, _explain)

        return _named(list_rows, described, list[row])  # type: ignore[valid-type]

    return make


def summarizes(resource: SummaryResource) -> Callable[[Described], Summarizer]:
    def make(described: Described) -> Summarizer:
        def summarize(
            address: str | None = None,
            timeout: float = DEFAULT_RPC_TIMEOUT,
            raise_on_missing_output: bool = True,
            _explain: bool = False,
        ) -> Any:
            return StateApiClient(address).summary(
                resource,
                options=SummaryApiOptions(timeout),
                raise_on_missing_output=raise_on_missing_output,
                _explain=_explain,
            )

        return _named(summarize, described, dict[str, Any])

    return make


def _named(function: Function, described: Described, result: Any) -> Function:
    """`function` under the other's name; not `functools.wraps`, which would show the other's signature."""
    for attribute in ("__name__", "__qualname__", "__doc__"):
        setattr(function, attribute, getattr(described, attribute))
    function.__annotations__["return"] = result
    return function
