"""The caller's end of a door connection: calls, streams, deadlines, and what becomes of them when it breaks.

Lives here: that. Does not: windows and frames (`protocol`, `flow`), finding and opening sockets (`process`).
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import socket
import time
from collections.abc import AsyncIterable, Callable
from typing import Any, Self

from retinue.core.doors.errors import (
    DoorBodyTooLargeError,
    DoorCancelledError,
    DoorClosedError,
    DoorRefusedError,
    DoorTimeoutError,
)
from retinue.core.doors.flow import MAX_ITEM_BYTES, PIECE_BYTES, WINDOW_ITEMS, ClockOffset, Inbox
from retinue.core.doors.ledger import Ledger
from retinue.core.doors.protocol import DoorProtocol, Flow, as_bytes
from retinue.core.errors import RetinueTaskError, UnserializableException
from retinue.core.serialization import deserialize
from retinue.core.wire import messages
from retinue.core.wire.messages import (
    DOOR_ANSWER,
    DOOR_CALL,
    DOOR_EXCHANGE,
    DOOR_OK,
    DOOR_PART,
    DOOR_STREAM,
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
)

logger = logging.getLogger(__name__)

SWEEP_S = 0.02  # deadlines of calls in flight are looked at this often at most (a timer each: 2.4 us a call)
CLOCK_INTERVAL_S = 30.0
# The network itself failed: what the other side did with what it had got, nobody can know.
_UNKNOWN_FATE = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)


OnAnswer = Callable[["bytes | DoorStream | None", "BaseException | None"], None]


class Call:
    """A call in flight. `waiter` is who awaits its reply, or its next item."""

    __slots__ = (
        "call_id",
        "deadline",
        "door",
        "error",
        "flow",
        "inbox",
        "is_accepted",
        "is_over",
        "is_stream",
        "pump",
        "waiter",
    )

    def __init__(self, call_id: int, door: str, form: int, deadline: float) -> None:
        self.call_id = call_id
        self.door = door
        self.deadline = deadline
        self.is_stream = form in (DOOR_STREAM, DOOR_EXCHANGE)  # or turns out to be one (DOOR_ANSWER)
        self.is_accepted = False
        self.is_over = False
        self.error: BaseException | None = None
        self.inbox: Inbox | None = None  # of a stream, or of a reply that comes in pieces
        self.flow: Flow | None = None  # of a body that goes in pieces
        self.pump: asyncio.Task[None] | None = None  # sends that body
        self.waiter: asyncio.Future[Any] | None = None

    def wake(self) -> None:
        """Let the reader of a stream look again."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class Then:
    """Stands where a future would: calls a function with a call's answer at once, in the same turn."""

    __slots__ = ("_call", "_function", "_protocol")

    def __init__(self, protocol: CallerProtocol, call: Call, function: OnAnswer) -> None:
        self._protocol = protocol
        self._call = call
        self._function: OnAnswer | None = function

    def done(self) -> bool:
        return self._function is None

    def set_result(self, answer: bytes | None) -> None:
        self._tell(DoorStream(self._protocol, self._call) if answer is None else answer, None)

    def set_exception(self, error: BaseException) -> None:
        self._tell(None, error)

    def _tell(self, answer: bytes | DoorStream | None, error: BaseException | None) -> None:
        function, self._function = self._function, None
        if function is None:
            return
        try:
            function(answer, error)
        except Exception:
            logger.exception("what a door's answer was given to failed")

    def cancel(self) -> None:
        """Give the call up: its handler is cancelled, and the function is not called any more."""
        self._function = None
        self._protocol.cancel(self._call)


