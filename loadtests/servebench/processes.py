"""Servers as children: started in a group of their own, ended with everything that they started.

Each server carries a mark in its environment, which what it starts inherits: daemons that left the group,
such as Ray's HAProxy, are found and ended by it, one process id at a time.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MARK = "SERVEBENCH_RUN"
END_TIMEOUT_S = 20.0


@dataclass
class Server:
    """A running server: its address, and what it started."""

    process: subprocess.Popen[bytes]
    port: int
    mark: str
    log: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def processes(self) -> list[psutil.Process]:
        """Everything alive that carries the server's mark, itself included."""
        return marked(self.mark)

    def pss_bytes(self) -> int:
        """The proportional set size of all of it: memory that several share is counted once."""
        return sum(pss_bytes(process) for process in self.processes())

    def last_words(self, size: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-size:]


@contextlib.contextmanager
def running(
    command: Sequence[str | os.PathLike[str]], *, port: int, folder: Path, env: Mapping[str, str], **popen
) -> Iterator[Server]:
    """Run a server until the block ends; then end it and all that it started, politely at first."""
    mark = uuid.uuid4().hex
    log = folder / f"server-{mark[:8]}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**env, MARK: mark},
            start_new_session=True,
            **{"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output, **popen},
        )
    try:
        yield Server(process, port, mark, log)
    finally:
        _end(process, mark)


def end_in_order_when_told() -> None:
    """Let SIGTERM end this process as an exception does: by way of what ends its servers."""

    def leave(*_: object) -> None:
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, leave)


def marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def pss_bytes(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return int(process.memory_full_info().pss)
    return 0


def private_bytes(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return int(process.memory_full_info().uss)
    return 0


def free_port() -> int:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while left := marked(mark):  # what left the group, and what that starts while it dies
        for stray in left:
            with contextlib.suppress(psutil.Error):
                stray.kill()
        psutil.wait_procs(left, timeout=5)
