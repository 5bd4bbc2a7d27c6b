"""Listening TCP sockets that this node keeps for its processes, in named slots.

A process asks on the node's own socket and gets the descriptor (SCM_RIGHTS). The agent keeps a copy: when
the process dies, connections wait in the same queue, and the next one that asks for the slot serves them;
none is refused meanwhile. Slots may share a port (SO_REUSEPORT), which spreads connections evenly.

Lives here: the slots, and handing them out. Does not: accepting anything from them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from dataclasses import dataclass
from typing import Any

from retinue.core.transport import endpoints
from retinue.core.wire.framing import FrameDecoder, ProtocolError, encode
from retinue.core.wire.messages import Failure, Hello, ListenerOpened, Ok, OpenListener, ReleaseListener

logger = logging.getLogger(__name__)

MAX_SLOTS = 1024
RECV_BYTES = 4096


@dataclass(slots=True)
class Slot:
    listener: socket.socket
    host: str
    port: int
    job_id: bytes  # ends with it; b"" = only when it is released


class ListenerRoom:
    """Build it on the loop, `run`, `close`."""

    def __init__(self, node_dir: str) -> None:
        self.path = os.path.join(node_dir, "listeners.sock")
        self.slots: dict[str, Slot] = {}
        self._listener = endpoints.listen_unix(self.path)
        self._clients: dict[socket.socket, Client] = {}
        self._loop = asyncio.get_running_loop()

    def run(self) -> None:
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def close(self) -> None:
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        for client in list(self._clients.values()):
            self._leave(client)
        for slot in self.slots.values():
            slot.listener.close()
        self.slots.clear()

    def job_finished(self, job_id: bytes) -> None:
        for name in [name for name, slot in self.slots.items() if slot.job_id == job_id]:
            self.release(name)

    # --- slots

    def open(self, message: OpenListener, job_id: bytes) -> Slot:
        """The slot's socket, made now or before. Raises ValueError or OSError."""
        slot = self.slots.get(message.name)
        if slot is not None:
            if slot.host != message.host or message.port not in (0, slot.port):
                raise ValueError(
                    f"listener {message.name!r} is at {slot.host}:{slot.port}, "
                    f"not at {message.host}:{message.port}"
                )
            return slot
        if len(self.slots) >= MAX_SLOTS:
            raise ValueError(f"this node keeps {MAX_SLOTS} listeners already: release some")
        listener = _listen(message)
        port = listener.getsockname()[1]
        slot = Slot(listener, message.host, port, b"" if message.detached else job_id)
        self.slots[message.name] = slot
        logger.info("listener %s: %s:%d", message.name, message.host, port)
        return slot

    def release(self, name: str) -> bool:
        slot = self.slots.pop(name, None)
        if slot is None:
            return False
        logger.info("listener %s is released", name)
        slot.listener.close()
        return True

    # --- clients: a request each

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            client = self._clients[sock] = Client(sock)
            self._loop.add_reader(sock.fileno(), self._read, client)

    def _leave(self, client: Client) -> None:
        if self._clients.pop(client.sock, None) is not None:
            self._loop.remove_reader(client.sock.fileno())
            client.sock.close()

    def _read(self, client: Client) -> None:
        try:
            data = client.sock.recv(RECV_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._leave(client)
            return
        client.decoder.feed(data)
        try:
            for message, _ in client.decoder.frames():
                self._handle(client, message)
        except (ProtocolError, OSError) as error:
            logger.warning("a request for a listener could not be answered: %s", error)
            self._leave(client)

    def _handle(self, client: Client, message: Any) -> None:
        match message:
            case Hello():
                client.job_id = message.job_id
            case OpenListener():
                try:
                    slot = self.open(message, client.job_id)
                except (ValueError, OSError) as error:
                    text = f"no listener {message.name!r} at {message.host}:{message.port}: {error}"
                    client.sock.send(encode(Failure(message.rid, "OSError", text)))
                    return
                answer = encode(ListenerOpened(message.rid, slot.host, slot.port))
                socket.send_fds(client.sock, [answer], [slot.listener.fileno()])
            case ReleaseListener():
                client.sock.send(encode(Ok(message.rid, int(self.release(message.name)))))
            case _:
                raise ProtocolError(f"{type(message).__name__} is no request for a listener")


class Client:
    __slots__ = ("decoder", "job_id", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.decoder = FrameDecoder()
        self.job_id = b""


def _listen(message: OpenListener) -> socket.socket:
    family = socket.AF_INET6 if ":" in message.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((message.host, message.port))
        listener.listen(message.backlog)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
