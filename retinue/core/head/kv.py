"""The cluster's key-value table: small values that libraries want to keep and to watch.

Lives here: namespaces, prefixes, who watches what. Does not: connections (a watcher is any hashable), or
the disk. Everything is in memory; the storage holds a copy.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Changed:
    """A key has another value, or none (`value` None), and these want to know."""

    namespace: str
    key: bytes
    value: bytes | None
    watchers: tuple[Hashable, ...]


class KeyValueTable:
    def __init__(self) -> None:
        self._namespaces: dict[str, dict[bytes, bytes]] = {}
        self._watches: dict[str, dict[tuple[Hashable, bytes], None]] = {}  # (watcher, prefix), in order

    def load(self, namespace: str, key: bytes, value: bytes) -> None:
        self._namespaces.setdefault(namespace, {})[key] = value

    def put(self, namespace: str, key: bytes, value: bytes, *, overwrite: bool) -> Changed | None:
        """None if the key exists and may not be overwritten."""
        values = self._namespaces.setdefault(namespace, {})
        if key in values and not overwrite:
            return None
        values[key] = value
        return self._changed(namespace, key, value)

    def get(self, namespace: str, key: bytes) -> bytes | None:
        return self._namespaces.get(namespace, {}).get(key)

    def delete(self, namespace: str, key: bytes, *, by_prefix: bool) -> list[Changed]:
        keys = self.keys(namespace, key) if by_prefix else [key]
        values = self._namespaces.get(namespace, {})
        deleted = [key for key in keys if values.pop(key, None) is not None]
        if not values:
            self._namespaces.pop(namespace, None)
        return [self._changed(namespace, key, None) for key in deleted]

    def keys(self, namespace: str, prefix: bytes) -> list[bytes]:
        return [key for key in self._namespaces.get(namespace, {}) if key.startswith(prefix)]

    def watch(self, watcher: Hashable, namespace: str, prefix: bytes) -> list[Changed]:
        """Returns what is there already, as changes for this watcher. Watching twice is watching once."""
        self._watches.setdefault(namespace, {})[watcher, prefix] = None
        values = self._namespaces.get(namespace, {})
        return [Changed(namespace, key, values[key], (watcher,)) for key in self.keys(namespace, prefix)]

    def unwatch(self, watcher: Hashable, namespace: str, prefix: bytes) -> None:
        watches = self._watches.get(namespace, {})
        watches.pop((watcher, prefix), None)
        if not watches:
            self._watches.pop(namespace, None)

    def watcher_gone(self, watcher: Hashable) -> None:
        for namespace in list(self._watches):
            watches = self._watches[namespace]
            for entry in [entry for entry in watches if entry[0] == watcher]:
                del watches[entry]
            if not watches:
                del self._watches[namespace]

    def _changed(self, namespace: str, key: bytes, value: bytes | None) -> Changed:
        watches = self._watches.get(namespace, {})
        # A watcher of two prefixes of one key hears of it once.
        watchers = dict.fromkeys(watcher for watcher, prefix in watches if key.startswith(prefix))
        return Changed(namespace, key, value, tuple(watchers))

    def size(self) -> int:
        return sum(len(values) for values in self._namespaces.values())
