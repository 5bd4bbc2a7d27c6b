"""Starts worker processes, by a zygote or by exec, and hears how the agent's children end.

One zygote per preload list (and env_vars, where packages read them while they are imported). One that dies
costs only time: what it had not forked is given to its successor, and after a second quick death to exec.
Lives here: processes' starts and ends. Does not: which to start (`pool`), what a worker is (`processes`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Collection

import msgspec

from retinue.core.node import zygote
from retinue.core.node.orphans import children_of
from retinue.core.node.zygote import (
    THREAD_VARIABLES,
    Ended,
    Fork,
    Forked,
    ForkFailed,
    NodeHome,
    Ready,
    Unfit,
    kill_group,
)
from retinue.core.node.zygote_start import ZygoteProcess, key_of, path_code, start_zygote
from retinue.core.wire.messages import WorkerEnv, WorkerStart

logger = logging.getLogger(__name__)

# A child whose end is seen before its start: the zygote's report is still on its way.
MAX_UNKNOWN_ENDS = 1024
QUICK_DEATHS = 2
_DEFAULT = WorkerEnv(b"")
_EXEC_PREFIXES = ("LD_", "PYTHON", "MALLOC_", "GLIBC_")

OnForked = Callable[[int, int], None]  # start_token, pid
OnFailed = Callable[[int, str], None]  # start_token, reason
OnExit = Callable[[int, int], None]  # pid, wait status
OnUnfit = Callable[[str, str], None]  # package, reason


class Spawner:
    """Build, set the callbacks, `run` on the agent's loop, `close`."""

    def __init__(
        self,
        *,
        lifeline_fd: int,
        worker_module: str = zygote.WORKER_MODULE,
        first: ZygoteProcess | None = None,
        home: NodeHome | None = None,
    ) -> None:
        """`first`: the default zygote, if it was started already. `home`: for zygotes to tidy up."""
        self.on_forked: OnForked = lambda token, pid: None
        self.on_failed: OnFailed = lambda token, reason: None
        self.on_exit: OnExit = lambda pid, status: None
        self.on_unfit: OnUnfit = lambda package, reason: None
        self.on_orphan_ended: Callable[[], None] = lambda: None  # or a worker of which we have not heard
        self._lifeline_fd = lifeline_fd
        self._worker_module = worker_module
        self._home = home
        self._zygotes: dict[str, ZygoteProcess] = {first.key: first} if first is not None else {}
        self._quick_deaths: dict[str, int] = {}
        self._workers: set[int] = set()
        self._unknown_ends: OrderedDict[int, int] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to watch children. The default zygote is started at once: somebody will need it."""
        self._loop = loop
        # uvloop keeps SIGCHLD from `add_signal_handler`, but runs Python's own handlers as they come.
        signal.signal(signal.SIGCHLD, lambda number, frame: loop.call_soon_threadsafe(self.reap))
        for process in self._zygotes.values():
            self._watch(process)
        self._zygote(_DEFAULT)
        self.reap()  # what ended before anybody listened

    # --- starting

    def start(self, start: WorkerStart) -> None:
        """Start a worker; `on_forked` or `on_failed` follows."""
        env = start.env
        if must_exec(env) or self._quick_deaths.get(key_of(env), 0) >= QUICK_DEATHS:
            self._exec(start)
            return
        try:
            process = self._zygote(env)
        except OSError as error:
            self._later(self.on_failed, start.start_token, f"no zygote could be started: {error}")
            return
        process.forking[start.start_token] = start
        self._send(process, zygote.encode(Fork(start)))

    def _zygote(self, env: WorkerEnv) -> ZygoteProcess:
        key = key_of(env)
        existing = self._zygotes.get(key)
        if existing is not None:
            return existing
        made = start_zygote(
            env, lifeline_fd=self._lifeline_fd, worker_module=self._worker_module, home=self._home
        )
        self._zygotes[key] = made
        self._watch(made)
        return made

    def _watch(self, process: ZygoteProcess) -> None:
        assert self._loop is not None
        self._loop.add_reader(process.socket.fileno(), self._readable, process)

    def _exec(self, start: WorkerStart) -> None:
        fd = os.memfd_create("retinue-start", 0)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(msgspec.msgpack.encode(start))
            os.lseek(fd, 0, os.SEEK_SET)
            code = (
                f"{path_code()};from retinue.core.node.zygote import exec_main;"
                f"exec_main({fd}, {os.getpid()}, {self._worker_module!r})"
            )
            process = subprocess.Popen(
                [start.env.py_executable or sys.executable, "-P", "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=[fd, self._lifeline_fd],
                env={**dict.fromkeys(THREAD_VARIABLES, "1"), **os.environ, **start.env.env_vars},
                cwd="/",
            )
        except OSError as error:
            self._later(self.on_failed, start.start_token, f"{start.env.py_executable}: {error}")
            return
        finally:
            os.close(fd)
        process.returncode = 0  # we reap it ourselves: silences the ResourceWarning of an unwaited Popen
        self._later(self._forked, start.start_token, process.pid)

    def _later(self, callback: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        self._loop.call_soon(callback, *arguments)

    # --- the zygotes' sockets

    def _send(self, process: ZygoteProcess, packet: bytes) -> None:
        process.unsent.append(packet)
        if len(process.unsent) == 1:
            self._flush(process)

    def _flush(self, process: ZygoteProcess) -> None:
        assert self._loop is not None
        while process.unsent:
            try:
                process.socket.send(process.unsent[0])
            except BlockingIOError:
                self._loop.add_writer(process.socket.fileno(), self._flush, process)
                return
            except OSError as error:
                if process.key not in self._zygotes or self._zygotes[process.key] is not process:
                    return
                if isinstance(error, ConnectionError):
                    return  # its end is seen by the reader
                logger.warning("a start does not fit into a packet for the zygote: %s", error)
                self._too_large(process, process.unsent[0])
            process.unsent.pop(0)
        self._loop.remove_writer(process.socket.fileno())

    def _too_large(self, process: ZygoteProcess, packet: bytes) -> None:
        request = zygote.decode_request(packet)
        if isinstance(request, Fork):
            process.forking.pop(request.start.start_token, None)
            self._exec(request.start)

    def _readable(self, process: ZygoteProcess) -> None:
        while True:
            try:
                packet = process.socket.recv(zygote.MAX_PACKET_BYTES)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._zygote_lost(process)
                return
            self._report(process, zygote.decode_report(packet))

    def _report(self, process: ZygoteProcess, report: zygote.Report) -> None:
        match report:
            case Ready():
                process.is_ready = True
                self._quick_deaths.pop(process.key, None)
            case Forked(start_token, pid):
                process.forking.pop(start_token, None)
                self._forked(start_token, pid)
            case ForkFailed(start_token, reason):
                process.forking.pop(start_token, None)
                self.on_failed(start_token, reason)
            case Unfit(package, reason):
                logger.warning("%s cannot be preloaded: %s", package, reason)
                self.on_unfit(package, reason)

    def _zygote_lost(self, process: ZygoteProcess) -> None:
        assert self._loop is not None
        if self._zygotes.get(process.key) is process:
            del self._zygotes[process.key]
        self._loop.remove_reader(process.socket.fileno())
        self._loop.remove_writer(process.socket.fileno())
        process.socket.close()
        kill_group(process.pid)
        logger.warning("the zygote %d ended; workers go on without it", process.pid)
        if not process.is_ready:
            self._quick_deaths[process.key] = self._quick_deaths.get(process.key, 0) + 1
        forking, process.forking = process.forking, {}
        for start in forking.values():
            self.start(start)
        if process.key == key_of(_DEFAULT) and process.is_ready:
            self._zygote(_DEFAULT)  # the next worker should not have to wait for it

    def _forked(self, start_token: int, pid: int) -> None:
        self._workers.add(pid)
        self.on_forked(start_token, pid)
        status = self._unknown_ends.pop(pid, None)
        if status is not None:
            self._ended(pid, status)

    # --- ends

    def reap(self) -> None:
        """Collect children that have ended: workers, zygotes, and orphans that fell to us."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            pid = found.si_pid
            if pid in self._workers:
                # While its zombie keeps the number, nobody else's group can be hit.
                kill_group(pid)
            _, status = os.waitpid(pid, 0)
            if pid in self._workers:
                self._ended(pid, status)
            elif not self._is_zygote(pid, status):
                self._unknown_ends[pid] = status
                self.on_orphan_ended()
                if len(self._unknown_ends) > MAX_UNKNOWN_ENDS:
                    self._unknown_ends.popitem(last=False)

    def _is_zygote(self, pid: int, status: int) -> bool:
        for process in list(self._zygotes.values()):
            if process.pid == pid:
                process.process.returncode = os.waitstatus_to_exitcode(status)
                return True
        return False

    def _ended(self, pid: int, status: int) -> None:
        self._workers.discard(pid)
        for process in self._zygotes.values():
            if process.is_ready:
                self._send(process, zygote.encode(Ended(pid)))
        self.on_exit(pid, status)

    def kill(self, pid: int) -> None:
        """SIGKILL for a worker and all that it has started in its group."""
        if pid in self._workers:
            kill_group(pid)

    def zygote_pids(self) -> list[int]:
        return [process.pid for process in self._zygotes.values()]

    def close(self, *, keep: Collection[int] = ()) -> None:
        """Kill every child, what they have started, and orphans that fell to us, and wait for all of them.

        `keep` are children that somebody else ends (the head).
        """
        assert self._loop is not None
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for process in self._zygotes.values():
            self._loop.remove_reader(process.socket.fileno())
            self._loop.remove_writer(process.socket.fileno())
            process.socket.close()
            process.process.returncode = 0
        self._zygotes.clear()
        # What a dying child had started in a session of its own falls to us: look again until none is left.
        while children := children_of(os.getpid()) - set(keep):
            for pid in children:
                kill_group(pid)
                _kill(pid)
            for pid in children:
                os.waitpid(pid, 0)


def must_exec(env: WorkerEnv) -> bool:
    """A forked process cannot have these: they are read when an interpreter starts."""
    return bool(env.py_executable) or any(name.startswith(_EXEC_PREFIXES) for name in env.env_vars)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
