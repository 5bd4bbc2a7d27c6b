"""Start head and node agent processes, and keep the head running.

The starter makes the listening sockets, keeps them, and passes their descriptors: a client can connect
before the process behind the socket is up, and a restarted head comes back on the same socket, so nobody
ever polls for readiness. Each process is in a session of its own and ends with its starter (a pipe is the
lifeline, and brings the config), except a daemonised agent. Lives here: that. Does not: choosing folders
(`session.py`), or what belongs to a whole node (`cluster.py`).
"""

from __future__ import annotations

import importlib.util
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from retinue.core import forks
from retinue.core.backoff import RestartBackoff
from retinue.core.config import AdminConfig, AgentConfig, HeadConfig, write_config
from retinue.core.session import Session
from retinue.core.transport.endpoints import listen_tcp, listen_unix
from retinue.core.wire.messages import Address

HEAD_MODULE = "retinue.core.head.main"
AGENT_MODULE = "retinue.core.node.main"
ADMIN_MODULE = "retinue.core.admin.main"
# What the children import besides the standard library; looked up, not imported, in the starter.
_PACKAGES = ("retinue", "msgspec", "uvloop", "psutil", "cloudpickle")
HEAD_HEALTHY_S = 0.25
HEAD_MAX_BACKOFF_S = 0.5


@dataclass(slots=True)
class Listeners:
    """The sockets on which a process will listen; the starter keeps them for the process's successors."""

    unix: socket.socket
    tcp: socket.socket | None
    address: Address

    @classmethod
    def open(
        cls, path: str, *, worker_id: bytes, node_id: bytes, tcp_host: str = "", tcp_port: int = 0
    ) -> Listeners:
        """Raises OSError if the port is taken."""
        tcp = listen_tcp(tcp_host, tcp_port) if tcp_host else None
        host, port = tcp.getsockname()[:2] if tcp is not None else ("", 0)
        return cls(listen_unix(path), tcp, Address(worker_id, node_id, path, host, port))

    def fds(self) -> list[int]:
        return [self.unix.fileno()] + ([self.tcp.fileno()] if self.tcp is not None else [])

    @property
    def tcp_fd(self) -> int:
        return self.tcp.fileno() if self.tcp is not None else -1

    def close(self) -> None:
        self.unix.close()
        if self.tcp is not None:
            self.tcp.close()


class Process:
    """A child process with a lifeline. `wait()` it, or the kernel keeps its exit code for ever."""

    def __init__(self, module: str, config: HeadConfig | AgentConfig | AdminConfig, fds: list[int]) -> None:
        lifeline_r, lifeline_w = os.pipe2(os.O_CLOEXEC)
        log = os.open(config.log_path, _LOG_FLAGS, 0o600) if config.log_path else None
        try:
            self._popen = subprocess.Popen(
                _command(module, lifeline_r, config.session_dir),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                close_fds=True,
                pass_fds=[lifeline_r, *fds],
                start_new_session=True,
                cwd="/",
            )
        except BaseException:
            os.close(lifeline_w)
            raise
        finally:
            os.close(lifeline_r)
            if log is not None:
                os.close(log)
        self.pid = self._popen.pid
        self.pidfd = os.pidfd_open(self.pid)
        self._lifeline = lifeline_w
        forks.close_in_forks(lifeline_w)
        try:
            write_config(lifeline_w, config)
        except BrokenPipeError:
            pass  # it died at once; whoever waits for it learns how

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._popen.poll()

    def terminate(self) -> None:
        """Ask it to end in order. Nothing happens if it has ended."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                pass

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Its exit code, or None if it still runs after `timeout_s`. Frees what the starter held for it."""
        if self.pidfd >= 0:
            poller = select.poll()
            poller.register(self.pidfd, select.POLLIN)
            if not poller.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000):
                return None
        code = self._popen.wait()
        self._release()
        return code

    def detach(self) -> None:
        """Let it live on after this process (one that was started with `has_parent=False`)."""
        self._popen.returncode = 0  # silences the ResourceWarning of a Popen that nobody waits for
        self._release()

    def _release(self) -> None:
        pidfd, self.pidfd = self.pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)
        lifeline, self._lifeline = self._lifeline, -1
        if lifeline >= 0:
            forks.forget(lifeline)
            os.close(lifeline)


class AgentProcess(Process):
    """A node agent. Its listening sockets are its own once it runs."""

    def __init__(self, config: AgentConfig, listeners: Listeners, head_fds: list[int] | None = None) -> None:
        lock_fds = [config.lock_fd] if config.lock_fd >= 0 else []
        self.config = config
        self.address = config.address
        super().__init__(AGENT_MODULE, config, [*listeners.fds(), *lock_fds, *(head_fds or [])])


