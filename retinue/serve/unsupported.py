"""Options and names that Ray Serve has and Retinue does not, and what to use instead."""

from __future__ import annotations

from typing import Any

from retinue.exceptions import UnsupportedError

REFUSED = {
    "gang_scheduling_config": (
        "gang_scheduling_config is not supported: replicas are started one by one; "
        "give each the processes that it needs in placement_group_bundles"
    ),
    "deployment_actors": (
        "deployment_actors is not supported: start a named actor, "
        "retinue.remote(...).options(name=..., get_if_exists=True), in the deployment's constructor"
    ),
    "tracing_config": (
        "tracing_config is not supported: spans are not exported; traceparent headers are carried on, and "
        "serve.get_trace_context() is the parent for spans that your code makes"
    ),
}


class AbsentNameError(UnsupportedError, AttributeError):
    """A public name that Ray Serve has and Retinue does not: `hasattr` is False for it."""


def refuse(name: str, value: Any) -> None:
    """Raises UnsupportedError unless the option was left out, or None."""
    if value is not None:
        raise UnsupportedError(REFUSED[name])