class DoorConnection:
    """A connection to another process's doors; for the loop that it was made on.

    `loads`: the last load that each door has reported. `on_closed` is called once when it is over. Close it
    with `close`; a connection that is lost fails its calls with DoorClosedError.
    """

    def __init__(self, protocol: CallerProtocol, address: Address) -> None:
        self._protocol = protocol
        self.address = address
        self.loads = protocol.loads

    @property
    def is_closed(self) -> bool:
        return self._protocol.is_closed

    @property
    def ongoing(self) -> int:
        """How many calls are in flight."""
        return len(self._protocol.calls)

    def on_closed(self, function: Callable[[], None]) -> None:
        """Call `function` when the connection is over; soon, if it is."""
        if self._protocol.is_closed:
            self._protocol.loop.call_soon(function)
        else:
            self._protocol.on_closed.append(function)

    async def call(
        self,
        door: str,
        method: str,
        body: bytes = b"",
        *,
        deadline: float = 0.0,
        request_id: str = "",
        trace: str = "",
    ) -> bytes:
        """Call `method` of `door`, and wait for its reply.

        `deadline` is a reading of `time.monotonic()`, 0 for none. Raises what the handler raised (also as
        RetinueTaskError), DoorRefusedError, DoorTimeoutError, or DoorClosedError, whose `is_retryable` tells
        whether the call had been accepted. Cancelling the wait cancels the handler.
        """
        call = self._protocol.begin(DOOR_CALL, door, method, body, deadline, request_id, trace)
        return await self._protocol.wait_reply(call)  # type: ignore[no-any-return]

    def stream(
        self,
        door: str,
        method: str,
        body: bytes = b"",
        *,
        deadline: float = 0.0,
        request_id: str = "",
        trace: str = "",
    ) -> DoorStream:
        """Call `method` of `door`, which answers with items: iterate over what this returns."""
        call = self._protocol.begin(DOOR_STREAM, door, method, body, deadline, request_id, trace)
        return DoorStream(self._protocol, call)

    def exchange(
        self,
        door: str,
        method: str,
        items: AsyncIterable[bytes],
        *,
        deadline: float = 0.0,
        request_id: str = "",
        trace: str = "",
    ) -> DoorStream:
        """Send items and get items, both as they come; `items` is read only as fast as the handler reads."""
        call = self._protocol.begin(DOOR_EXCHANGE, door, method, b"", deadline, request_id, trace, items)
        return DoorStream(self._protocol, call)

    async def ask(
        self,
        door: str,
        method: str,
        body: bytes = b"",
        *,
        deadline: float = 0.0,
        request_id: str = "",
        trace: str = "",
    ) -> bytes | DoorStream:
        """As `call`, where the handler's `call` decides: it returns bytes, or an async iterator of items."""
        call = self._protocol.begin(DOOR_ANSWER, door, method, body, deadline, request_id, trace)
        answer = await self._protocol.wait_reply(call)
        return DoorStream(self._protocol, call) if answer is None else answer

    def ask_soon(
        self,
        door: str,
        method: str,
        body: bytes,
        then: OnAnswer,
        *,
        deadline: float = 0.0,
        request_id: str = "",
        trace: str = "",
    ) -> Then:
        """As `ask`, without a task: `then(answer, error)` is called once, later, one of both None.

        It runs in the midst of reading the connection: it must not wait, nor raise. What this returns can be
        cancelled; then `then` is not called. Raises at once what a call that cannot begin raises.
        """
        protocol = self._protocol
        call = protocol.begin(DOOR_ANSWER, door, method, body, deadline, request_id, trace)
        waiter = Then(protocol, call, then)
        call.waiter = waiter  # type: ignore[assignment]
        return waiter

    async def ping(self) -> float:
        """Seconds that a message there and back took."""
        return await self._protocol.ping()

    def close(self) -> None:
        """Close; calls in flight fail."""
        self._protocol.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()