class SupervisedProcess:
    """A service of the cluster, as one process after another on the same sockets.

    `start()` it; when `pidfd` says that it has ended, `restart_delay(now)` says how long to wait before
    the next `start()`. Not thread-safe: one supervisor at a time.
    """

    def __init__(self, module: str, config: HeadConfig | AdminConfig, fds: list[int]) -> None:
        self.is_stopping = False
        self._module = module
        self._start_config = config
        self._fds = [fd for fd in fds if fd >= 0]
        self._process: Process | None = None
        self._backoff = RestartBackoff(HEAD_HEALTHY_S, 0.05, HEAD_MAX_BACKOFF_S)

    def start(self, now: float) -> None:
        config = self._start_config
        lock_fd = _hold_lock(config.session_dir)
        try:
            told = msgspec.structs.replace(config, lock_fd=lock_fd)
            self._process = Process(self._module, told, [*self._fds, lock_fd])
        finally:
            os.close(lock_fd)
        self._backoff.started(now)

    def restart_delay(self, now: float) -> float | None:
        """Call it when the process has ended. None if it was meant to end."""
        if self._process is not None:
            self._process.wait(0)
        return None if self.is_stopping else self._backoff.ended(now)

    @property
    def process(self) -> Process:
        assert self._process is not None, "it was not started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def pidfd(self) -> int:
        return self.process.pidfd

    def kill(self) -> None:
        """End this process only; its supervisor starts another one."""
        self.process.kill()

    def stop(self) -> None:
        """Ask it to end, for good."""
        self.is_stopping = True
        self.process.terminate()

    def wait(self, timeout_s: float | None = None) -> int | None:
        return self.process.wait(timeout_s)


class HeadProcess(SupervisedProcess):
    """The head, on its sockets and storage."""

    def __init__(self, config: HeadConfig, listeners: Listeners | None = None) -> None:
        super().__init__(HEAD_MODULE, config, [config.unix_fd, config.tcp_fd])
        self.config = config
        self.address = config.address
        self._listeners = listeners

    def close(self) -> None:
        """Close the sockets, once the process has ended."""
        if self._listeners is not None:
            self._listeners.close()


class AdminProcess(SupervisedProcess):
    """The admin server, on its socket."""

    def __init__(self, config: AdminConfig) -> None:
        super().__init__(ADMIN_MODULE, config, [config.listen_fd])


def head_config(session: Session, listeners: Listeners, **more: Any) -> HeadConfig:
    """The config of a session's head on these sockets."""
    return HeadConfig(
        cluster_id=session.cluster_id,
        address=listeners.address,
        token=session.token,
        session_dir=session.dir,
        storage=f"sqlite:{session.path('head.db')}",
        unix_fd=listeners.unix.fileno(),
        tcp_fd=listeners.tcp_fd,
        **{"log_path": session.path("logs", "head.log"), **more},
    )


# --- supervising the head ---------------------------------------------------------------------------------


class HeadSupervisor:
    """Starts the head again whenever it dies; a thread that sleeps until then. For drivers."""

    def __init__(self, head: HeadProcess) -> None:
        self._head = head
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="retinue-head-supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop watching. The head, if it runs, goes on running and is the caller's again."""
        if self._wake_w >= 0:
            os.close(self._wake_w)
            self._wake_w = -1
            self._thread.join()
            os.close(self._wake_r)

    def _run(self) -> None:
        while not self._stopped_within(None, self._head.pidfd):
            delay = self._head.restart_delay(time.monotonic())
            if delay is None or self._stopped_within(delay, -1):
                return
            self._head.start(time.monotonic())

    def _stopped_within(self, timeout_s: float | None, pidfd: int) -> bool:
        poller = select.poll()
        poller.register(self._wake_r, select.POLLIN | select.POLLHUP)
        if pidfd >= 0:
            poller.register(pidfd, select.POLLIN)
        ready = poller.poll(None if timeout_s is None else timeout_s * 1000)
        return any(fd == self._wake_r for fd, _ in ready)


# --- details ------------------------------------------------------------------------------------------------

_LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


def _command(module: str, lifeline_fd: int, label: str) -> list[str]:
    """Without `site` and the user's paths: faster, and a `queue.py` beside the script is not ours."""
    code = f"import sys;sys.path+={_package_folders()!r};from {module} import main;main(int(sys.argv[1]))"
    return [sys.executable, "-I", "-S", "-c", code, str(lifeline_fd), label]


def _package_folders() -> list[str]:
    folders: list[str] = []
    for name in _PACKAGES:
        module = sys.modules.get(name)
        spec = module.__spec__ if module is not None else importlib.util.find_spec(name)
        for location in (spec.submodule_search_locations or []) if spec is not None else []:
            folder = os.path.dirname(os.path.abspath(location))
            if folder not in folders:
                folders.append(folder)
    return folders


def _hold_lock(session_dir: str) -> int:
    return Session(session_dir, "", b"", -1).hold()
