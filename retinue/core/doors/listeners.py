"""Listening sockets that outlive the process that serves them: the node keeps them, in named slots.

Lives here: asking for one. Does not: keeping them (`node.listeners`).
"""

from __future__ import annotations

import os
import socket
from typing import Any

from retinue.core.current import get_runtime
from retinue.core.doors.errors import DoorError
from retinue.core.errors import RetinueSystemError
from retinue.core.transport import endpoints
from retinue.core.wire.framing import FrameDecoder, encode
from retinue.core.wire.messages import Failure, Hello, Message, OpenListener, ReleaseListener

TIMEOUT_S = 10.0


class ListenerError(DoorError, OSError):
    """The node cannot listen there; the message says why."""


def open_listener(
    name: str,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    backlog: int = endpoints.BACKLOG,
    is_detached: bool = False,
) -> socket.socket:
    """The non-blocking listening TCP socket of slot `name` on this node; made if there is none yet.

    Whoever asks for the slot after this process is dead gets the same socket: connections that came meanwhile
    wait in it. Other slots may listen on the same port (SO_REUSEPORT); port 0 takes a free one. The slot ends
    with `release_listener`, and with this process's job unless `is_detached`: a detached actor outlives
    its job, and wants that. Raises ListenerError. A round trip to the node's agent, blocking: from a loop,
    `await asyncio.to_thread(open_listener, ...)`.
    """
    answer, listener = _ask(OpenListener(1, name, host, port, backlog, is_detached))
    if listener is None:
        raise RetinueSystemError(f"the node sent no descriptor with {type(answer).__name__}")
    return listener


def release_listener(name: str) -> bool:
    """Close the node's side of a slot; processes that have its socket keep theirs. False if there is none."""
    answer, _ = _ask(ReleaseListener(1, name))
    return bool(answer.value)


def _ask(request: Message) -> tuple[Any, socket.socket | None]:
    runtime = get_runtime()
    with endpoints.connect_unix(runtime.listeners_path, timeout_s=TIMEOUT_S) as sock:
        sock.settimeout(TIMEOUT_S)
        sock.sendall(encode(Hello("listener", runtime.address, runtime.job_id)) + encode(request))
        data, fds, _, _ = socket.recv_fds(sock, 65536, 1)
    listener = socket.socket(fileno=fds[0]) if fds else None
    if listener is not None:
        os.set_inheritable(fds[0], False)
        listener.setblocking(False)
    decoder = FrameDecoder()
    decoder.feed(data)
    answers = list(decoder.frames())
    if len(answers) != 1:
        raise RetinueSystemError("the node agent hung up")
    answer = answers[0][0]
    if isinstance(answer, Failure):
        raise ListenerError(answer.message)
    return answer, listener
