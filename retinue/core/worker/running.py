"""What every executor does with a call: load its arguments, make its reply, remember what happened.

Lives here: definitions, arguments, results, errors, events. Does not: threads, loops, order.
"""

from __future__ import annotations

import inspect
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from retinue.core import references
from retinue.core.client.runtime import INLINE_LIMIT_BYTES, Runtime
from retinue.core.client.submission import ArgSlot
from retinue.core.errors import (
    ObjectLostError,
    RetinueError,
    RetinueSystemError,
    RetinueTaskError,
    format_remote_traceback,
)
from retinue.core.ids import return_id
from retinue.core.serialization import (
    Serialized,
    deserialize,
    is_error_blob,
    load_definition,
    serialize,
    serialize_error,
)
from retinue.core.transport.threads import Connection
from retinue.core.wire.framing import encode
from retinue.core.wire.messages import (
    REPLY_ARGUMENT_LOST,
    REPLY_CANCELLED,
    REPLY_ERROR,
    Call,
    Define,
    Dependency,
    RefCount,
    Reply,
    ReturnInfo,
    StoredObject,
    StreamItem,
    TaskEvents,
)
from retinue.core.worker import context
from retinue.core.worker.context import RunningCall

logger = logging.getLogger(__name__)

EVENT_RING = 10_000
EVENT_FLUSH_S = 1.0
_decode_dependencies = msgspec.msgpack.Decoder(list[Dependency]).decode
_NONE_BLOB = serialize(None).to_bytes()

# What an executor makes of one call: args, kwargs, and borrowed references to settle at its end.
Loaded = tuple[Sequence[Any], dict[str, Any], list[bytes]]


class ActorExit(SystemExit):
    """Raised by `exit_actor()`: ends the actor's process in order."""


class ArgumentLost(Exception):
    """A stored argument cannot be had; the caller, who owns or borrows it, sees what can be done."""

    def __init__(self, stored: StoredObject) -> None:
        super().__init__(f"argument {stored.object_id.hex()} is lost")
        self.stored = stored


