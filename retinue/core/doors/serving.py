"""The handlers' end of door connections: doors by name, a task for each call, and its reply.

A call's task begins in the turn after its bytes came; the notice that it was accepted is written before.
Lives here: that. Does not: windows and frames (`protocol`, `flow`), how sockets come here (`process`).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import socket
import time
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, Protocol, Self

from retinue.core.doors import ledger
from retinue.core.doors.errors import DoorBodyTooLargeError, DoorClosedError, DoorRefusedError
from retinue.core.doors.flow import MAX_ITEM_BYTES, PIECE_BYTES, WINDOW_ITEMS, Inbox
from retinue.core.doors.ledger import Ledger
from retinue.core.doors.protocol import DoorProtocol, Flow, as_bytes
from retinue.core.errors import RetinueError, RetinueTaskError, format_remote_traceback
from retinue.core.serialization import serialize_error
from retinue.core.wire.messages import (
    DOOR_ANSWER,
    DOOR_CALL,
    DOOR_CANCELLED,
    DOOR_END,
    DOOR_ERROR,
    DOOR_EXCHANGE,
    DOOR_LATE,
    DOOR_OK,
    DOOR_PART,
    DOOR_REFUSED,
    DOOR_STREAM,
    DOOR_UNKNOWN,
    Address,
    DoorAccepted,
    DoorCall,
    DoorCancel,
    DoorCredit,
    DoorItem,
    DoorPing,
    DoorPong,
    DoorReply,
    DoorWelcome,
    Hello,
)

logger = logging.getLogger(__name__)

MAX_CALLS = 16_384  # of one connection at once; more are refused
MAX_TEXT_CHARS = 32_768  # of a traceback
TOO_MANY_CALLS = b"too many calls on one connection"


class DoorContext:
    """What a handler knows of a call beside its body."""

    __slots__ = ("_call", "caller")

    def __init__(self, call: DoorCall, caller: Address) -> None:
        self._call = call
        self.caller = caller  # the process that called

    @property
    def deadline(self) -> float:
        """As `time.monotonic()` of this machine reads; 0 = none. Nested calls get what is left of it."""
        return self._call.deadline

    @property
    def request_id(self) -> str:
        return self._call.request_id

    @property
    def trace(self) -> str:
        """W3C traceparent."""
        return self._call.trace

    def time_left(self) -> float | None:
        """Seconds until the deadline, negative behind it; None without one."""
        return self._call.deadline - time.monotonic() if self._call.deadline else None


class DoorHandler(Protocol):
    """What answers behind a door: any of `call`, `stream` and `exchange`; and `load`, if it has one.

        async def call(self, method: str, body: bytes, context: DoorContext) -> bytes
        def stream(self, method: str, body: bytes, context: DoorContext) -> AsyncIterator[bytes]
        def exchange(self, method: str, items: AsyncIterator[bytes], context: DoorContext)
                -> AsyncIterator[bytes]
        load: int         goes with every reply

    `stream` and `exchange` are async generators, usually. For callers who `ask`, `call` may return an async
    iterator instead of bytes. Cancelled means that the caller has left, or given up.
    """


class Door:
    """An open door. `close` it, or use it as an (async) context."""

    def __init__(self, host: DoorHost, name: str, handler: object, max_body_bytes: int) -> None:
        self.name = name
        self.handler: Any = handler
        self.max_body_bytes = max_body_bytes
        self.ongoing = 0  # calls whose handlers run
        self.is_closed = False
        self._host = host
        self._has_load = hasattr(handler, "load")
        self._idle: asyncio.Event = asyncio.Event()
        self._idle.set()

    def load(self) -> int:
        """What the handler says of itself. A mistake in it must not cost a reply."""
        if not self._has_load:
            return 0
        try:
            return int(self.handler.load)
        except Exception:  # user code
            logger.exception("door %r cannot tell its load", self.name)
            return 0

    def began(self) -> None:
        self.ongoing += 1
        if self.ongoing == 1:
            self._idle.clear()

    def ended(self) -> None:
        self.ongoing -= 1
        if not self.ongoing:
            self._idle.set()
            if self.is_closed:
                self._host.leave_if_done()

    def close(self) -> None:
        """Take no more calls: their callers get DoorClosedError (retryable). What runs goes on."""
        if not self.is_closed:
            self.is_closed = True
            self._host.closed(self)

    async def wait_idle(self) -> None:
        """Until no call runs; for an end in order after `close`."""
        await self._idle.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()


class DoorHost:
    """A process's doors, all on one loop, and the connections that come to them."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.doors: dict[str, Door] = {}
        self.connections: set[HandlerProtocol] = set()
        self._adopting: set[asyncio.Task[None]] = set()
        self._leaving: list[Door] = []

    def open(self, name: str, handler: object, *, max_body_bytes: int = MAX_ITEM_BYTES) -> Door:
        if name in self.doors:
            raise ValueError(f"door {name!r} is open already in this process")
        kinds = [kind for kind in ("call", "stream", "exchange") if callable(getattr(handler, kind, None))]
        if not kinds:
            raise TypeError(f"a door's handler has call(), stream() or exchange(), but {handler!r} has none")
        door = self.doors[name] = Door(self, name, handler, max_body_bytes)
        return door

    def closed(self, door: Door) -> None:
        del self.doors[door.name]
        if door.ongoing:
            self._leaving.append(door)
        self.leave_if_done()

    def leave_if_done(self) -> None:
        """After the last call of the last door the connections end."""
        self._leaving = [door for door in self._leaving if door.ongoing]
        if not self.doors and not self._leaving:
            # Not within the call that ended: its reply goes first.
            self.loop.call_soon(self._leave)

    def _leave(self) -> None:
        if not self.doors and not self._leaving:
            self.close()

    def close(self) -> None:
        """End all connections."""
        for connection in list(self.connections):
            connection.close()

    def stop(self) -> None:
        """As `close`, soon, from any thread."""
        if not self.loop.is_closed():
            try:
                self.loop.call_soon_threadsafe(self.close)
            except RuntimeError:
                pass  # it has ended meanwhile, and its connections with it

    # --- connections

    def adopt_soon(self, sock: socket.socket, hello: Hello) -> None:
        """From any thread: serve this connected socket. Its peer sends nothing before it is welcomed."""
        try:
            self.loop.call_soon_threadsafe(self._adopt, sock, hello)
        except RuntimeError:
            sock.close()  # the loop has ended

    def _adopt(self, sock: socket.socket, hello: Hello) -> None:
        task = self.loop.create_task(self._adopt_or_drop(sock, hello))
        self._adopting.add(task)
        task.add_done_callback(self._adopting.discard)

    async def _adopt_or_drop(self, sock: socket.socket, hello: Hello) -> None:
        try:
            await self.adopt(sock, hello)
        except OSError as error:
            logger.info("a caller of doors was gone before it was welcomed: %s", error)
            sock.close()

    async def adopt(self, sock: socket.socket, hello: Hello) -> None:
        sock.setblocking(False)
        protocol = HandlerProtocol(self, sock, hello.sender)
        welcome = DoorWelcome(time.monotonic())
        if sock.family == socket.AF_UNIX:
            protocol.ledger = ledger.hand_out(sock, welcome)
            await self.loop.create_unix_connection(lambda: protocol, sock=sock)
        else:
            await self.loop.create_connection(lambda: protocol, sock=sock)
        if protocol.ledger is None:
            protocol.send_now(welcome)


