"""What the chaos tests share: whose processes are alive, waiting for their ends, drivers as processes.

Tests kill by pids that the API, the node's agent or a driver itself tells, and wait for conditions.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import msgspec

from retinue.core import session as sessions
from retinue.core.transport.blocking import BlockingClient
from retinue.core.wire.messages import Address, NodeCall

ROOT = str(Path(__file__).parents[2])
TIMEOUT_S = 30.0


def wait_until(condition: Callable[[], Any], what: str = "", timeout_s: float = TIMEOUT_S) -> Any:
    """What `condition` returns, once it is true."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"it did not come true in time: {what or condition}"
        select.select([], [], [], 0.005)
    return found


# --- processes ------------------------------------------------------------------------------------


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _links(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for path in [f"{folder}/{name}" for name in names] + [f"/proc/{pid}/cwd"]:
        try:
            yield os.readlink(path)
        except OSError:
            pass


def processes_of(base: str) -> dict[int, str]:
    """The processes that have to do with a folder: by command line, environment or open files."""
    found = {}
    needle = os.fsencode(base)
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        pid = int(name)
        command = _read(f"/proc/{pid}/cmdline")
        if (
            needle in command
            or needle in _read(f"/proc/{pid}/environ")
            or any(link.startswith(base) for link in _links(pid))
        ):
            found[pid] = f"{comm(pid)}: {command.replace(bytes(1), b' ')[:200].decode(errors='replace')}"
    return found


def comm(pid: int) -> str:
    return _read(f"/proc/{pid}/comm").decode(errors="replace").strip()


def children_of(pid: int) -> list[int]:
    """Also those that have ended and that nobody has waited for."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        found += [int(word) for word in _read(f"/proc/{pid}/task/{task}/children").split()]
    return found


def mapped_memfds(pid: int) -> list[str]:
    return [link for link in _links(pid) if link.startswith("/memfd:retinue")]


class Pids:
    """Processes to wait for: the numbers may be others' by then, the descriptors not."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._fds: dict[int, int] = {}
        for pid in pids:
            try:
                self._fds[pid] = os.pidfd_open(pid)
            except ProcessLookupError:
                pass

    def wait(self, timeout_s: float = TIMEOUT_S) -> None:
        """Until all have ended."""
        deadline = time.monotonic() + timeout_s
        for pid, fd in list(self._fds.items()):
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            left = max(0.0, deadline - time.monotonic())
            assert poller.poll(left * 1000), f"process {pid} ({comm(pid)}) has not ended"
        self.close()

    def kill(self, number: int = signal.SIGKILL) -> None:
        for fd in self._fds.values():
            try:
                signal.pidfd_send_signal(fd, number)
            except ProcessLookupError:
                pass

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


def kill_and_wait(*pids: int) -> None:
    found = Pids(pids)
    found.kill()
    found.wait()


def has_ended(pid: int) -> bool:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], 0)[0])
    finally:
        os.close(fd)


@contextmanager
def leaves_nothing(base: str) -> Iterator[None]:
    """At the end of the block no process, socket, folder or shared page of `base` is left.

    What is there at the end is waited for: an end in order takes its time.
    """
    yield
    left = Pids(processes_of(base))
    left.wait()
    assert processes_of(base) == {}
    assert os.listdir(base) == []


# --- nodes ----------------------------------------------------------------------------------------


def ask_node(agent: Address, token: bytes, what: str, **arguments: str) -> Any:
    """One question to a node's agent, as the `retinue` command asks it."""
    with BlockingClient(agent, token, kind="agent") as client:
        _, payload = client.request(NodeCall(0, what, arguments))
    return msgspec.msgpack.decode(payload)


class Node:
    """A node of the only cluster in a folder, seen from outside."""

    def __init__(self, base: str) -> None:
        (found,) = sessions.find_clusters(base)
        assert found.agent is not None
        self.file = found
        self.agent_pid = found.agent_pid
        self._agent = found.agent
        self._token = sessions.cluster_token(found)

    def ask(self, what: str, **arguments: str) -> Any:
        return ask_node(self._agent, self._token, what, **arguments)

    def zygotes(self) -> list[int]:
        return list(self.ask("node")["zygotes"])

    def workers(self) -> list[int]:
        """Pids of the living ones."""
        return [
            w["pid"]
            for w in self.ask("workers")
            if w["is_alive"] and w["pid"] and w["worker_type"] == "WORKER"
        ]


# --- drivers as processes -------------------------------------------------------------------------


class DriverProcess:
    """A script that runs as a driver of its own, in a process group of its own."""

    def __init__(self, folder: Path, base: str, script: str, name: str = "driver") -> None:
        path = folder / f"{name}.py"
        path.write_text("import os, signal, sys, time\nimport retinue\n" + textwrap.dedent(script))
        env = {k: v for k, v in os.environ.items() if k != "RETINUE_ADDRESS"}
        env |= {"RETINUE_TEMP_DIR": base, "PYTHONPATH": ROOT, "PYTHONUNBUFFERED": "1"}
        self._stderr = (folder / f"{name}.err").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=env,
            start_new_session=True,
            cwd=folder,
        )
        self.pid = self.process.pid
        self.lines: list[str] = []
        self._rest = b""

    def line(self, start: str, timeout_s: float = TIMEOUT_S) -> str:
        """The rest of the first line that begins like this; earlier ones are kept in `lines`."""
        deadline = time.monotonic() + timeout_s
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        while True:
            while b"\n" in self._rest:
                raw, _, self._rest = self._rest.partition(b"\n")
                text = raw.decode(errors="replace")
                self.lines.append(text)
                if text.startswith(start):
                    return text[len(start) :].strip()
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no line {start!r} in time; there were {self.lines[-20:]}\n{self.stderr()}"
            chunk = os.read(fd, 65536)
            assert chunk, f"the driver ended before {start!r}; it said {self.lines[-20:]}\n{self.stderr()}"
            self._rest += chunk

    def stderr(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")

    def interrupt(self) -> None:
        """Ctrl-C: the terminal sends it to the whole foreground group."""
        os.killpg(self.pid, signal.SIGINT)

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """Until it has ended: its exit code."""
        return self.process.wait(timeout_s)

    def output(self) -> str:
        """All that it printed, once it has ended and nobody else holds its output."""
        assert self.process.stdout is not None
        self._rest += self.process.stdout.read()
        return "\n".join([*self.lines, self._rest.decode(errors="replace")])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._stderr.close()
