"""What calls through handles carry. Lives here: the replica's use of `payload`. Does not: running anything."""

from __future__ import annotations

from typing import Any

from retinue import cloudpickle
from retinue.serve.messages import CallHead


def decode_arguments(head: CallHead, payload: memoryview) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return cloudpickle.loads(payload)  # type: ignore[no-any-return]


def encode_value(value: Any) -> bytes:
    return cloudpickle.dumps(value)  # type: ignore[no-any-return]


def encode_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    return cloudpickle.dumps((args, kwargs))  # type: ignore[no-any-return]


def decode_value(payload: bytes | memoryview) -> Any:
    return cloudpickle.loads(payload)
