"""Amounts of resources, and what one node has of them.

Amounts are whole numbers of 1/10,000: floats would lose or invent a CPU after enough halves and thirds.
Users, messages and reports speak floats; `to_units` and `to_floats` are the two doors between them.
Lives here: arithmetic, validation, a node's free amounts and its GPU indices. Does not: who gets them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct, field

UNIT = 10_000
MAX_AMOUNT = 2**53  # beyond it a float no longer says what the user meant (memory is in bytes)

CPU = "CPU"
GPU = "GPU"
MEMORY = "memory"
INDEXED = frozenset({GPU})  # handed out by index: a worker must know which ones are its own

Units = dict[str, int]


class ResourceError(ValueError):
    """A request, or a node's total, that means nothing on any machine."""


def to_units(amounts: Mapping[str, float]) -> Units:
    """Check and convert; amounts of 0 are left out.

    Raises ResourceError for a name or amount that can never be: empty, negative, not finite, too large,
    finer than 1/10,000, or a GPU amount above 1 that is not whole.
    """
    units: Units = {}
    for name, amount in amounts.items():
        value = _checked(name, amount)
        if value:
            units[name] = value
    return units


def _checked(name: Any, amount: Any) -> int:
    if not isinstance(name, str) or not name:
        raise ResourceError(f"a resource needs a name, got {name!r}")
    if not isinstance(amount, (int, float)) or isinstance(amount, bool):
        raise ResourceError(f"the amount of {name} must be a number, got {amount!r}")
    if not math.isfinite(amount) or amount < 0:
        raise ResourceError(f"the amount of {name} must be finite and not negative, got {amount!r}")
    if amount > MAX_AMOUNT:
        raise ResourceError(f"the amount of {name} is larger than any machine has: {amount!r}")
    if name in INDEXED and amount > 1 and amount != int(amount):
        raise ResourceError(f"amounts of {name} above 1 must be whole numbers, got {amount!r}")
    value = round(amount * UNIT)
    if amount and not value:
        raise ResourceError(f"the amount of {name} is finer than 1/{UNIT}: {amount!r}")
    return value


def to_floats(units: Mapping[str, int]) -> dict[str, float]:
    return {name: value / UNIT for name, value in units.items()}


def fits(request: Mapping[str, int], free: Mapping[str, int]) -> bool:
    return all(free.get(name, 0) >= value for name, value in request.items())


def subtract(free: Units, request: Mapping[str, int]) -> None:
    for name, value in request.items():
        free[name] = free.get(name, 0) - value


def largest_of(*requests: Mapping[str, int]) -> Units:
    """For each resource the largest amount that any of the requests names."""
    result: Units = {}
    for request in requests:
        for name, value in request.items():
            result[name] = max(value, result.get(name, 0))
    return result


def describe(units: Mapping[str, int]) -> str:
    """For messages: `{CPU: 2, GPU: 0.5}`."""
    return "{" + ", ".join(f"{name}: {_number(name, units[name])}" for name in sorted(units)) + "}"


def _number(name: str, value: int) -> str:
    if name == MEMORY or name.endswith("memory"):
        return f"{value / UNIT / 2**20:.4g} MiB"
    return f"{value / UNIT:g}"


class Allocation(Struct):
    """What one holder has been given. `shares`: of each index of GPU and its like, in units."""

    units: Units
    shares: dict[str, dict[int, int]] = field(default_factory=dict)
    is_lent: bool = False  # its CPUs are lent to others while it is blocked

    def instances(self, totals: Mapping[str, int]) -> dict[str, list[float]]:
        """As `LeaseGrant.instances` says it: the share of each index from 0."""
        found: dict[str, list[float]] = {}
        for name, shares in self.shares.items():
            count = max(-(-totals.get(name, 0) // UNIT), max(shares, default=-1) + 1)
            found[name] = [shares.get(index, 0) / UNIT for index in range(count)]
        return found


class NodeResources:
    """The free and total resources of one node.

    CPUs may go below zero, and only when a blocked holder goes on (`take_back`); nothing else may.
    """

    def __init__(self, total: Mapping[str, float]) -> None:
        self.total: Units = to_units(total)
        self.free: Units = dict(self.total)
        self._indices: dict[str, list[int]] = {
            name: _split(self.total[name]) for name in INDEXED if name in self.total
        }

    def could_ever_fit(self, request: Mapping[str, int]) -> bool:
        return fits(request, self.total)

    def fits(self, request: Mapping[str, int]) -> bool:
        """There is room now; for GPUs, also in the right pieces."""
        if not fits(request, self.free):
            return False
        return all(self._choose(name, request[name]) is not None for name in self._indices if name in request)

    def allocate(self, request: Mapping[str, int]) -> Allocation | None:
        """Take the request, or nothing (None) if it does not fit now."""
        if not fits(request, self.free):
            return None
        shares: dict[str, dict[int, int]] = {}
        for name in self._indices:
            if request.get(name):
                chosen = self._choose(name, request[name])
                if chosen is None:
                    return None
                shares[name] = chosen
        subtract(self.free, request)
        for name, chosen in shares.items():
            for index, share in chosen.items():
                self._indices[name][index] -= share
        return Allocation(dict(request), shares)

    def release(self, allocation: Allocation) -> None:
        for name, value in allocation.units.items():
            if not (allocation.is_lent and name == CPU):
                self.free[name] = self.free.get(name, 0) + value
        for name, chosen in allocation.shares.items():
            for index, share in chosen.items():
                self._indices[name][index] += share

    def lend(self, allocation: Allocation) -> bool:
        """The holder is blocked: its CPUs are free until `take_back`. False if that changes nothing."""
        if allocation.is_lent or not allocation.units.get(CPU):
            return False
        allocation.is_lent = True
        self.free[CPU] += allocation.units[CPU]
        return True

    def take_back(self, allocation: Allocation) -> bool:
        """The holder goes on, even if that is more than there is for a while."""
        if not allocation.is_lent:
            return False
        allocation.is_lent = False
        self.free[CPU] -= allocation.units[CPU]
        return True

    def available(self) -> dict[str, float]:
        """For reports: never negative."""
        return {name: max(0, value) / UNIT for name, value in self.free.items()}

    def _choose(self, name: str, amount: int) -> dict[int, int] | None:
        """Indices for `amount`: whole ones for whole numbers, the fullest that fits for a fraction."""
        free = self._indices[name]
        if amount < UNIT:
            # Best fit keeps whole indices whole for those who need them.
            candidates = [index for index, share in enumerate(free) if share >= amount]
            if not candidates:
                return None
            return {min(candidates, key=lambda index: (free[index], index)): amount}
        whole = [index for index, share in enumerate(free) if share == UNIT]
        needed = amount // UNIT
        return dict.fromkeys(whole[:needed], UNIT) if len(whole) >= needed else None

    def check_invariants(self, held: Iterable[Allocation]) -> None:
        """`held` are all allocations not yet released."""
        used: Units = {}
        for allocation in held:
            for name, value in allocation.units.items():
                if not (allocation.is_lent and name == CPU):
                    used[name] = used.get(name, 0) + value
        for name in self.free.keys() | self.total.keys():
            assert self.free.get(name, 0) + used.get(name, 0) == self.total.get(name, 0), name
            assert name == CPU or self.free[name] >= 0, name
        for name, shares in self._indices.items():
            assert all(0 <= share <= UNIT for share in shares)
            assert sum(shares) == self.free[name]


def _split(amount: int) -> list[int]:
    whole, rest = divmod(amount, UNIT)
    return [UNIT] * whole + ([rest] if rest else [])