class CallRunner:
    """Shared by a process's executors."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._definitions: dict[bytes, Any] = {}
        self._parts: dict[bytes, list[bytes | None]] = {}
        self.events: deque[tuple[Any, ...]] = deque()
        self.dropped_events = 0
        self._last_flush = 0.0
        self.finished_calls = 0
        self._failed_calls = 0  # since the last flush

    # --- definitions

    def define(self, message: Define, payload: bytes) -> None:
        """Keep a part of a definition; it is loaded when it is first called, so that its error is the call's."""
        parts = self._parts.setdefault(message.key, [None] * message.total)
        parts[message.index] = payload
        if all(p is not None for p in parts):
            self._definitions[message.key] = b"".join(p for p in parts if p is not None)
            del self._parts[message.key]

    def function(self, key: bytes) -> Callable[..., Any]:
        found = self._definitions.get(key)
        if type(found) is bytes:
            found = self._definitions[key] = load_definition(found)
        if found is None:
            raise RetinueSystemError(f"a call came before its definition {key.hex()}")
        return found  # type: ignore[no-any-return]

    # --- arguments

    def load_args(self, call: Call, payload: bytes) -> Loaded:
        """The call's arguments; raises what unpickling raises. Blocks while a stored one is fetched."""
        options = call.options
        stored = options.args_object if options is not None else None
        if stored is None and not payload:
            return (), {}, []
        if stored is None:
            blob: bytes | memoryview = (
                payload if len(payload) == call.args_size else payload[: call.args_size]
            )
        else:
            blob = self._read(stored)
        (args, kwargs), new = self.runtime.ownership.load_in_scope(blob)
        if len(payload) > call.args_size:
            values = [self._dependency(d, new) for d in _decode_dependencies(payload[call.args_size :])]
            args = [values[a.index] if type(a) is ArgSlot else a for a in args]
            kwargs = {k: values[v.index] if type(v) is ArgSlot else v for k, v in kwargs.items()}
        return args, kwargs, new

    def _dependency(self, dependency: Dependency, new: list[bytes]) -> Any:
        if dependency.blob is not None:
            blob: bytes | memoryview = dependency.blob
        else:
            assert dependency.stored is not None
            blob = self._read(dependency.stored)
        value, found = self.runtime.ownership.load_in_scope(blob)
        new.extend(found)
        if is_error_blob(blob):
            raise value
        return value

    def _read(self, stored: StoredObject) -> memoryview:
        try:
            return self.runtime.store.read_stored(
                stored.object_id, stored.size, stored.owner, [stored.node_id], None
            )
        except ObjectLostError as error:
            raise ArgumentLost(stored) from error

    # --- replies

    def reply(
        self, connection: Connection, call: Call, value: Any, exec_us: int, send: Callable[[bytes], None]
    ) -> None:
        """Send a call's result; large parts go to the store, references are handed over first.

        `send` gets the frame, at once or, where a reference's owner has to be asked, later on the I/O
        thread. Raises what serializing raises.
        """
        if call.num_returns == 1:
            serialized = serialize(value)
            if not serialized.found and serialized.size <= INLINE_LIMIT_BYTES:
                send(encode(Reply(call.task_id, 0, exec_us), serialized.to_bytes()))
                return
            parts = [serialized]
        elif call.num_returns == 0:
            send(encode(Reply(call.task_id, 0, exec_us)))
            return
        else:
            values = list(value) if value is not None else []
            if len(values) != call.num_returns:
                raise ValueError(
                    f"the task was declared with num_returns={call.num_returns} but returned {len(values)} values"
                )
            parts = [serialize(v) for v in values]
        self._send_returns(connection, call, parts, exec_us, send)

    def _send_returns(
        self,
        connection: Connection,
        call: Call,
        parts: list[Serialized],
        exec_us: int,
        send: Callable[[bytes], None],
    ) -> None:
        infos: list[ReturnInfo | None] = [None] * len(parts)
        payload = b"".join([b"" if p.size > INLINE_LIMIT_BYTES else p.to_bytes() for p in parts])
        left = [len(parts)]

        def returned(index: int) -> Callable[[ReturnInfo], None]:
            def keep(info: ReturnInfo) -> None:
                infos[index] = info
                left[0] -= 1
                if left[0] == 0:
                    send(
                        encode(Reply(call.task_id, 0, exec_us, [i for i in infos if i is not None]), payload)
                    )

            return keep

        for index, part in enumerate(parts):
            self._one_return(connection, return_id(call.task_id, index), part, returned(index))

    def _one_return(
        self, connection: Connection, object_id: bytes, part: Serialized, then: Callable[[ReturnInfo], None]
    ) -> None:
        """Put a large return into the store and hand its references over; `then` gets its description."""
        node_id = b""
        if part.size > INLINE_LIMIT_BYTES:
            self.runtime.store.write(object_id, part)
            node_id = self.runtime.node_id
        if not part.found:
            then(ReturnInfo(part.size, node_id))
            return
        assert connection.hello is not None
        # The references must outlive this call until they are counted for the receiver.
        with self.runtime.lock:
            for ref_id, owner in part.found:
                self.runtime.table.use(ref_id, owner)

        def handed(refs: list[RefCount]) -> None:
            then(ReturnInfo(part.size, node_id, False, refs))
            with self.runtime.lock:
                self.runtime.table.unuse_all([i for i, _ in part.found])
            self.runtime.after_unlock()

        self.runtime.ownership.hand_over(part.found, connection.hello.sender, handed)

    def stream_item(
        self, connection: Connection, call: Call, index: int, value: Any, send: Callable[[bytes], None]
    ) -> None:
        """Send one item of a streaming generator."""
        part = serialize(value)
        object_id = return_id(call.task_id, index + 1)
        payload = b"" if part.size > INLINE_LIMIT_BYTES else part.to_bytes()
        self._one_return(
            connection,
            object_id,
            part,
            lambda info: send(encode(StreamItem(call.task_id, index, info), payload)),
        )

    def error_reply(self, call: Call, error: BaseException, exec_us: int = 0) -> bytes:
        """The frame that tells the caller what user code raised, or that it could not be called."""
        if isinstance(error, ArgumentLost):
            return encode(
                Reply(call.task_id, REPLY_ARGUMENT_LOST, exec_us), error.stored.object_id + error.stored.node_id
            )
        return encode(Reply(call.task_id, REPLY_ERROR, exec_us), self.error_blob(call, error))

    def error_blob(self, call: Call, error: BaseException) -> bytes:
        name = self.name_of(call)
        if isinstance(error, RetinueError) and not isinstance(error, RetinueTaskError):
            return serialize_error(error)
        # One frame of ours stands between the caller and user code.
        text = format_remote_traceback(error, skip_frames=1)
        if isinstance(error, RetinueTaskError):
            cause: BaseException | None = error.cause
            text = (
                error.traceback_str + "\nwhich was raised again by:\n" + text if error.traceback_str else text
            )
        else:
            cause = error
        actor = (
            repr(context.facts.actor)
            if context.facts is not None and context.facts.actor is not None
            else None
        )
        _forget_frames(cause)
        wrapped = RetinueTaskError(
            name, text, cause, os.getpid(), context.facts.node_ip if context.facts else "", actor, repr(cause)
        )
        return serialize_error(wrapped)

    @staticmethod
    def cancelled_reply(call: Call) -> bytes:
        return encode(Reply(call.task_id, REPLY_CANCELLED))

    def name_of(self, call: Call) -> str:
        if call.options is not None and call.options.name:
            return call.options.name
        if call.method:
            spec = context.facts.actor_spec if context.facts is not None else None
            return f"{spec.class_name}.{call.method}" if spec is not None else call.method
        function = self._definitions.get(call.target)
        if type(function) is bytes:
            try:
                function = self.function(call.target)
            except Exception:  # noqa: BLE001 - it is raised again, as the call's own error, where it is called
                function = None
        return getattr(function, "__qualname__", "") or "unknown"

    # --- borrowed references

    def settle(self, new: list[bytes], then: Callable[[], None]) -> None:
        """Before a call's reply: have owners count us for references from its arguments that we keep."""
        held = self.runtime.ownership.uncounted(new) if new else []
        if held:
            self.runtime.ownership.register(held, then)
        else:
            then()

    # --- events

    def started(self, call: Call, now: float = 0.0) -> RunningCall:
        name = self.name_of(call)
        attempt = call.options.attempt if call.options is not None else 0
        function_name = call.method or name
        return RunningCall(call.task_id, name, function_name, attempt, False, call, now)

    def finished(self, task_id: bytes, name: str, started: float, ended: float, error: str) -> None:
        """Remember a finished call: 0.1 us; the ring is flushed every second, what it cannot hold is counted."""
        self.finished_calls += 1
        if error:
            self._failed_calls += 1
        if len(self.events) >= EVENT_RING:
            self.dropped_events += 1
            return
        self.events.append((task_id, name, started, ended, error))

    def flush_events(self, now: float) -> None:
        if now - self._last_flush < EVENT_FLUSH_S or not self.events:
            return
        self._last_flush = now
        agent = self.runtime.agent
        if agent is None:
            return
        events = [self.events.popleft() for _ in range(len(self.events))]
        dropped, self.dropped_events = self.dropped_events, 0
        failed, self._failed_calls = self._failed_calls, 0
        agent.send(TaskEvents(dropped, len(events) + dropped, failed), msgspec.msgpack.encode(events))


def is_generator(value: Any) -> bool:
    return inspect.isgenerator(value) or inspect.isasyncgen(value) or hasattr(value, "__next__")


def now_s() -> float:
    return time.time()


def _forget_frames(error: BaseException | None) -> None:
    """Drop the traceback objects: they hold the frames, and with them every argument."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


__all__ = ["ActorExit", "CallRunner", "deserialize", "is_generator", "references"]
