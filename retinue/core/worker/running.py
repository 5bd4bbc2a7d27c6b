"""What every executor does with a call: load its arguments, make its reply, remember what happened.

Lives here: definitions, arguments, results, errors, events. Does not: threads, loops, whose turn it is.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from retinue.core import references
from retinue.core.client.arguments import ArgSlot
from retinue.core.client.runtime import INLINE_LIMIT_BYTES, Runtime
from retinue.core.errors import (
    ObjectLostError,
    RetinueError,
    RetinueSystemError,
    RetinueTaskError,
    format_remote_traceback,
    safe_repr,
)
from retinue.core.ids import return_id
from retinue.core.serialization import (
    Found,
    Serialized,
    deserialize,
    is_error_blob,
    load_definition,
    serialize,
    serialize_error_found,
)
from retinue.core.transport.threads import Connection
from retinue.core.wire.framing import encode
from retinue.core.wire.messages import (
    REPLY_ARGUMENT_LOST,
    REPLY_CANCELLED,
    REPLY_ERROR,
    Address,
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
from retinue.core.worker.order import FrameOrder

logger = logging.getLogger(__name__)

EVENT_RING = 10_000
EVENT_FLUSH_S = 1.0
_decode_dependencies = msgspec.msgpack.Decoder(list[Dependency]).decode
# A reply's returns that are small travel in it, up to this in all: the rest goes to the store.
INLINE_TOTAL_BYTES = 1024 * 1024
# How long a process that ends waits for its last answers to leave it.
ANSWERS_S = 5.0
_OWN_FRAMES = "retinue.core.worker."

Loaded = tuple[Sequence[Any], dict[str, Any]]
Send = Callable[[bytes], None]


class ActorExit(SystemExit):
    """Raised by `exit_actor()`: ends the actor's process in order."""


