"""Names of applications and deployments, and route prefixes: which are valid."""

from __future__ import annotations

DEFAULT_APP_NAME = "default"


def check_name(what: str, name: object) -> str:
    """The name, if it can be part of a replica's id (which "#" separates) and of a key ("/")."""
    if not isinstance(name, str):
        raise TypeError(f"{what} is a string, got {name!r}")
    if not name:
        raise ValueError(f"{what} cannot be empty")
    if "#" in name or "/" in name:
        raise ValueError(f"{what} cannot contain '#' or '/', got {name!r}")
    return name


def check_route_prefix(prefix: str | None) -> str | None:
    """The prefix, if requests can be routed by it; None stands for no HTTP."""
    if prefix is None:
        return None
    if not isinstance(prefix, str):
        raise TypeError(f"route_prefix is a string or None, got {prefix!r}")
    if not prefix.startswith("/"):
        raise ValueError(f"route_prefix begins with '/', got {prefix!r}")
    if prefix != "/" and prefix.endswith("/"):
        raise ValueError(f"route_prefix does not end with '/' unless it is just that, got {prefix!r}")
    if "{" in prefix or "}" in prefix:
        raise ValueError(f"route_prefix cannot contain wildcards, got {prefix!r}")
    return prefix
