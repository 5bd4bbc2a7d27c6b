"""The drivers and workers of this node: how they start, register, and how each one died.

A worker is dead when its process is (the kernel tells its parent, us), a driver when its socket or pidfd
says so. Before a death is announced the socket is read to its end: what a process sealed, returned or
reported before it died counts. Lives here: that. Does not: what follows from a death (`on_dead`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator

import msgspec
from msgspec import Struct, field

from retinue.core.config import AgentConfig
from retinue.core.node.logs import tail
from retinue.core.node.orphans import Orphans
from retinue.core.node.spawner import Spawner
from retinue.core.node.zygote import output_paths
from retinue.core.transport.loop import LoopConnection
from retinue.core.wire.messages import (
    Address,
    DeathInfo,
    ExitWorker,
    RegisterProcess,
    WorkerEnv,
    WorkerStart,
)

logger = logging.getLogger(__name__)

# A worker whose connection has ended leaves, or is made to; one that is dead may have left a child that
# keeps its socket open.
LEAVE_GRACE_S = 2.0
DRAIN_GRACE_S = 0.2
MAX_DEATHS = 1_000
LOG_TAIL_BYTES = 2_000
DRIVER, WORKER = "driver", "worker"


class Process(Struct, eq=False):
    worker_id: bytes
    kind: str
    job_id: bytes
    start_token: int = 0
    pid: int = 0
    env: WorkerEnv | None = None
    address: Address | None = None
    connection: LoopConnection | None = None
    status: int | None = None  # as waitpid gives it, once it is dead
    reason: str = ""  # why it is being ended, or says that it ends
    is_intended: bool = False
    pidfd: int = -1
    started_at: float = 0.0
    label: str = ""  # what its output is announced by: the actor's or function's name
    metrics: bytes = b""
    is_announced: bool = False
    timers: list[asyncio.TimerHandle] = field(default_factory=list)

    @property
    def is_registered(self) -> bool:
        return self.address is not None


class Processes:
    """All processes of this node that are not the agent's own or its zygotes."""

    def __init__(self, config: AgentConfig, spawner: Spawner, *, lifeline_fd: int) -> None:
        self.on_ready: Callable[[Process], None] = lambda process: None
        self.on_dead: Callable[[Process, DeathInfo], None] = lambda process, death: None
        self._config = config
        self._spawner = spawner
        self._lifeline_fd = lifeline_fd
        self._orphans = Orphans(config.node_id)
        self._by_id: dict[bytes, Process] = {}
        self._by_token: dict[int, Process] = {}
        self._by_pid: dict[int, Process] = {}
        self._tokens = itertools.count(1)
        self._deaths: OrderedDict[bytes, tuple[str, DeathInfo]] = OrderedDict()
        self.is_closing = False
        self.worker_starts = 0
        spawner.on_forked = self._forked
        spawner.on_failed = self._start_failed
        spawner.on_exit = self._exited
        spawner.on_orphan_ended = self._orphans.look

    def __iter__(self) -> Iterator[Process]:
        return iter(list(self._by_id.values()))

    def get(self, worker_id: bytes) -> Process | None:
        return self._by_id.get(worker_id)

    def death_of(self, worker_id: bytes) -> DeathInfo:
        """How a process died; of one that nobody remembers only that it is gone."""
        _, known = self._deaths.get(worker_id, ("", None))
        return known or DeathInfo(worker_id, node_id=self._config.node_id, reason="it is gone")

    def deaths(self) -> list[tuple[str, DeathInfo]]:
        """The processes that died, each with its kind, the latest first."""
        return list(reversed(self._deaths.values()))

    # --- starting

    def start_worker(self, worker_id: bytes, env: WorkerEnv) -> None:
        """Start one; `on_ready` or `on_dead` follows."""
        config = self._config
        token = next(self._tokens)
        self.worker_starts += 1
        process = Process(worker_id, WORKER, env.job_id, token, env=env)
        process.started_at = asyncio.get_running_loop().time()
        self._by_id[worker_id] = process
        self._by_token[token] = process
        self._orphans.began(worker_id)
        if env.working_dir and not os.path.isdir(env.working_dir):
            self._start_failed(token, f"working_dir {env.working_dir!r} is not a folder on this machine")
            return
        start = WorkerStart(
            worker_id=worker_id,
            node_id=config.node_id,
            agent=config.address,
            token=config.token,
            session_dir=config.session_dir,
            node_dir=config.node_dir,
            env=env,
            start_token=token,
            lifeline_fd=self._lifeline_fd,
            socket_path=os.path.join(config.node_dir, f"w-{worker_id.hex()[:12]}.sock"),
            tcp_host=config.address.host,
        )
        self._spawner.start(start)

    def _forked(self, start_token: int, pid: int) -> None:
        process = self._by_token.get(start_token)
        if process is None or process.is_announced:
            self._spawner.kill(pid)
            return
        process.pid = pid
        self._by_pid[pid] = process
        if process.reason and not process.is_registered:
            self._spawner.kill(pid)  # it was to end before it had begun

    def _start_failed(self, start_token: int, reason: str) -> None:
        process = self._by_token.get(start_token)
        if process is not None and not process.is_announced:
            process.reason = reason
            self._orphans.ended(process.worker_id)
            # Not within the call that asked for the start: its caller is not finished with its own books.
            asyncio.get_running_loop().call_soon(self._announce, process)

    # --- registration

    def register(self, connection: LoopConnection, message: RegisterProcess) -> Process | None:
        """The process behind a connection says who it is. None if it is not welcome (any more)."""
        if message.kind == DRIVER:
            process = Process(message.address.worker_id, DRIVER, message.job_id, pid=message.pid)
            process.started_at = asyncio.get_running_loop().time()
            self._by_id[process.worker_id] = process
            self._watch_driver(process)
        else:
            found = self._by_token.get(message.start_token)
            if found is None or found.is_announced or found.worker_id != message.address.worker_id:
                return None
            process = found
            if not process.pid:
                process.pid = message.pid  # its zygote's own report is on its way
        process.address = message.address
        process.connection = connection
        connection.context = process
        self.on_ready(process)
        return process

    def _watch_driver(self, process: Process) -> None:
        try:
            process.pidfd = os.pidfd_open(process.pid)
        except OSError:
            return  # of another pid namespace: its socket has to do
        asyncio.get_running_loop().add_reader(process.pidfd, self._driver_died, process)

    def _driver_died(self, process: Process) -> None:
        """The socket may be held open by a process that the driver has forked."""
        self._forget_pidfd(process)
        process.timers.append(asyncio.get_running_loop().call_later(DRAIN_GRACE_S, self._hang_up, process))

    def _forget_pidfd(self, process: Process) -> None:
        if process.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(process.pidfd)
            os.close(process.pidfd)
            process.pidfd = -1

    @staticmethod
    def _hang_up(process: Process) -> None:
        if process.connection is not None:
            process.connection.close()

    # --- ends

    def end(self, worker_id: bytes, reason: str, *, is_forced: bool, is_intended: bool = True) -> None:
        """End a worker: at once, or (`is_forced` False) when it has finished what it has accepted."""
        process = self._by_id.get(worker_id)
        if process is None or process.kind != WORKER or process.status is not None:
            return
        process.reason = process.reason or reason
        process.is_intended = process.is_intended or is_intended
        if process.pid and (is_forced or process.connection is None):
            self._spawner.kill(process.pid)
        elif process.connection is not None:
            process.connection.send(ExitWorker(is_forced, reason))

    def expect_exit(self, process: Process, reason: str) -> None:
        """It ends on purpose."""
        process.reason = process.reason or reason
        process.is_intended = True

    def connection_closed(self, process: Process) -> None:
        process.connection = None
        if process.kind == DRIVER or process.status is not None:
            self._announce(process)
            return
        # Without us it cannot work: it is on its way out, or hangs.
        timer = asyncio.get_running_loop().call_later(LEAVE_GRACE_S, self._spawner.kill, process.pid)
        process.timers.append(timer)

    def _exited(self, pid: int, status: int) -> None:
        process = self._by_pid.pop(pid, None)
        if process is None:
            return
        process.status = status
        self._orphans.ended(process.worker_id)
        if process.connection is None:
            self._announce(process)
        else:
            timer = asyncio.get_running_loop().call_later(DRAIN_GRACE_S, self._hang_up, process)
            process.timers.append(timer)

    def _announce(self, process: Process) -> None:
        """Once for each process, when nothing more can come from it."""
        if process.is_announced:
            return
        process.is_announced = True
        for timer in process.timers:
            timer.cancel()
        self._forget_pidfd(process)
        self._by_token.pop(process.start_token, None)
        if self._by_id.get(process.worker_id) is process:
            del self._by_id[process.worker_id]
        death = self._death(process)
        self._deaths[process.worker_id] = (process.kind, death)
        if len(self._deaths) > MAX_DEATHS:
            self._deaths.popitem(last=False)
        if process.kind == WORKER:
            _unlink(os.path.join(self._config.node_dir, f"w-{process.worker_id.hex()[:12]}.sock"))
            level = logging.INFO if death.intended else logging.WARNING
            logger.log(level, "%s", death.describe())
        if not self.is_closing:
            self.on_dead(process, death)

    def _death(self, process: Process) -> DeathInfo:
        code = os.waitstatus_to_exitcode(process.status) if process.status is not None else None
        death = DeathInfo(
            process.worker_id,
            process.pid,
            exit_code=code if code is not None and code >= 0 else None,
            signal=-code if code is not None and code < 0 else None,
            reason=process.reason,
            node_id=self._config.node_id,
            intended=process.is_intended,
        )
        if process.kind != WORKER or process.is_intended or not process.pid:
            return death
        return msgspec.structs.replace(death, log_tail=self.log_tail(process))

    def log_tail(self, process: Process) -> str:
        out, err = self.log_paths(process)
        return "\n".join(text for path in (out, err) if (text := tail(path, LOG_TAIL_BYTES)))

    def log_paths(self, process: Process) -> tuple[str, str]:
        return output_paths(self._config.node_dir, process.worker_id, process.pid)

    def close(self) -> None:
        """Before the spawner kills what is left: nothing is announced from here on."""
        self.is_closing = True
        for process in self:
            for timer in process.timers:
                timer.cancel()
            self._forget_pidfd(process)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