def reason_to_leave(error: SystemExit) -> str:
    """Why an actor ends whose method raised this. Does not return for a code that means a crash.

    As in Ray: `sys.exit(0)` is an exit on purpose, any other code lets the actor restart if it may.
    """
    if isinstance(error, ActorExit):
        return str(error)
    if error.code == 0:
        return "sys.exit(0) was called"
    traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(error.code & 0xFF if isinstance(error.code, int) else 1)


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
        self._unanswered = 0  # calls that are over, and whose answers wait for other processes
        self._unanswered_lock = threading.Lock()
        runtime.ownership.note_borrowed = _note_borrowed

    # --- definitions

    def define(self, message: Define, payload: bytes) -> None:
        """Keep a part of a definition; it is loaded at its first call, so that its error is the call's."""
        if message.key in self._definitions:
            return  # another caller's: what is loaded has state (its module's globals) that must stay
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

    def load_args(
        self, running: RunningCall, call: Call, payload: bytes, *, is_creation: bool = False
    ) -> Loaded:
        """The call's arguments; raises what unpickling raises. Blocks while a stored one is fetched.

        For one that is lost it raises ArgumentLost, and the caller calls again once it was made again. Of an
        actor's creation (`is_creation`) there may be no caller any more: the object's owner is asked here.
        """
        options = call.options
        stored = options.args_object if options is not None else None
        if stored is None and not payload:
            return (), {}
        if stored is None:
            blob: bytes | memoryview = (
                payload if len(payload) == call.args_size else payload[: call.args_size]
            )
        else:
            blob = self._read_pickle(stored) if is_creation else self._read(stored)
        args, kwargs = self._load(running, blob)
        if len(payload) > call.args_size:
            found = _decode_dependencies(payload[call.args_size :])
            values = [self._dependency(running, d, is_creation=is_creation) for d in found]
            args = [values[a.index] if type(a) is ArgSlot else a for a in args]
            kwargs = {k: values[v.index] if type(v) is ArgSlot else v for k, v in kwargs.items()}
        return args, kwargs

    def _load(self, running: RunningCall, blob: bytes | memoryview) -> Any:
        value, new = self.runtime.ownership.load_in_scope(blob)
        if new:
            running.borrow(new)
        return value

    def _read(self, stored: StoredObject) -> memoryview:
        try:
            return self.runtime.store.read_stored(
                stored.object_id, stored.size, stored.owner, [stored.node_id], None
            )
        except ObjectLostError as error:
            raise ArgumentLost(stored) from error

    def _read_pickle(self, stored: StoredObject) -> memoryview:
        try:
            return self._read(stored)
        except ArgumentLost as lost:
            message = f"its constructor's arguments lay on node {stored.node_id.hex()[:12]}: {lost.__cause__}"
            raise ObjectLostError(stored.object_id.hex(), message=message) from None

    def _dependency(self, running: RunningCall, dependency: Dependency, *, is_creation: bool) -> Any:
        blob = dependency.blob
        if blob is not None:
            value = self._load(running, blob)
            if is_error_blob(blob):
                raise value
            return value
        stored = dependency.stored
        assert stored is not None
        if not stored.node_id:
            return self._fetch(stored)  # small, but one of so many that its owner kept it
        try:
            return self._load(running, self._read(stored))
        except ArgumentLost:
            if not is_creation:
                raise
        return self._fetch(stored)  # its owner has it made again, or says whose it was

    def _fetch(self, stored: StoredObject) -> Any:
        """As if user code had fetched it."""
        return self.runtime.get([self.runtime.add_reference(stored.object_id, stored.owner)], None)[0]

    # --- replies

    def reply(self, connection: Connection, call: Call, value: Any, exec_us: int, send: Send) -> None:
        """Make a call's result; large parts go to the store, references are handed over first.

        `send` gets the frame, at once or, where a reference's owner has to be asked, later on the I/O
        thread. Raises what serializing and storing raise; then nothing has been sent.
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
                    f"the task has num_returns={call.num_returns} but returned {len(values)} values"
                )
            parts = [serialize(v) for v in values]
        self._send_returns(connection, call, parts, exec_us, send)

    def _send_returns(
        self, connection: Connection, call: Call, parts: list[Serialized], exec_us: int, send: Send
    ) -> None:
        infos: list[ReturnInfo] = []
        blobs: list[bytes] = []
        room = INLINE_TOTAL_BYTES
        for index, part in enumerate(parts):
            is_inline = part.size <= min(INLINE_LIMIT_BYTES, room)
            if is_inline:
                room -= part.size
                blobs.append(part.to_bytes())
            node_id = b"" if is_inline else self._store(connection, return_id(call.task_id, index), part)
            infos.append(ReturnInfo(part.size, node_id))
        self._hand_over(
            connection,
            [part.found for part in parts],
            lambda refs: send(
                encode(Reply(call.task_id, 0, exec_us, _with_refs(infos, refs)), b"".join(blobs))
            ),
        )

    def _store(self, connection: Connection, object_id: bytes, part: Serialized) -> bytes:
        assert connection.hello is not None  # the caller's, whose it is
        self.runtime.store.write(object_id, part, connection.hello.sender)
        return self.runtime.node_id

    def _hand_over(
        self,
        connection: Connection,
        found: Sequence[Sequence[tuple[bytes, Address | None]]],
        then: Callable[[list[list[RefCount]]], None],
    ) -> None:
        """Have the receiver counted for the references inside each part; `then` gets how to name them."""
        everything = [f for part in found for f in part]
        if not everything:
            then([[] for _ in found])
            return
        assert connection.hello is not None
        # The references must outlive this call until they are counted for the receiver.
        with self.runtime.lock:
            for ref_id, owner in everything:
                self.runtime.table.use(ref_id, owner)

        def handed(refs: list[RefCount]) -> None:
            left = iter(refs)
            then([[next(left) for _ in part] for part in found])
            with self.runtime.lock:
                self.runtime.table.unuse_all([i for i, _ in everything])
            self.runtime.after_unlock()

        self.runtime.ownership.hand_over(everything, connection.hello.sender, self._later(handed))

    def stream_item(
        self, connection: Connection, call: Call, index: int, value: Any, order: FrameOrder
    ) -> None:
        """Send one item of a streaming generator, in its turn."""
        part = serialize(value)
        is_inline = part.size <= INLINE_LIMIT_BYTES
        payload = part.to_bytes() if is_inline else b""
        node_id = b"" if is_inline else self._store(connection, return_id(call.task_id, index + 1), part)
        if not part.found:
            order.send(encode(StreamItem(call.task_id, index, ReturnInfo(part.size, node_id)), payload))
            return
        fill = order.reserve()
        self._hand_over(
            connection,
            [part.found],
            lambda refs: fill(
                encode(
                    StreamItem(call.task_id, index, ReturnInfo(part.size, node_id, False, refs[0])), payload
                )
            ),
        )

    def reply_error(
        self, connection: Connection, call: Call, error: BaseException, exec_us: int, send: Send
    ) -> None:
        """Make the frame that tells the caller what user code raised, or that it could not be called.

        `send` gets it as with `reply`.
        """
        if isinstance(error, ArgumentLost):
            lost = error.stored.object_id + error.stored.node_id
            send(encode(Reply(call.task_id, REPLY_ARGUMENT_LOST, exec_us), lost))
            return
        blob, found = self.error_blob(call, error)

        def handed(refs: list[list[RefCount]]) -> None:
            returns = [ReturnInfo(len(blob), b"", True, refs[0])] if refs[0] else None
            send(encode(Reply(call.task_id, REPLY_ERROR, exec_us, returns), blob))

        self._hand_over(connection, [found], handed)

    def error_blob(self, call: Call, error: BaseException) -> tuple[bytes, Found]:
        """What the caller's `get` raises, and the references inside it. Forgets the error's frames."""
        if isinstance(error, RetinueError) and not isinstance(error, RetinueTaskError):
            forget_frames(error)
            return serialize_error_found(error)
        text = remote_traceback(error)
        if isinstance(error, RetinueTaskError):
            cause: BaseException | None = error.cause
            text = (
                error.traceback_str + "\nwhich was raised again by:\n" + text if error.traceback_str else text
            )
        else:
            cause = error
        facts = context.facts
        actor = safe_repr(facts.actor) if facts is not None and facts.actor is not None else None
        forget_frames(error)
        wrapped = RetinueTaskError(
            self.name_of(call),
            text,
            cause,
            os.getpid(),
            facts.node_ip if facts is not None else "",
            actor,
            safe_repr(cause),
        )
        return serialize_error_found(wrapped)

    # --- answers that leave

    def conclude(self, running: RunningCall, frame: bytes, send: Send) -> None:
        """Send a call's last frame: behind its items, and once owners count us for what we keep of its.

        The caller holds what it passed only until this frame arrives.
        """
        if running.order is not None:
            send = running.order.reserve()
        held = self.runtime.ownership.uncounted(running.borrowed) if running.borrowed else []
        if held:
            self.runtime.ownership.register(held, self._later(lambda: send(frame)))
        else:
            send(frame)

    def _later(self, then: Callable[..., None]) -> Callable[..., None]:
        """Count what waits for another process, until it was carried out."""
        with self._unanswered_lock:
            self._unanswered += 1

        def carry_out(*args: Any) -> None:
            try:
                then(*args)
            finally:
                with self._unanswered_lock:
                    self._unanswered -= 1

        return carry_out

    def has_unanswered(self) -> bool:
        """Whether a call is over whose answer waits for another process."""
        return self._unanswered > 0

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
            except BaseException:
                function = None
        return getattr(function, "__qualname__", "") or "unknown"

    # --- events

    def started(self, call: Call, now: float = 0.0) -> RunningCall:
        name = self.name_of(call)
        attempt = call.options.attempt if call.options is not None else 0
        function_name = call.method or name
        return RunningCall(call.task_id, name, function_name, attempt, False, call, now)

    def finished(self, running: RunningCall, started: float, ended: float, error: str) -> None:
        """Remember a finished call: 0.1 us. The ring is sent every second; what it cannot hold is counted."""
        self.finished_calls += 1
        if error:
            self._failed_calls += 1
        options = running.call.options if running.call is not None else None
        if options is not None and not options.events:
            return
        if len(self.events) >= EVENT_RING:
            self.dropped_events += 1
            return
        self.events.append((running.task_id, running.name, started, ended, error))

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


def remote_traceback(error: BaseException) -> str:
    """The traceback from user code on: what ran it is of no use to who reads it."""
    own = 0
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_globals.get("__name__", "").startswith(_OWN_FRAMES):
        own += 1
        tb = tb.tb_next
    return format_remote_traceback(error, skip_frames=own)


def forget_frames(error: BaseException | None) -> None:
    """Drop the traceback objects: they hold the frames, and with them every argument."""
    seen: set[int] = set()
    left = [error]
    while left:
        error = left.pop()
        if error is None or id(error) in seen:
            continue  # `raise e from e` makes a circle
        seen.add(id(error))
        error.__traceback__ = None
        left += (error.__cause__, error.__context__)


def _with_refs(infos: list[ReturnInfo], refs: list[list[RefCount]]) -> list[ReturnInfo]:
    return [
        ReturnInfo(info.size, info.node_id, False, contained) if contained else info
        for info, contained in zip(infos, refs, strict=True)
    ]


def _note_borrowed(object_ids: list[bytes]) -> None:
    running = context.running.get()
    if running is not None:
        running.borrow(object_ids)


__all__ = ["ActorExit", "CallRunner", "deserialize", "is_generator", "references"]
