"""The options of replicas' actors: which of them a deployment may set.

Lives here: their names and checks. Does not: starting actors. The checks of the values are the core's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retinue.serve.models import hint

ALLOWED = (
    "accelerator_type",
    "fallback_strategy",
    "label_selector",
    "memory",
    "num_cpus",
    "num_gpus",
    "resources",
    "runtime_env",
)


class _Probe:
    """Stands for the replica where options are checked."""


def check_actor_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options with serve's default of one CPU.

    Raises ValueError for options that are none or not a deployment's to set, and what `retinue.remote` raises
    for wrong values.
    """
    if options is None:
        return {"num_cpus": 1}
    if not isinstance(options, Mapping):
        raise TypeError(f"ray_actor_options is a dict of options of the replicas' actors, got {options!r}")
    for name in options:
        if name not in ALLOWED:
            raise ValueError(f"ray_actor_options cannot hold {name!r}{hint(name, ALLOWED)}")
    from retinue import remote

    given = {name: value for name, value in options.items() if value is not None}
    if given:
        remote(**given)(_Probe)
    return {"num_cpus": 1, **given}


def check_first_bundle(options: Mapping[str, Any], bundles: Sequence[Mapping[str, float]] | None) -> None:
    """The replica is placed in the first bundle, so it must fit there; ValueError if it does not."""
    if not bundles:
        return
    wanted = {"CPU": options.get("num_cpus", 1), "GPU": options.get("num_gpus", 0)}
    wanted |= options.get("resources") or {}
    for name, amount in wanted.items():
        if amount and bundles[0].get(name, 0) < amount:
            raise ValueError(
                f"the replica goes into the first of placement_group_bundles, which has {name}: "
                f"{bundles[0].get(name, 0)}, but ray_actor_options ask for {amount}"
            )