class HandlerProtocol(DoorProtocol):
    """One connection of a caller."""

    def __init__(self, host: DoorHost, sock: socket.socket, caller: Address) -> None:
        super().__init__(sock)
        self._host = host
        self._caller = caller
        self._tasks: dict[int, tuple[asyncio.Task[None], Door]] = {}
        self._bodies: dict[int, Body] = {}  # of calls whose body is still coming
        self.ledger: Ledger | None = None  # of a caller on this machine
        self._accepted: list[int] = []  # to be told by message
        self.handlers.update(
            {
                DoorCall: self._called,
                DoorItem: self._item_came,
                DoorCancel: self._cancel,
                DoorPing: self._ping,
            }
        )
        host.connections.add(self)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._accepted:
            # Now, before any handler runs: who loses us afterwards knows.
            accepted, self._accepted = self._accepted, []
            self.send_now(DoorAccepted(accepted))

    def ended(self, exc: Exception | None) -> None:
        self._host.connections.discard(self)
        if self.ledger is not None:
            self.ledger.close()
        for body in list(self._bodies.values()):
            body.broken(DoorClosedError("the caller is gone", is_retryable=False))
        self._bodies.clear()
        for call_id in list(self._tasks):
            self._cancel_task(call_id)

    # --- messages

    def _ping(self, message: DoorPing, payload: bytes) -> None:
        self.send_now(DoorPong(message.sent, time.monotonic()))

    def _called(self, call: DoorCall, payload: bytes) -> None:
        door = self._host.doors.get(call.door)
        if door is None:
            self.send(DoorReply(call.call_id, DOOR_UNKNOWN))
        elif call.deadline and call.deadline <= time.monotonic():
            self.send(DoorReply(call.call_id, DOOR_LATE, door.load()))
        elif len(self._tasks) + len(self._bodies) >= MAX_CALLS:
            self.send(DoorReply(call.call_id, DOOR_REFUSED, door.load()), TOO_MANY_CALLS)
        elif not call.has_more:
            self._start(door, call, payload)
        else:
            body = self._bodies[call.call_id] = Body(self, door, call)
            if call.form == DOOR_EXCHANGE:
                self._start(door, call, body)
            else:
                self._take_part(body, payload)

    def _start(self, door: Door, call: DoorCall, body: Any) -> None:
        if self.ledger is not None and not call.has_more:
            self.ledger.last[0] = call.call_id
        else:
            self._accepted.append(call.call_id)
        door.began()
        self._tasks[call.call_id] = (self.loop.create_task(self._run(door, call, body)), door)

    def _item_came(self, message: DoorItem, payload: bytes) -> None:
        body = self._bodies.get(message.call_id)
        if body is None:
            return  # the call is over
        if message.kind == DOOR_PART:
            self._take_part(body, payload)
        elif message.kind == DOOR_END:
            body.end()
        elif body.call.form == DOOR_EXCHANGE:
            body.items(message, payload)
        else:
            del self._bodies[message.call_id]
            self._start(body.door, body.call, body.inbox.last(payload))

    def _take_part(self, body: Body, payload: bytes) -> None:
        try:
            body.inbox.part(payload)
        except DoorBodyTooLargeError as error:
            self._body_too_large(body, error)
        else:
            self.give_credit(body.call.call_id, body.inbox)

    def _body_too_large(self, body: Body, error: DoorBodyTooLargeError) -> None:
        call_id = body.call.call_id
        if body.call.form == DOOR_EXCHANGE:
            body.broken(error)  # its handler gets it
        else:
            del self._bodies[call_id]
            self.send(DoorReply(call_id, DOOR_ERROR, body.door.load(), str(error)), serialize_error(error))

    def give_credit(self, call_id: int, inbox: Inbox) -> None:
        credit = inbox.credit()
        if credit is not None:
            self.send(DoorCredit(call_id, *credit))

    def _cancel(self, message: DoorCancel, payload: bytes) -> None:
        if message.call_id in self._tasks:
            self._cancel_task(message.call_id)
        else:
            self._bodies.pop(message.call_id, None)

    def _cancel_task(self, call_id: int) -> None:
        task, door = self._tasks[call_id]

        def ended(task: asyncio.Task[None]) -> None:
            if call_id in self._tasks:  # it had not begun, so its own end never ran
                self._over(door, call_id, DOOR_CANCELLED)

        task.cancel()
        task.add_done_callback(ended)

    # --- running

    async def _run(self, door: Door, call: DoorCall, body: Any) -> None:
        status = DOOR_OK
        payload: bytes | memoryview = b""
        text = ""
        try:
            context = DoorContext(call, self._caller)
            if call.form == DOOR_CALL:
                payload = await door.handler.call(call.method, body, context)
            else:
                payload = await self._answer(door.handler, call, body, context)
            if type(payload) is not bytes:
                payload = as_bytes(payload)
            if len(payload) > PIECE_BYTES:
                payload = await self._send_long(call.call_id, payload)
        except DoorRefusedError as refusal:
            status, payload = DOOR_REFUSED, refusal.reason[:PIECE_BYTES]
        except asyncio.CancelledError:
            status, payload = DOOR_CANCELLED, b""
        except BaseException as error:  # noqa: BLE001 - user code: it belongs to the caller
            status, payload, text = DOOR_ERROR, *_describe(door, call, error)
        self._over(door, call.call_id, status, payload, text)

    def _over(
        self, door: Door, call_id: int, status: int, payload: bytes | memoryview = b"", text: str = ""
    ) -> None:
        del self._tasks[call_id]
        flow = self.flows.get(call_id)
        if flow is not None:
            flow.emit()
            flow.forget()
        self._bodies.pop(call_id, None)
        door.ended()
        send = self.send if self._tasks else self.send_lone
        send(DoorReply(call_id, status, door.load(), text), payload)

    async def _answer(self, handler: Any, call: DoorCall, body: Any, context: DoorContext) -> bytes:
        """Run it and send its items, or return what it answers in one piece."""
        if call.form == DOOR_ANSWER:
            answer = await handler.call(call.method, body, context)
            if isinstance(answer, bytes | bytearray | memoryview):
                return answer  # type: ignore[return-value]
        elif call.form == DOOR_STREAM:
            answer = handler.stream(call.method, body, context)
        elif call.form == DOOR_EXCHANGE:
            answer = handler.exchange(call.method, body, context)
        else:
            raise DoorRefusedError(b"this process does not know that form of call")
        if inspect.isawaitable(answer):
            answer = await answer
        await self._send_items(call, answer)
        return b""

    async def _send_items(self, call: DoorCall, items: AsyncIterable[bytes]) -> None:
        flow = Flow(self, call.call_id, call.credit)
        try:
            async for item in items:
                if not flow.offer(item):
                    await flow.send(item)
        finally:
            if hasattr(items, "aclose"):
                await items.aclose()

    async def _send_long(self, call_id: int, payload: bytes | memoryview) -> memoryview:
        """All but the last piece, which goes with the reply."""
        return await Flow(self, call_id).send_parts(payload)


