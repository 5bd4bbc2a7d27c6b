"""Read what people type: amounts of memory, resources, labels. Pure."""

from __future__ import annotations

import json
import re

_UNITS = {
    "": 1,
    "b": 1,
    "k": 1000,
    "kb": 1000,
    "kib": 1024,
    "ki": 1024,
    "m": 1000**2,
    "mb": 1000**2,
    "mib": 1024**2,
    "mi": 1024**2,
    "g": 1000**3,
    "gb": 1000**3,
    "gib": 1024**3,
    "gi": 1024**3,
    "t": 1000**4,
    "tb": 1000**4,
    "tib": 1024**4,
    "ti": 1024**4,
}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d*)?(?:e\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """An amount of memory. Raises ValueError for anything else.

    >>> parse_bytes("1.5GiB"), parse_bytes("200M"), parse_bytes("4096")
    (1610612736, 200000000, 4096)
    """
    match = _AMOUNT.fullmatch(text)
    factor = _UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"expected an amount of memory such as 500MB or 4GiB, got {text!r}")
    return round(float(match[1]) * factor)


def parse_resources(text: str) -> dict[str, float]:
    """Custom resources as a JSON object of amounts. Raises ValueError.

    >>> parse_resources('{"license": 2}')
    {'license': 2.0}
    """
    example = """such as '{"license": 2}'"""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected a JSON object of resources, {example}: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object of resources, {example}, got {text}")
    for name, amount in found.items():
        if isinstance(amount, bool) or not isinstance(amount, int | float) or amount < 0:
            raise ValueError(f"resource {name!r} needs an amount of at least 0, got {amount!r}")
    return {name: float(amount) for name, amount in found.items()}


def parse_labels(text: str) -> dict[str, str]:
    """Labels as `key=value,key=value`, or as a JSON object of strings. Raises ValueError.

    >>> parse_labels("zone=a,disk=ssd")
    {'zone': 'a', 'disk': 'ssd'}
    """
    if text.lstrip().startswith("{"):
        found = json.loads(text)
        if not all(isinstance(value, str) for value in found.values()):
            raise ValueError(f"labels are strings, got {text}")
        return dict(found)
    labels = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, sign, value = part.partition("=")
        if not (sign and key):
            raise ValueError(f"expected labels as key=value,key=value, got {part!r}")
        labels[key.strip()] = value.strip()
    return labels
