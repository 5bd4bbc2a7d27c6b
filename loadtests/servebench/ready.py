"""Start a peer's server and wait for its first right answer: an open port says little."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from servebench import http, payloads
from servebench.peers import APPS, Peer
from servebench.processes import Server, free_port, running

RETRY_S = 0.02


class ServerFailedError(RuntimeError):
    """The server ended, or gave no right answer in time."""


@contextlib.contextmanager
def served(peer: Peer, work: str, folder: Path) -> Iterator[Server]:
    """A server of one work that has answered rightly; ended with the block."""
    port = free_port()
    command, env = peer.command(work, port), peer.environ(work, folder)
    with running(command, port=port, folder=folder, env=env, cwd=APPS) as server:
        data, check = payloads.probe(work, peer.name)
        wait(server, data, check, peer.start_timeout_s)
        yield server


def wait(server: Server, data: bytes, check: payloads.Check, timeout_s: float) -> None:
    """Ask until an answer is right. ServerFailedError with the server's last words."""
    ends = time.monotonic() + timeout_s
    problem = "nothing"
    while time.monotonic() < ends:
        if server.process.poll() is not None:
            raise ServerFailedError(f"the server ended\n{server.last_words()}")
        try:
            answer = http.ask(server.address, data, timeout_s=5.0)
        except (OSError, http.HttpError) as error:
            problem = repr(error)
        else:
            if answer.is_ok and check(answer):
                return
            problem = f"{answer.status} {bytes(answer.body[:200])!r}"
        time.sleep(RETRY_S)
    raise ServerFailedError(f"no right answer in {timeout_s:g} s, but {problem}\n{server.last_words()}")
