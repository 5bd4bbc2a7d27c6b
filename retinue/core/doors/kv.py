"""The head's key-value table, for small values that libraries want to keep and to watch.

A value that was put is durable when `put` returns, and survives the head. Calls and watches go on through
the head's death: they wait for its successor. Lives here: the clients. Does not: the table (`head.kv`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from retinue.core.current import get_runtime
from retinue.core.doors.watching import Mailbox, Watch
from retinue.core.wire.failures import to_exception
from retinue.core.wire.messages import (
    Failure,
    KvChanged,
    KvDelete,
    KvGet,
    KvKeys,
    KvPut,
    KvUnwatch,
    KvWatch,
    Ping,
)

if TYPE_CHECKING:
    from retinue.core.client.runtime import Runtime
    from retinue.core.transport.threads import Connection


class _MadeOfRuntime(Protocol):
    def __init__(self, runtime: Runtime) -> None: ...
    def stop(self) -> None: ...


Hub = TypeVar("Hub", bound=_MadeOfRuntime)

MAX_VALUE_BYTES = 16 << 20
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class KvEvent:
    """The value that a key has now; None if it was deleted."""

    key: bytes
    value: bytes | None


class KeyValue:
    """One namespace of the table, for threads. Each call is a round trip to the head.

    Calls wait for a head that is away, at most `timeout_s`; then TimeoutError.
    """

    def __init__(self, namespace: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self.namespace = namespace
        self._timeout_s = timeout_s

    def _ask(self, message: Any, payload: bytes = b"") -> tuple[Any, bytes]:
        return get_runtime().head.call(message, payload, timeout_s=self._timeout_s)

    def get(self, key: bytes) -> bytes | None:
        answer, value = self._ask(KvGet(0, self.namespace, key))
        return value if answer.found else None

    def put(self, key: bytes, value: bytes, *, overwrite: bool = True) -> bool:
        """Keep a value. False, and nothing changed, if the key exists and `overwrite` is False."""
        answer, _ = self._ask(KvPut(0, self.namespace, key, overwrite), _checked(value))
        return bool(answer.value)

    def delete(self, key: bytes, *, by_prefix: bool = False) -> int:
        """Delete a key, or all that begin with it; returns how many there were."""
        answer, _ = self._ask(KvDelete(0, self.namespace, key, by_prefix))
        return int(answer.value)

    def keys(self, prefix: bytes = b"") -> list[bytes]:
        answer, _ = self._ask(KvKeys(0, self.namespace, prefix))
        return list(answer.keys)

    def watch(self, prefix: bytes = b"") -> Watch[KvEvent]:
        """What there is under a prefix, then every change of it.

        After the head's death its successor's state is delivered again, and what has gone as deleted.
        """
        return _watch(self.namespace, prefix)


class AsyncKeyValue:
    """As `KeyValue`, to be awaited."""

    def __init__(self, namespace: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self.namespace = namespace
        self._timeout_s = timeout_s

    async def _ask(self, message: Any, payload: bytes = b"") -> tuple[Any, bytes]:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[tuple[Any, bytes]] = loop.create_future()

        def on_response(response: Any, body: bytes) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_set_result, answered, (response, body))

        get_runtime().head.request(message, on_response, payload)
        async with asyncio.timeout(self._timeout_s):
            response, body = await answered
        if type(response) is Failure:
            raise to_exception(response)
        return response, body

    async def get(self, key: bytes) -> bytes | None:
        answer, value = await self._ask(KvGet(0, self.namespace, key))
        return value if answer.found else None

    async def put(self, key: bytes, value: bytes, *, overwrite: bool = True) -> bool:
        answer, _ = await self._ask(KvPut(0, self.namespace, key, overwrite), _checked(value))
        return bool(answer.value)

    async def delete(self, key: bytes, *, by_prefix: bool = False) -> int:
        answer, _ = await self._ask(KvDelete(0, self.namespace, key, by_prefix))
        return int(answer.value)

    async def keys(self, prefix: bytes = b"") -> list[bytes]:
        answer, _ = await self._ask(KvKeys(0, self.namespace, prefix))
        return list(answer.keys)

    def watch(self, prefix: bytes = b"") -> Watch[KvEvent]:
        return _watch(self.namespace, prefix)


def _checked(value: bytes) -> bytes:
    if len(value) > MAX_VALUE_BYTES:
        raise ValueError(f"a value has at most {MAX_VALUE_BYTES} bytes, this one has {len(value)}")
    return value


def _set_result(future: asyncio.Future[tuple[Any, bytes]], result: tuple[Any, bytes]) -> None:
    if not future.done():
        future.set_result(result)


# --- watches ---------------------------------------------------------------------------------------------


class KnownKeys:
    """The keys that a watch has told of; what a new head does not have any more is told as deleted. Pure."""

    def __init__(self) -> None:
        self._known: set[bytes] = set()
        self._unseen: set[bytes] = set()  # by the head whose state is coming

    def state_begins(self) -> None:
        self._unseen = set(self._known)

    def changed(self, key: bytes, value: bytes | None) -> KvEvent:
        self._unseen.discard(key)
        if value is None:
            self._known.discard(key)
        else:
            self._known.add(key)
        return KvEvent(key, value)

    def state_is_complete(self) -> list[KvEvent]:
        gone, self._unseen = self._unseen, set()
        self._known -= gone
        return [KvEvent(key, None) for key in sorted(gone)]


@dataclass(eq=False, slots=True)
class _Watcher:
    namespace: str
    prefix: bytes
    keys: KnownKeys
    mailbox: Mailbox[KvEvent]


class WatchHub:
    """The watches of one process, on its connection to the head; it works on the I/O thread."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._head = runtime.head
        self._io = runtime.io
        self._watchers: list[_Watcher] = []
        self._head.handlers[KvChanged] = self._changed
        self._head.on_connected.append(self._connected)

    def add(self, watcher: _Watcher) -> None:
        self._io.post(lambda: self._add(watcher))

    def _add(self, watcher: _Watcher) -> None:
        self._watchers.append(watcher)
        connection = self._head.connection
        if connection is None or connection.is_closed:
            self._head.request(Ping(0), _no_matter)  # has it connect, and that sets up the watch
        else:
            self._set_up(connection, [watcher])

    def remove(self, watcher: _Watcher) -> None:
        if not self._runtime.is_stopping:  # its I/O thread is gone
            self._io.post(lambda: self._remove(watcher))

    def _remove(self, watcher: _Watcher) -> None:
        if watcher not in self._watchers:
            return
        self._watchers.remove(watcher)
        same = [w for w in self._of(watcher.namespace) if w.prefix == watcher.prefix]
        connection = self._head.connection
        if not same and connection is not None and not connection.is_closed:
            connection.send(KvUnwatch(watcher.namespace, watcher.prefix))

    def stop(self) -> None:
        """The process leaves the cluster: whoever waits for an event stops."""
        for watcher in self._watchers:
            watcher.mailbox.close()

    def _of(self, namespace: str) -> Iterator[_Watcher]:
        return (watcher for watcher in self._watchers if watcher.namespace == namespace)

    def _connected(self, connection: Connection) -> None:
        self._set_up(connection, list(self._watchers))

    def _set_up(self, connection: Connection, watchers: list[_Watcher]) -> None:
        for watcher in watchers:
            watcher.keys.state_begins()
            connection.request(KvWatch(0, watcher.namespace, watcher.prefix), _no_matter)
        # Answers come in order: this one behind all of the state.
        connection.request(Ping(0), lambda answer, body: self._state_is_complete(answer, watchers))

    def _state_is_complete(self, answer: Any, watchers: list[_Watcher]) -> None:
        if type(answer) is Failure:
            return  # that head is gone as well
        for watcher in watchers:
            for event in watcher.keys.state_is_complete():
                watcher.mailbox.put(event.key, event)

    def _changed(self, connection: Connection, message: KvChanged, payload: bytes) -> None:
        value = None if message.deleted else payload
        for watcher in self._of(message.namespace):
            if message.key.startswith(watcher.prefix):
                watcher.mailbox.put(message.key, watcher.keys.changed(message.key, value))


def hub_of(runtime: Runtime, kind: type[Hub]) -> Hub:
    """The process's one hub of a kind; two threads that ask at once get the same."""
    with runtime.lock:
        found = runtime.extensions.get(kind)
        if found is None:
            runtime.extensions[kind] = found = kind(runtime)
        return found  # type: ignore[return-value]


def _watch(namespace: str, prefix: bytes) -> Watch[KvEvent]:
    hub = hub_of(get_runtime(), WatchHub)
    watcher = _Watcher(namespace, prefix, KnownKeys(), Mailbox())
    hub.add(watcher)
    return Watch(watcher.mailbox, lambda: hub.remove(watcher))


def _no_matter(response: Any, body: bytes) -> None:
    """What comes of it comes by itself."""