class DoorStream:
    """The items of a streamed answer: `async for` them, or `read()` all that there are by now.

    Ends with what the handler raised, after the items before it. Leaving it early (`aclose`, the end of an
    `async with` block, cancelling whoever waits in it, dropping it) cancels the handler.
    """

    __slots__ = ("_call", "_protocol")

    def __init__(self, protocol: CallerProtocol, call: Call) -> None:
        self._protocol = protocol
        self._call = call

    @property
    def is_accepted(self) -> bool:
        """Whether the call is known to have reached its handler."""
        return self._protocol.is_accepted(self._call)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        call = self._call
        inbox = call.inbox
        assert inbox is not None
        while not inbox.ready:
            if call.is_over:
                self._raise_end()
                raise StopAsyncIteration
            await self._protocol.wait_items(call)
        item = inbox.take()
        if not call.is_over:
            self._protocol.give_credit(call.call_id, inbox)
        return item

    async def read(self) -> list[bytes]:
        """All items that are there, at least one; none at the end."""
        call = self._call
        inbox = call.inbox
        assert inbox is not None
        while not inbox.ready:
            if call.is_over:
                self._raise_end()
                return []
            await self._protocol.wait_items(call)
        items = inbox.take_all()
        if not call.is_over:
            self._protocol.give_credit(call.call_id, inbox)
        return items

    def _raise_end(self) -> None:
        error, self._call.error = self._call.error, None
        if error is not None:
            raise error

    async def aclose(self) -> None:
        """Cancel what is left of it."""
        self._protocol.cancel(self._call)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._protocol.cancel(self._call)

    def __del__(self) -> None:
        if not self._call.is_over and not self._protocol.loop.is_closed():
            # The collector may run on any thread, and inside any code of the loop's.
            self._protocol.loop.call_soon_threadsafe(self._protocol.cancel, self._call)


