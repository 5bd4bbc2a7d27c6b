"""One door connection on its event loop, both ends: frames in, frames out, items within their windows.

What is written within one turn of the loop goes out in one write. Data waits in its senders, not in the
transport, once `HIGH_WATER_BYTES` wait there: so cancels, credit and pings overtake it. Lives here: that.
Does not: what calls are (`calling`, `serving`), how the socket came (`process`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from retinue.core.doors.errors import DoorClosedError
from retinue.core.doors.flow import PIECE_BYTES, SendWindow
from retinue.core.wire.framing import FrameDecoder, ProtocolError, encode
from retinue.core.wire.messages import DOOR_END, DOOR_ITEM, DOOR_PART, DoorCredit, DoorItem, Message

logger = logging.getLogger(__name__)

HIGH_WATER_BYTES = 512 * 1024
# Frames at least this long are not joined with others: that would only copy them.
LONG_FRAME_BYTES = 32 * 1024
UNBOUNDED_ITEMS = 1 << 60
# So many short frames are not held until the end of the turn.
EARLY_FRAMES = 8
_SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL

Handler = Callable[[Any, bytes], None]


def as_bytes(value: object) -> bytes:
    """Raises TypeError for what is neither bytes nor like them."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"doors carry bytes, not {type(value).__name__}")
    return bytes(value)


