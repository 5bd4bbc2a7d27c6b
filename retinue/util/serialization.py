"""Say how instances of a class travel between processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import retinue.core.serialization


def register_serializer(
    cls: type, *, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]
) -> None:
    """Send instances of `cls` as `serializer(instance)` and make them again with `deserializer(state)`.

    Holds in this process only: register in each process that sends such instances. `deserializer` travels
    with them, so that it must be serializable itself and need not be registered where they arrive. A second
    registration replaces the first.
    """
    retinue.core.serialization.register_serializer(cls, serializer=serializer, deserializer=deserializer)


def deregister_serializer(cls: type) -> None:
    """Undo `register_serializer` for `cls` in this process; without effect if there is none."""
    retinue.core.serialization.deregister_serializer(cls)
