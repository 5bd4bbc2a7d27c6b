"""Find the actors that have a name."""

from __future__ import annotations

from retinue.core import api


def list_named_actors(all_namespaces: bool = False) -> list[str] | list[dict[str, str]]:
    """Return the names of the named actors that are alive, detached or not.

    Of this driver's namespace as plain names; with `all_namespaces` those of the whole cluster, each as
    `{"namespace": ..., "name": ...}`.
    """
    return api.list_named_actors(all_namespaces)