class CallerProtocol(DoorProtocol):
    """The caller's end. `welcomed` gives None once the other side's loop has the connection."""

    def __init__(self, sock: socket.socket, *, max_item_bytes: int = MAX_ITEM_BYTES) -> None:
        super().__init__(sock)
        self.calls: dict[int, Call] = {}
        self.loads: dict[str, int] = {}
        self.on_closed: list[Callable[[], None]] = []
        self.clock = ClockOffset()
        self.ledger: Ledger | None = None  # of handlers on this machine
        self.welcomed: asyncio.Future[None] = self.loop.create_future()
        self._max_item_bytes = max_item_bytes
        self._ids = itertools.count(1)
        self._pings: dict[float, asyncio.Future[float]] = {}
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._sweep_at = 0.0
        self._clock_timer: asyncio.TimerHandle | None = None
        self.handlers.update(
            {
                DoorReply: self._replied,
                DoorItem: self._item_came,
                DoorAccepted: self._accepted,
                DoorWelcome: self._welcome,
                DoorPong: self._pong,
            }
        )

    # --- beginning and waiting

    def begin(
        self,
        form: int,
        door: str,
        method: str,
        body: bytes,
        deadline: float,
        request_id: str,
        trace: str,
        items: AsyncIterable[bytes] | None = None,
    ) -> Call:
        if self.is_closed:
            raise DoorClosedError(f"no connection for a call to {door!r}", is_retryable=True)
        call_id = next(self._ids)
        call = Call(call_id, door, form, deadline)
        theirs = 0.0
        if deadline:
            if deadline <= time.monotonic():
                raise DoorTimeoutError(f"the deadline of a call to {door!r} had passed before it was sent")
            theirs = deadline + self.clock.offset_s
            if self._sweep_timer is None or deadline < self._sweep_at:
                self._sweep_soon(deadline)
        credit = 0
        if form != DOOR_CALL:
            credit = WINDOW_ITEMS
            call.inbox = Inbox(max_item_bytes=self._max_item_bytes)
        if type(body) is not bytes:
            body = as_bytes(body)
        has_more = items is not None
        first: bytes | memoryview = body
        if len(body) > PIECE_BYTES:
            has_more = True
            first = memoryview(body)[:PIECE_BYTES]
        send = self.send if self.calls else self.send_lone
        send(DoorCall(call_id, door, method, theirs, request_id, trace, credit, form, has_more), first)
        self.calls[call_id] = call
        if has_more:
            call.flow = Flow(self, call_id, WINDOW_ITEMS)
            if items is None:
                call.flow.window.bytes_left -= PIECE_BYTES
                sending = self._send_body(call.flow, memoryview(body)[PIECE_BYTES:])
            else:
                sending = self._send_items(call, call.flow, items)
            call.pump = self.loop.create_task(sending)
        return call

    async def _send_body(self, flow: Flow, rest: memoryview) -> None:
        try:
            await flow.send(rest)
        except DoorClosedError:
            pass  # the call has been told

    async def _send_items(self, call: Call, flow: Flow, items: AsyncIterable[bytes]) -> None:
        try:
            async for item in items:
                if not flow.offer(item):
                    await flow.send(item)
            flow.finish()
        except DoorClosedError:
            pass
        except Exception as error:  # noqa: BLE001 - the caller's generator: the caller gets it
            if not call.is_over:
                self.cancel(call, error)
        finally:
            if hasattr(items, "aclose"):
                await items.aclose()

    async def wait_reply(self, call: Call) -> Any:
        """The reply's payload; None if items have come instead."""
        call.waiter = self.loop.create_future()
        try:
            return await call.waiter
        except asyncio.CancelledError:
            self.cancel(call)
            raise

    async def wait_items(self, call: Call) -> None:
        if call.waiter is not None:
            raise RuntimeError("another task reads this stream already")
        call.waiter = self.loop.create_future()
        try:
            await call.waiter
        except asyncio.CancelledError:
            self.cancel(call)
            raise
        finally:
            call.waiter = None

    def give_credit(self, call_id: int, inbox: Inbox) -> None:
        credit = inbox.credit()
        if credit is not None:
            self.send(DoorCredit(call_id, *credit))

    # --- ends

    def cancel(self, call: Call, error: BaseException | None = None) -> None:
        """Give it up: the handler is told, and whoever still waits gets `error` (or the stream ends)."""
        if not call.is_over:
            self.send(DoorCancel(call.call_id))
            self._finish(call, error)

    def _finish(self, call: Call, error: BaseException | None, payload: bytes = b"") -> None:
        call.is_over = True
        self.calls.pop(call.call_id, None)
        if call.flow is not None:
            call.flow.forget()
        if call.pump is not None and call.pump is not asyncio.current_task(self.loop):
            call.pump.cancel()
        waiter = call.waiter
        if call.is_stream:
            call.error = error
            call.wake()
        elif waiter is not None and not waiter.done():
            if error is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(payload)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_closed and exc is not None:
            self._read_rest()
        super().connection_lost(exc)

    def _read_rest(self) -> None:
        """What the other side had sent before it ended, which a failed write of ours would hide."""
        while not self.is_closed:
            try:
                data = self.sock.recv(1 << 16, socket.MSG_DONTWAIT)
            except OSError:
                return
            if not data:
                return
            self.data_received(data)

    def ended(self, exc: Exception | None) -> None:
        for timer in (self._sweep_timer, self._clock_timer):
            if timer is not None:
                timer.cancel()
        fate_is_known = not (isinstance(exc, OSError) and exc.errno in _UNKNOWN_FATE)
        for call in list(self.calls.values()):
            is_retryable = fate_is_known and not self.is_accepted(call)
            state = "before" if is_retryable else "after"
            text = f"the connection to door {call.door!r} ended {state} the call could be accepted"
            self._finish(call, DoorClosedError(text, is_retryable=is_retryable))
        waiting: list[asyncio.Future[Any]] = [self.welcomed, *self._pings.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(DoorClosedError("the connection was lost", is_retryable=True))
                future.exception()  # nobody may be waiting
        for function in self.on_closed:
            self.loop.call_soon(function)
        if self.ledger is not None:
            self.ledger.close()
            self.ledger = None

    def is_accepted(self, call: Call) -> bool:
        """Whether it is known that the call has reached its handler."""
        if call.is_accepted:
            return True
        return self.ledger is not None and call.flow is None and self.ledger.last_call >= call.call_id

    def close(self) -> None:
        # What the other side makes of calls that we abandon, nobody will know.
        for call in self.calls.values():
            call.is_accepted = True
        super().close()

    # --- messages

    def _replied(self, reply: DoorReply, payload: bytes) -> None:
        call = self.calls.get(reply.call_id)
        if call is None:
            return  # cancelled, or past its deadline
        self.loads[call.door] = reply.load
        if reply.status != DOOR_OK:
            self._finish(call, self._error_of(call, reply, payload))
        elif call.inbox is not None and not call.is_stream:
            self._finish(call, None, call.inbox.last(payload))
        else:
            self._finish(call, None, payload)

    @staticmethod
    def _error_of(call: Call, reply: DoorReply, payload: bytes) -> BaseException:
        door = f"door {call.door!r}"
        match reply.status:
            case messages.DOOR_ERROR:
                error: BaseException = deserialize(payload)
                if isinstance(error, UnserializableException):
                    # Its class is not known here: what people would have read.
                    return RetinueTaskError(call.door, reply.text)
                return error
            case messages.DOOR_REFUSED:
                return DoorRefusedError(payload)
            case messages.DOOR_LATE:
                return DoorTimeoutError(f"the call reached {door} behind its deadline; it was not run")
            case messages.DOOR_CANCELLED:
                return DoorCancelledError(f"the handler of {door} was cancelled in its own process")
        return DoorClosedError(f"there is no {door} in that process", is_retryable=True)

    def _item_came(self, message: DoorItem, payload: bytes) -> None:
        call = self.calls.get(message.call_id)
        if call is None:
            return
        call.is_accepted = True
        inbox = call.inbox
        if inbox is None:
            inbox = call.inbox = Inbox(max_item_bytes=self._max_item_bytes)
        if message.kind == DOOR_PART:
            try:
                inbox.part(payload)
            except DoorBodyTooLargeError as error:
                self.cancel(call, error)
            else:
                self.give_credit(call.call_id, inbox)
            return
        if message.sizes is not None:
            inbox.items(message.sizes, payload)
        else:
            inbox.item(payload)
        if call.is_stream:
            call.wake()
        else:
            self._turns_out_streamed(call)

    @staticmethod
    def _turns_out_streamed(call: Call) -> None:
        """An answer comes as items: the reader gets a stream."""
        call.is_stream = True
        waiter, call.waiter = call.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _accepted(self, message: DoorAccepted, payload: bytes) -> None:
        calls = self.calls
        for call_id in message.call_ids:
            call = calls.get(call_id)
            if call is not None:
                call.is_accepted = True

    def _welcome(self, message: DoorWelcome, payload: bytes) -> None:
        if self.welcomed.done():
            return
        if message.problem:
            self.welcomed.set_exception(DoorClosedError(message.problem, is_retryable=True))
        else:
            self.welcomed.set_result(None)

    # --- clocks

    async def ping(self) -> float:
        if self.is_closed:
            raise DoorClosedError("the connection is closed", is_retryable=True)
        sent = time.monotonic()
        answer: asyncio.Future[float] = self.loop.create_future()
        self._pings[sent] = answer
        self.send_now(DoorPing(sent))
        try:
            return await answer
        finally:
            self._pings.pop(sent, None)

    def _pong(self, message: DoorPong, payload: bytes) -> None:
        now = time.monotonic()
        if self._clock_timer is not None:
            self.clock.sample(sent=message.sent, received=now, theirs=message.clock)
        answer = self._pings.get(message.sent)
        if answer is not None and not answer.done():
            answer.set_result(now - message.sent)

    def follow_clock(self) -> None:
        """The other side is on another machine: learn how far its clock is off, and again as they drift."""
        if not self.is_closed:
            self._clock_timer = self.loop.call_later(CLOCK_INTERVAL_S, self.follow_clock)
            self.send_now(DoorPing(time.monotonic()))

    # --- deadlines

    def _sweep_soon(self, deadline: float) -> None:
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        self._sweep_at = deadline
        self._sweep_timer = self.loop.call_later(max(0.0, deadline - time.monotonic()), self._sweep)

    def _sweep(self) -> None:
        """End the calls whose time is up, and come back for the next."""
        self._sweep_timer = None
        now = time.monotonic()
        late = [call for call in self.calls.values() if 0.0 < call.deadline <= now]
        for call in late:
            self.cancel(call, DoorTimeoutError(f"door {call.door!r} had not answered by the call's deadline"))
        following = min((c.deadline for c in self.calls.values() if c.deadline), default=0.0)
        if following:
            self._sweep_soon(max(following, now + SWEEP_S))