class Body:
    """The items of an exchange as the handler reads them; or a long body until it is all there."""

    def __init__(self, protocol: HandlerProtocol, door: Door, call: DoorCall) -> None:
        self.door = door
        self.call = call
        self.inbox = Inbox(window_items=WINDOW_ITEMS, max_item_bytes=door.max_body_bytes)
        self._protocol = protocol
        self._is_over = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        inbox = self.inbox
        while not inbox.ready:
            if self._error is not None:
                raise self._error
            if self._is_over:
                raise StopAsyncIteration
            self._waiter = self._protocol.loop.create_future()
            await self._waiter
        item = inbox.take()
        if not self._is_over:
            self._protocol.give_credit(self.call.call_id, inbox)
        return item

    def items(self, message: DoorItem, payload: bytes) -> None:
        if message.sizes is not None:
            self.inbox.items(message.sizes, payload)
        else:
            self.inbox.item(payload)
        self._wake()

    def end(self) -> None:
        self._is_over = True
        self._wake()

    def broken(self, error: Exception) -> None:
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _describe(door: Door, call: DoorCall, error: BaseException) -> tuple[bytes, str]:
    """An error blob as tasks have it, and its text."""
    if isinstance(error, RetinueError) and not isinstance(error, RetinueTaskError):
        return serialize_error(error), str(error)
    text = format_remote_traceback(error, skip_frames=1)  # our frame between the caller and user code
    text = text[-MAX_TEXT_CHARS:]
    name = f"{door.name}.{call.method}"
    cause = error.cause if isinstance(error, RetinueTaskError) else error
    shown = repr(cause)[:MAX_TEXT_CHARS]
    reason: BaseException | None = cause
    while reason is not None:
        reason.__traceback__ = None  # it holds the handler's frames, and with them every argument
        reason = reason.__cause__ or reason.__context__
    blob = serialize_error(RetinueTaskError(name, text, cause, os.getpid(), cause_repr=shown))
    if len(blob) > PIECE_BYTES:
        blob = serialize_error(RetinueTaskError(name, text, None, os.getpid(), cause_repr=shown))
    return blob, text
