"""The options of tasks, actors and methods: checked once, where they are written.

Lives here: names, types, defaults, and what is refused. Does not: acting on them. A wrong option raises
TypeError or ValueError naming it; one of Ray's that Retinue does not support (yet) UnsupportedError.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

from retinue.core.errors import UnsupportedError
from retinue.core.runtime_env import validated

_NOT_YET = "it is not supported yet"
ACCELERATOR_SHARE = 0.001
FINEST = 0.0001  # of any resource: what a node counts in


def _number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number, got {value!r}")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} is finite and not negative, got {value!r}")
    if 0 < value < FINEST:
        raise ValueError(f"{name} is 0 or at least {FINEST}, got {value!r}")


def _gpus(name: str, value: Any) -> None:
    _number(name, value)
    if value > 1 and value != int(value):
        raise ValueError(f"{name} above 1 is a whole number, got {value!r}")


def _whole(minimum: int) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} is a whole number, got {value!r}")
        if value < minimum:
            raise ValueError(f"{name} is at least {minimum}, got {value!r}")

    return check


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} is a string, got {value!r}")


def _non_empty_text(name: str, value: Any) -> None:
    _text(name, value)
    if not value:
        raise ValueError(f"{name} cannot be empty")


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is True or False, got {value!r}")


def check_resources(name: str, value: Any) -> None:
    """Refuse what cannot be the custom resources of a task, actor or node."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is a dict from resource name to amount, got {value!r}")
    for key, amount in value.items():
        _non_empty_text(f"a key of {name}", key)
        if key in ("CPU", "GPU"):
            raise ValueError(f"{name} cannot hold {key}: use num_{key.lower()}s")
        if key == "memory":
            raise ValueError(f"{name} cannot hold memory: use the option memory")
        _number(f"{name}[{key!r}]", amount)


def _num_returns(name: str, value: Any) -> None:
    if value == "dynamic":
        raise UnsupportedError("num_returns='dynamic' was replaced by num_returns='streaming'")
    if value != "streaming":
        _whole(0)(name, value)


def _retry_exceptions(name: str, value: Any) -> None:
    if isinstance(value, bool):
        return
    if isinstance(value, list | tuple) and all(
        isinstance(e, type) and issubclass(e, BaseException) for e in value
    ):
        return
    raise TypeError(f"{name} is True, False or a list of exception types, got {value!r}")


def _strategy(name: str, value: Any) -> None:
    if value not in ("DEFAULT", "SPREAD"):
        if isinstance(value, str):
            raise ValueError(f"{name} is 'DEFAULT' or 'SPREAD', got {value!r}")
        raise UnsupportedError(f"{name}={value!r}: {_NOT_YET}; use 'DEFAULT' or 'SPREAD'")


def _groups(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is a dict from group name to number of threads, got {value!r}")
    for key, size in value.items():
        _non_empty_text(f"a key of {name}", key)
        _whole(1)(f"{name}[{key!r}]", size)


def _lifetime(name: str, value: Any) -> None:
    if value not in ("detached", "non_detached"):
        raise ValueError(f"{name} is 'detached', 'non_detached' or None, got {value!r}")


def _runtime_env(name: str, value: Any) -> None:
    validated(value)


def _refuse(reason: str) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        raise UnsupportedError(f"{name}={value!r}: {reason}")

    return check


def _bounded_or_endless(name: str, value: Any) -> None:
    _whole(-1)(name, value)


_COMMON: dict[str, Callable[[str, Any], None]] = {
    "num_cpus": _number,
    "num_gpus": _gpus,
    "memory": _number,
    "resources": check_resources,
    "accelerator_type": _non_empty_text,
    "name": _text,
    "runtime_env": _runtime_env,
    "scheduling_strategy": _strategy,
    "label_selector": _refuse(_NOT_YET),
    "fallback_strategy": _refuse(_NOT_YET),
    "enable_task_events": _flag,
    "object_store_memory": _refuse("set it for the node, in init() or `retinue start`"),
    "placement_group": _refuse(_NOT_YET),
    "placement_group_bundle_index": _refuse(_NOT_YET),
    "_metadata": lambda name, value: None,
    "_labels": lambda name, value: None,
}
TASK: dict[str, Callable[[str, Any], None]] = {
    **_COMMON,
    "num_returns": _num_returns,
    "max_calls": _whole(0),
    "max_retries": _bounded_or_endless,
    "retry_exceptions": _retry_exceptions,
    "_generator_backpressure_num_objects": _bounded_or_endless,
}
ACTOR: dict[str, Callable[[str, Any], None]] = {
    **_COMMON,
    "name": _non_empty_text,
    "concurrency_groups": _groups,
    "lifetime": _lifetime,
    "max_concurrency": _whole(1),
    "max_restarts": _bounded_or_endless,
    "max_task_retries": _bounded_or_endless,
    "max_pending_calls": _bounded_or_endless,
    "namespace": _non_empty_text,
    "get_if_exists": _flag,
    "allow_out_of_order_execution": _flag,
    "enable_tensor_transport": _refuse(_NOT_YET),
}
METHOD: dict[str, Callable[[str, Any], None]] = {
    "num_returns": _num_returns,
    "concurrency_group": _non_empty_text,
    "max_task_retries": _bounded_or_endless,
    "retry_exceptions": _retry_exceptions,
    "name": _text,
    "enable_task_events": _flag,
    "_generator_backpressure_num_objects": _bounded_or_endless,
    "tensor_transport": _refuse(_NOT_YET),
}


def check(options: Mapping[str, Any], known: Mapping[str, Callable[[str, Any], None]], what: str) -> None:
    """Check options given for a task, actor or method. None stands for the default and always passes."""
    for name, value in options.items():
        validate = known.get(name)
        if validate is None:
            near = difflib.get_close_matches(name, known, 1)
            names = ", ".join(n for n in known if n[0] != "_")
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {names}"
            raise ValueError(f"{what} have no option {name!r}{hint}")
        if value is not None:
            validate(name, value)


def resources_of(options: Mapping[str, Any], *, default_cpus: float) -> dict[str, float]:
    """The resources that options ask for; amounts of zero are left out."""
    cpus = options.get("num_cpus")
    amounts = {
        "CPU": default_cpus if cpus is None else cpus,
        "GPU": options.get("num_gpus") or 0,
        "memory": options.get("memory") or 0,
        **(options.get("resources") or {}),
    }
    accelerator = options.get("accelerator_type")
    if accelerator:
        amounts[f"accelerator_type:{accelerator}"] = ACCELERATOR_SHARE
    return {name: float(amount) for name, amount in amounts.items() if amount}


def strategy_of(options: Mapping[str, Any]) -> str:
    strategy = options.get("scheduling_strategy")
    return "" if strategy in (None, "DEFAULT") else str(strategy)
