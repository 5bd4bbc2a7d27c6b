"""What people ask about the store: which objects are here, who pins them, who holds the most."""

from collections.abc import Hashable, Iterable

from msgspec import Struct

from retinue.core.objects.decisions import Holder, ObjectId
from retinue.core.objects.records import Client, Entry, Place

MAX_HOLDERS = 5


class ObjectInfo(Struct, frozen=True):
    object_id: ObjectId
    size: int
    state: str
    """"memory", "file", "memory and file", "restoring", or "freed" (pinned, goes with its last pin)."""
    is_primary: bool
    pins: dict[Hashable, int]
    """Pins per client, wherever they are."""


def describe(entry: Entry) -> ObjectInfo:
    places = [place for place in (entry.memory, entry.slot) if place is not None]
    if entry.restoring is not None:
        state = "restoring"
    else:
        state = " and ".join("memory" if place.file is None else "file" for place in places)
    return ObjectInfo(entry.object_id, entry.size, state, entry.is_primary, _sum_pins(places))


def snapshot(entries: Iterable[Entry], places: Iterable[Place]) -> list[ObjectInfo]:
    infos = [describe(entry) for entry in entries]
    infos += [
        ObjectInfo(place.object_id, place.size, "freed", False, dict(place.pins))
        for place in places
        if place.entry is None and place.pins
    ]
    return infos


def largest_holders(clients: Iterable[Client]) -> tuple[Holder, ...]:
    """The clients that keep the most bytes from making room, largest first."""
    holders = []
    for client in clients:
        pinned = sum(place.size for place in client.pinned.values())
        unsealed = sum(
            extent.size - sum(place.size for place in extent.places.values())
            for extent in client.extents.values()
        )
        if pinned or unsealed:
            holders.append(Holder(client.client_id, pinned, unsealed))
    holders.sort(key=lambda holder: holder.pinned_bytes + holder.unsealed_bytes, reverse=True)
    return tuple(holders[:MAX_HOLDERS])


def _sum_pins(places: Iterable[Place]) -> dict[Hashable, int]:
    pins: dict[Hashable, int] = {}
    for place in places:
        for client_id, count in place.pins.items():
            pins[client_id] = pins.get(client_id, 0) + count
    return pins