class DoorProtocol(asyncio.Protocol):
    """Base of both ends. Messages go to `handlers` by type; an exception in one ends the connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.loop = asyncio.get_running_loop()
        self.sock = sock
        self.handlers: dict[type, Handler] = {DoorCredit: self._credited}
        self.flows: dict[int, Flow] = {}  # of calls with windows, by call id
        self.is_closed = False
        self.is_paused = False
        self._transport: asyncio.Transport | None = None
        self._decoder = FrameDecoder()
        self._out: list[bytes] = []
        self._gathering: list[Flow] = []
        self._is_flushing = False  # a flush is on its way
        self._senders: deque[asyncio.Future[None]] = deque()  # while paused, in turn

    # --- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's are none by class
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)  # type: ignore[union-attr]

    def data_received(self, data: bytes) -> None:
        handlers = self.handlers
        self._decoder.feed(data)
        try:
            for message, payload in self._decoder.frames():
                handlers[type(message)](message, payload)
                if self.is_closed:
                    return
        except (ProtocolError, KeyError) as error:
            logger.warning("closing a door connection: %r", error)
            self.close()
        except Exception:
            logger.exception("closing a door connection: its message could not be handled")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)

    def close(self) -> None:
        """Close after what is buffered has been written."""
        self._flush()
        if self._transport is not None:
            self._transport.close()
        self._end(None)

    def _end(self, exc: Exception | None) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        self.resume_writing()
        for flow in list(self.flows.values()):
            flow.wake()
        self.ended(exc)

    def ended(self, exc: Exception | None) -> None:
        """Called once, when the connection is over."""

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self._next_sender()

    # --- writing

    def send(self, message: Message, payload: bytes | memoryview = b"") -> None:
        """Write at the end of this turn. Ignored once closed."""
        frame = encode(message, payload)
        if len(frame) >= LONG_FRAME_BYTES:
            self._flush()
            if self._transport is not None and not self.is_closed:
                self._transport.write(frame)
            return
        out = self._out
        out.append(frame)
        if len(out) >= EARLY_FRAMES and not self._gathering:
            self._out = []
            self._write(b"".join(out))
        elif not self._is_flushing:
            self._is_flushing = True
            self.loop.call_soon(self._flush)

    def send_lone(self, message: Message, payload: bytes | memoryview = b"") -> None:
        """As `send`, but at once if nothing waits: for the only call of a connection.

        It spares a turn of the loop: 1.5 us of 17 at each end.
        """
        if self._is_flushing or self._transport is None or len(payload) >= LONG_FRAME_BYTES:
            self.send(message, payload)
        else:
            self._write(encode(message, payload))

    def send_now(self, message: Message) -> None:
        """Write before anything else of this loop runs."""
        if self._transport is not None and not self.is_closed:
            self._transport.write(encode(message))

    def gather(self, flow: Flow) -> None:
        """The flow has items to be written at the end of this turn."""
        self._gathering.append(flow)
        if not self._is_flushing:
            self._is_flushing = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        if self._gathering:
            gathering, self._gathering = self._gathering, []
            self._is_flushing = True  # none that is asked for while these are written
            for flow in gathering:
                flow.emit()
            self._is_flushing = False
        out = self._out
        if out:
            self._out = []
            self._write(out[0] if len(out) == 1 else b"".join(out))

    def _write(self, data: bytes) -> None:
        """Write now, not at the end of the turn, as uvloop does: so the other side works beside us.

        With 64 HTTP connections in lock-step, proxy and replica waited for each other a fifth of the time.
        """
        transport = self._transport
        if transport is None or self.is_closed:
            return
        sent = 0
        if not transport.get_write_buffer_size():
            try:
                sent = self.sock.send(data, _SEND_FLAGS)
            except BlockingIOError:
                pass  # the transport waits for room
            except OSError:
                transport.write(data)  # it finds the same, and tells
                return
        if sent < len(data):
            transport.write(data[sent:] if sent else data)

    # --- room

    async def wait_unpaused(self) -> None:
        """Until the transport takes data; those who wait go one by one, each behind the others again."""
        if not self.is_paused:
            self.raise_if_closed()
            return
        turn: asyncio.Future[None] = self.loop.create_future()
        self._senders.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._next_sender()  # it was our turn
            raise
        self.raise_if_closed()
        # Somebody behind us may go as well, if what we write leaves room.
        self.loop.call_soon(self._next_sender)

    def raise_if_closed(self) -> None:
        if self.is_closed:
            raise DoorClosedError("the connection was closed while data was sent", is_retryable=False)

    def _next_sender(self) -> None:
        while self._senders and not self.is_paused:
            turn = self._senders.popleft()
            if not turn.done():
                turn.set_result(None)
                if not self.is_closed:
                    return

    def _credited(self, message: DoorCredit, payload: bytes) -> None:
        flow = self.flows.get(message.call_id)
        if flow is not None:
            flow.window.granted(message.items, message.size)
            flow.wake()


class Flow:
    """What one end sends of one call. Short items of one turn are gathered into one frame."""

    __slots__ = ("_gathered", "_gathered_bytes", "_protocol", "_waiter", "call_id", "window")

    def __init__(self, protocol: DoorProtocol, call_id: int, items: int = UNBOUNDED_ITEMS) -> None:
        self.call_id = call_id
        self.window = SendWindow(items)
        self._protocol = protocol
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        protocol.flows[call_id] = self

    def offer(self, item: bytes) -> bool:
        """Send an item if there is room for it now; else False: `send` it."""
        if type(item) is not bytes:
            item = as_bytes(item)
        window = self.window
        size = len(item)
        protocol = self._protocol
        if (
            size > LONG_FRAME_BYTES
            or window.items_left <= 0
            or window.bytes_left <= 0
            or protocol.is_paused
            or protocol.is_closed
        ):
            return False
        window.items_left -= 1
        window.bytes_left -= size
        gathered = self._gathered
        if not gathered:
            protocol.gather(self)
        gathered.append(item)
        self._gathered_bytes += size
        if self._gathered_bytes > LONG_FRAME_BYTES:
            self.emit()
        return True

    async def send(self, item: bytes | memoryview) -> None:
        """Send an item, in pieces if it is long, when there is room. Raises DoorClosedError."""
        rest = await self.send_parts(item)
        while not self.window.has_room():
            await self._wait_room()
        self.emit()
        self.window.items_left -= 1
        self.window.bytes_left -= len(rest)
        self._protocol.send(DoorItem(self.call_id, DOOR_ITEM), rest)

    async def send_parts(self, data: bytes | memoryview) -> memoryview:
        """Send all of it but the last piece, and wait until that one may go."""
        rest = memoryview(data)
        window = self.window
        while True:
            while window.bytes_left <= 0:
                await self._wait_room()
            await self._protocol.wait_unpaused()
            if len(rest) <= PIECE_BYTES:
                return rest
            self.emit()
            window.bytes_left -= PIECE_BYTES
            self._protocol.send(DoorItem(self.call_id, DOOR_PART), rest[:PIECE_BYTES])
            rest = rest[PIECE_BYTES:]

    def finish(self) -> None:
        """There are no more items."""
        self.emit()
        self._protocol.send(DoorItem(self.call_id, DOOR_END))

    def emit(self) -> None:
        """Write the gathered items: they go before whatever is sent next."""
        gathered = self._gathered
        if not gathered:
            return
        self._gathered = []
        self._gathered_bytes = 0
        if len(gathered) == 1:
            self._protocol.send(DoorItem(self.call_id), gathered[0])
        else:
            sizes = [len(item) for item in gathered]
            self._protocol.send(DoorItem(self.call_id, DOOR_ITEM, sizes), b"".join(gathered))

    def forget(self) -> None:
        """The call is over: nothing more is sent."""
        self._gathered = []
        self._protocol.flows.pop(self.call_id, None)

    async def _wait_room(self) -> None:
        self._protocol.raise_if_closed()
        self._waiter = self._protocol.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
