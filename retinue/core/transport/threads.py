"""The shell for threads: drivers and workers.

An `IoThread` per process waits in epoll for control connections, listeners and timers. A `Connection`
may also be *direct*: then whoever waits for an answer reads it himself (one reader at a time, the holder
of `read_lock`), and the I/O thread only looks every 2 ms while calls are in flight. Measured, that gave
32,000 synchronous round trips per second against 17,400 with a reader thread: a hand-over between threads
costs more than the whole call.

Sending never blocks: what the kernel does not take waits in `out` until the I/O thread can write it.

Lives here: sockets, reading and writing frames, the I/O thread. Does not: what a message means.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from retinue.core.transport.answers import Answer, OnResponse
from retinue.core.wire.framing import RECV_BYTES, FrameDecoder, ProtocolError, encode
from retinue.core.wire.messages import Failure, Hello, Message, Response

logger = logging.getLogger(__name__)

# How often the I/O thread looks at direct connections that nobody reads while calls are in flight.
LOOK_INTERVAL_S = 0.002
# A blocked reader comes back this often to see whether its answer came another way.
RECHECK_S = 0.1
GATHER_BYTES = 128 * 1024
GATHER_FRAMES = 16
# malloc maps and unmaps a buffer of 256 KiB for each recv (40 us a call); a short answer needs none.
_SHORT_RECV = (16 * 1024,)
_LONG_RECV = (RECV_BYTES,)
_WAIT = (0,)
_NO_WAIT = (socket.MSG_DONTWAIT,)
_SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_READABLE = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR
_RCVTIMEO = struct.pack("ll", int(RECHECK_S), int((RECHECK_S % 1) * 1e6))

OnMessage = Callable[["Connection", Any, bytes], None]
OnClose = Callable[["Connection"], None]


class Connection:
    """One socket with frames on it. `on_message` runs on the thread that happened to read.

    `on_close` is called once, on the I/O thread or the reader. Requests (`request`, `call`) are for
    connections that the I/O thread reads.
    """

    __slots__ = (
        "_next_rid",
        "_poll",
        "_waiting",
        "context",
        "decoder",
        "fd",
        "gathered",
        "hello",
        "inbox",
        "interrupted",
        "io",
        "is_closed",
        "known",
        "loop",
        "on_close",
        "on_closing",
        "on_message",
        "out",
        "read_lock",
        "recv_size",
        "send_lock",
        "sleepers",
        "sock",
        "watched",
    )

    def __init__(self, io: IoThread, sock: socket.socket, on_message: OnMessage, on_close: OnClose) -> None:
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _RCVTIMEO)
        self.io = io
        self.sock = sock
        self.fd = sock.fileno()
        self.on_message = on_message
        self.on_close = on_close
        self.on_closing: OnClose = _nothing  # while the descriptor is still open: leave other epolls
        self.decoder = FrameDecoder()
        self.inbox: deque[bytes] = deque()
        self.out: deque[bytes] = deque()
        self.gathered: list[bytes] = []  # calls that wait to be sent together
        self.read_lock = threading.Lock()
        self.send_lock = threading.Lock()
        self.sleepers: deque[Callable[[], None]] = deque()  # would-be readers while another one reads
        self.is_closed = False
        self.interrupted = False
        self.recv_size = _SHORT_RECV
        self.hello: Hello | None = None
        self.context: Any = None
        self.known: set[bytes] = set()  # definitions that the other side has
        self.watched = 0  # epoll mask under which the I/O thread watches it
        self.loop: Any = None  # the event loop that reads it, if one does
        self._next_rid = itertools.count(1)
        self._waiting: dict[int, OnResponse] = {}
        self._poll: Any = None

    # --- sending, from any thread

    def send(self, message: Message, payload: bytes | bytearray | memoryview = b"") -> None:
        self.send_frame(encode(message, payload))

    def send_frame(self, frame: bytes) -> None:
        """Send one or more encoded frames, or queue them. Ignored once closed: `on_close` tells."""
        with self.send_lock:
            if self.gathered:
                self.gathered.append(frame)
                self._send_gathered()
            else:
                self._send(frame)

    def gather(self, frame: bytes, waiting: deque[Connection]) -> None:
        """Keep a frame to be sent with those that follow: at GATHER_FRAMES, or by `send_gathered`.

        For calls to a worker that is busy with earlier ones: a frame each would wake it, and cost it a
        read and a write, each time (1 caller to 4 actors: 18 us of the worker's time per call, 10 with).
        """
        with self.send_lock:
            self.gathered.append(frame)
            if len(self.gathered) == 1:
                waiting.append(self)
            elif len(self.gathered) >= GATHER_FRAMES:
                self._send_gathered()

    def send_gathered(self) -> None:
        """Send what `gather` kept."""
        with self.send_lock:
            if self.gathered:
                self._send_gathered()

    def _send_gathered(self) -> None:
        try:
            frame = b"".join(self.gathered)
            self.gathered.clear()
            self._send(frame)
        except BaseException:
            self.sock.shutdown(socket.SHUT_RDWR)  # interrupted: calls may be missing from the stream
            raise

    def _send(self, frame: bytes) -> None:
        """With `send_lock`."""
        if self.is_closed:
            return
        if self.out:
            self.out.append(frame)
            return
        try:
            try:
                sent = self.sock.send(frame, _SEND_FLAGS)
            except BlockingIOError:
                sent = 0
            if sent < len(frame):
                self.out.append(frame[sent:] if sent else frame)
                self.io.watch(self, add=select.EPOLLOUT)
        except OSError:
            return  # whoever reads next sees the end
        except BaseException:
            # Interrupted by a signal's exception, maybe half-way: nobody knows what was sent.
            self.sock.shutdown(socket.SHUT_RDWR)
            raise

    def flush(self) -> None:
        """Write what waits, gathered. For the I/O thread."""
        with self.send_lock:
            while self.out:
                size = 0
                gathered = []
                while self.out and size < GATHER_BYTES:
                    frame = self.out.popleft()
                    gathered.append(frame)
                    size += len(frame)
                data = gathered[0] if len(gathered) == 1 else b"".join(gathered)
                try:
                    sent = self.sock.send(data, _SEND_FLAGS)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    self.out.clear()
                    break
                if sent < len(data):
                    self.out.appendleft(data[sent:])
                    return
            # Under the lock: a sender that fills `out` again asks for the event again.
            self.io.watch(self, remove=select.EPOLLOUT)

    # --- reading, by whoever holds read_lock

    def receive(self, *, wait: bool) -> bool:
        """Read once and handle what came; False if nothing came. With `wait`, up to RECHECK_S.

        A KeyboardInterrupt loses nothing: recv stores straight into the inbox within one C call, and a
        frame is taken off only after its handler returned.
        """
        inbox = self.inbox
        try:
            inbox.extend(map(self.sock.recv, self.recv_size, _WAIT if wait else _NO_WAIT))
            received = len(inbox[-1])
            if received == _SHORT_RECV[0]:
                self.recv_size = _LONG_RECV
            elif received < _SHORT_RECV[0]:
                self.recv_size = _SHORT_RECV
        except BlockingIOError:
            if not self.interrupted:
                return False
        except OSError:
            inbox.append(b"")
        self.process()
        return True

    def read_for(self, is_wanted: Callable[[], bool], limit_s: float) -> bool:
        """Read it once, for up to `limit_s`, unless somebody else does (then False).

        For a thread that waits for an answer on it; `is_wanted` is asked once it is ours.
        """
        if self.read_lock.locked():
            return False
        # `with`, as nothing can come between taking the lock and the promise to give it back; who takes it
        # between the look and here keeps it for RECHECK_S at most.
        with self.read_lock:
            if not self.is_closed and is_wanted():
                if limit_s >= RECHECK_S:
                    self.receive(wait=True)
                elif self.interrupted or self.wait_readable(limit_s):
                    self.receive(wait=False)
        if self.sleepers:
            self._promote()
        return True

    def _promote(self) -> None:
        """Somebody else waits for an answer on this connection: he reads now."""
        try:
            self.sleepers.popleft()()
        except IndexError:
            pass  # nobody

    def wait_readable(self, timeout_s: float) -> bool:
        """Whether there is something to read within `timeout_s`."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.fd, select.POLLIN)
        return bool(self._poll.poll(max(0, timeout_s) * 1000))

    def process(self) -> None:
        """Handle what is in the inbox. An error in a handler ends the connection, never the thread."""
        inbox = self.inbox
        # Set while frames may be left over: an interrupt in here leaves it set, for the next reader.
        was_interrupted, self.interrupted = self.interrupted, True
        try:
            if was_interrupted:
                self._handle_frames()
            while inbox:
                chunk = inbox[0]
                if not chunk:
                    self.lost()
                    return
                self.decoder.feed(chunk)
                inbox.popleft()
                self._handle_frames()
            self.interrupted = False
        except ProtocolError as error:
            logger.warning("closing a connection: %s", error)
            self.lost()
        except Exception:
            logger.exception("closing a connection: its message could not be handled")
            self.lost()

    def _handle_frames(self) -> None:
        for message, payload in self.decoder.frames():
            if isinstance(message, Response):
                callback = self._waiting.pop(message.rid, None)  # type: ignore[attr-defined]
                if callback is not None:
                    callback(message, payload)
            else:
                self.on_message(self, message, payload)

    def try_receive(self) -> None:
        """Read if nobody else does; for the I/O thread and event loops."""
        if self.read_lock.acquire(blocking=False):
            try:
                if not self.is_closed:
                    self.receive(wait=False)
            finally:
                self.read_lock.release()

    def read_on(self, loop: Any) -> None:
        """Have an event loop read it, from that loop's thread; a connection has one loop at a time."""
        with self.send_lock:  # against its end, which another thread may be about to tell
            if self.is_closed or self.loop is loop:
                return
            if self.loop is not None and not self.loop.is_closed():
                return  # another thread's loop reads it already
            self.loop = loop
            loop.add_reader(self.fd, self.try_receive)

    # --- requests, answered on the I/O thread

    def request(self, message: Any, on_response: OnResponse, payload: bytes = b"") -> None:
        """Send a request; `on_response(response, payload)` runs on the I/O thread.

        If the connection ends first it gets a Failure of kind ConnectionError.
        """
        rid = message.rid = next(self._next_rid)
        with self.send_lock:
            is_closed = self.is_closed
            if not is_closed:
                self._waiting[rid] = on_response
        if is_closed:
            on_response(Failure(rid, "ConnectionError", "the connection is closed"), b"")
        else:
            self.send(message, payload)

    def call(
        self,
        message: Any,
        payload: bytes = b"",
        *,
        timeout_s: float | None = None,
        on_abandoned: OnResponse | None = None,
        check: Callable[[], None] | None = None,
    ) -> tuple[Any, bytes]:
        """Send a request and wait for (response, payload), on any thread but the I/O thread.

        Raises the error that a Failure names, ConnectionError, TimeoutError, or what `check` raises, which
        is called every RECHECK_S. An answer that comes after the wait was given up (late, or interrupted)
        goes to `on_abandoned`, so that what it gave is not lost.
        """
        assert threading.current_thread() is not self.io.thread, "the I/O thread must not wait for itself"
        answer = Answer(on_abandoned)
        self.request(message, answer, payload)
        late = f"no answer to {type(message).__name__} within {timeout_s} s"
        try:
            return answer.wait(late, timeout_s, check=check, check_every_s=RECHECK_S)
        finally:
            if not answer.has_come and on_abandoned is None:
                self._waiting.pop(message.rid, None)

    # --- the end

    def lost(self) -> None:
        """The connection is over: close it, fail its requests, tell `on_close` once."""
        with self.send_lock:
            if self.is_closed:
                return
            self.is_closed = True
            waiting, self._waiting = self._waiting, {}
        self.io.forget(self)
        self.on_closing(self)
        if self.loop is None or self.loop.is_closed():
            self.sock.close()
        else:
            # libuv aborts the process when a descriptor that it watches is closed.
            try:
                self.loop.call_soon_threadsafe(self._leave_loop)
            except RuntimeError:
                self.sock.close()  # the loop has closed meanwhile
        for rid, callback in waiting.items():
            failure = Failure(rid, "ConnectionError", "the connection was lost")
            self.io.guard(lambda callback=callback, failure=failure: callback(failure, b""))  # type: ignore[misc]
        self.on_close(self)

    def _leave_loop(self) -> None:
        self.loop.remove_reader(self.fd)
        self.sock.close()

    def detach(self) -> socket.socket:
        """Give the socket away, from the thread that reads: nothing is told, nothing is read any more."""
        with self.send_lock:
            self.is_closed = True
        self.io.forget(self)
        return self.sock

    def close(self) -> None:
        """End it from this side: what was accepted by the kernel is still delivered."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side was first
        self.io.post(self.lost)

    # --- epoll, called by the I/O thread

    def on_events(self, mask: int) -> None:
        if mask & select.EPOLLOUT:
            self.flush()
        if mask & _READABLE:
            self.try_receive()


def _nothing(connection: Connection) -> None:
    """No other epoll knows it."""


class Watcher:
    """A descriptor that is not a Connection (listener, pidfd, lifeline) with a callback."""

    __slots__ = ("callback", "fd", "is_closed", "watched")

    def __init__(self, fd: int, callback: Callable[[], None]) -> None:
        self.fd = fd
        self.callback = callback
        self.watched = 0
        self.is_closed = False

    def on_events(self, mask: int) -> None:
        self.callback()


class IoThread:
    """The process's one I/O thread: epoll, timers, posted functions, and a tick while it is busy.

    `ticker(now)` runs after every wake-up and says in how many seconds it wants to run again.
    """

    def __init__(self, name: str, ticker: Callable[[float], float]) -> None:
        self._epoll = select.epoll()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._event, select.EPOLLIN)
        self._handlers: dict[int, Connection | Watcher] = {}
        self._lock = threading.Lock()
        self._posted: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_ids = itertools.count()
        self._ticker = ticker
        self._stopping = False
        self._is_poked = False  # something happened since the tick began
        self.is_sleeping = False  # in a long wait: submitters must wake it
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """End the thread and wait for it (unless it is the caller)."""
        self._stopping = True
        self.wake()
        if threading.current_thread() is not self.thread and self.thread.is_alive():
            self.thread.join(timeout=5)

    def close(self) -> None:
        """Close the descriptors, after `stop`. Threads that come late may still post."""
        self._epoll.close()
        with self._lock:
            event, self._event = self._event, -1
        os.close(event)

    def wake(self) -> None:
        os.eventfd_write(self._event, 1)

    def wake_if_sleeping(self) -> None:
        self._is_poked = True
        if self.is_sleeping:
            self.is_sleeping = False
            os.eventfd_write(self._event, 1)

    def post(self, function: Callable[[], None]) -> None:
        """Run a function on the I/O thread, soon; never, once it was told to stop."""
        self._posted.append(function)
        if threading.current_thread() is not self.thread:
            with self._lock:
                if self._event >= 0:
                    os.eventfd_write(self._event, 1)

    def call_later(self, delay_s: float, function: Callable[[], None]) -> None:
        """Run a function on the I/O thread after `delay_s`."""
        with self._lock:
            heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._timer_ids), function))
        if threading.current_thread() is not self.thread:
            self.wake()

    def watch(self, handler: Connection | Watcher, *, add: int = 0, remove: int = 0) -> None:
        """Change the events that a descriptor is watched for; watching ends with the last."""
        with self._lock:
            mask = (handler.watched | add) & ~remove
            if handler.is_closed or handler.watched == mask:
                return
            if handler.watched == 0:
                self._epoll.register(handler.fd, mask)
                self._handlers[handler.fd] = handler
            elif mask == 0:
                self._epoll.unregister(handler.fd)
                del self._handlers[handler.fd]
            else:
                self._epoll.modify(handler.fd, mask)
            handler.watched = mask

    def forget(self, handler: Connection | Watcher) -> None:
        with self._lock:
            if handler.watched:
                try:
                    self._epoll.unregister(handler.fd)
                except OSError:
                    pass  # closed already: epoll forgot it by itself
                self._handlers.pop(handler.fd, None)
                handler.watched = 0

    def connections(self) -> list[Connection]:
        with self._lock:
            return [h for h in self._handlers.values() if isinstance(h, Connection)]

    def _run(self) -> None:
        interval = 0.0
        while not self._stopping:
            # Said before looking: whoever comes after this look wakes us.
            self.is_sleeping = interval > LOOK_INTERVAL_S
            if self._is_poked or self._posted or (self._timers and self._timers[0][0] <= time.monotonic()):
                interval = 0.0
            elif self._timers:
                interval = min(interval, max(0.0, self._timers[0][0] - time.monotonic()))
            for fd, mask in self._epoll.poll(interval):
                if fd == self._event:
                    try:
                        os.eventfd_read(self._event)
                    except BlockingIOError:
                        pass  # two wake-ups, one read
                    continue
                handler = self._handlers.get(fd)
                if handler is not None:
                    self.guard(lambda handler=handler, mask=mask: handler.on_events(mask))  # type: ignore[misc]
            self.is_sleeping = False
            self._run_due()
            self._is_poked = False
            try:
                interval = self._ticker(time.monotonic())
            except Exception:
                logger.exception("the I/O thread's tick failed")
                interval = 0.1

    def _run_due(self) -> None:
        for _ in range(len(self._posted)):
            self.guard(self._posted.popleft())
        while self._timers and self._timers[0][0] <= time.monotonic():
            with self._lock:
                _, _, function = heapq.heappop(self._timers)
            self.guard(function)

    @staticmethod
    def guard(function: Callable[[], None]) -> None:
        try:
            function()
        except Exception:
            logger.exception("a callback on the I/O thread failed")
