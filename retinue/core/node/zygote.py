"""The zygote: a process that has imported what workers need, and forks them in about a millisecond.

It serves one socket to its agent, one packet a message. A worker is forked twice, so that it becomes the
agent's child (the agent is child subreaper) and outlives the zygote; the process in between says its pid.
A zygote must have one thread and hold no GPU: after each import it looks, and if that is no longer so it
says which package did it and starts anew without it. When its agent is gone it kills what it forked, with
all that these have started, and removes the node's folder.

Lives here: the zygote process, and the first steps of every worker (forked or exec'ed). Does not: deciding
what to start (`pool`), the agent's side (`spawner`), what a worker does (`retinue.core.worker`).
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import random
import shutil
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

import msgspec

from retinue.core import session, strays
from retinue.core.wire.messages import WorkerStart

MAX_PACKET_BYTES = 1 << 20
WORKER_MODULE = "retinue.core.worker.main"
OOM_SCORE = 600  # the kernel takes a worker before it takes an agent or a stranger
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
# Without these, importing the package starts a thread.
IMPORT_VARIABLES = {**dict.fromkeys(THREAD_VARIABLES, "1"), "JE_ARROW_MALLOC_CONF": "background_thread:false"}
GPU_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri/render")

# In the environment of all that a node's workers start, also in sessions of their own.
NODE_VARIABLE = "RETINUE_NODE_ID"

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_libc = ctypes.CDLL(None, use_errno=True)


class NodeHome(msgspec.Struct, frozen=True):
    """What a zygote tidies up when the agent was killed. Empty: nothing."""

    node_id: str = ""  # hex
    node_dir: str = ""
    session_dir: str = ""


class ZygoteConfig(msgspec.Struct, frozen=True):
    """What a zygote is told on its command line."""

    socket_fd: int
    lifeline_fd: int
    agent_pid: int
    preload: list[str] = []
    env_vars: dict[str, str] = {}  # set before the imports
    restore: dict[str, str] = {}  # what the user had for `IMPORT_VARIABLES`
    worker_module: str = WORKER_MODULE
    home: NodeHome = NodeHome()


# --- what goes over the socket ----------------------------------------------------------------------------


class Fork(msgspec.Struct, tag=1, array_like=True):
    """agent -> zygote"""

    start: WorkerStart


class Ended(msgspec.Struct, tag=2, array_like=True):
    """agent -> zygote: that worker is no more; forget it"""

    pid: int


class Ready(msgspec.Struct, tag=10, array_like=True):
    """zygote -> agent: imports are done"""

    preloaded: list[str]


class Forked(msgspec.Struct, tag=11, array_like=True):
    """zygote -> agent"""

    start_token: int
    pid: int


class Unfit(msgspec.Struct, tag=12, array_like=True):
    """zygote -> agent: the package is left to the workers, and why"""

    package: str
    reason: str


class ForkFailed(msgspec.Struct, tag=13, array_like=True):
    """zygote -> agent"""

    start_token: int
    reason: str


Request = Fork | Ended
Report = Ready | Forked | Unfit | ForkFailed
encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_report = msgspec.msgpack.Decoder(Report).decode


# --- the process ------------------------------------------------------------------------------------------


def main(argument: str) -> None:
    """Entry of a zygote process: `argument` is a ZygoteConfig as JSON."""
    config = msgspec.json.decode(argument, type=ZygoteConfig)
    die_with_parent(config.agent_pid)
    _name_process("retinue-zygote")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(config.env_vars)
    sock = socket.socket(fileno=config.socket_fd)
    worker = importlib.import_module(config.worker_module)
    for package in config.preload:
        _preload(package, config, sock)
    gc.collect()
    gc.freeze()
    _libc.prctl(_PR_SET_PDEATHSIG, 0)  # from here on it must outlive the agent, to sweep up
    Zygote(config, sock, worker).run()


class Zygote:
    """Serves fork requests until the agent is gone."""

    def __init__(self, config: ZygoteConfig, sock: socket.socket, worker: Any) -> None:
        self._config = config
        self._socket = sock
        self._worker = worker
        self._pids: set[int] = set()

    def run(self) -> None:
        self._socket.send(encode(Ready(self._config.preload)))
        while packet := self._receive():
            request = decode_request(packet)
            if isinstance(request, Fork):
                self._fork(request.start)
            else:
                self._pids.discard(request.pid)
        for pid in self._pids:
            kill_group(pid)
        tidy_up(self._config.home)
        os._exit(0)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(MAX_PACKET_BYTES)
        except ConnectionError:
            return b""

    def _fork(self, start: WorkerStart) -> None:
        answer_r, answer_w = os.pipe()
        try:
            middle = os.fork()
        except OSError as error:
            os.close(answer_r)
            os.close(answer_w)
            self._socket.send(encode(ForkFailed(start.start_token, f"fork failed: {error}")))
            return
        if middle == 0:
            self._fork_again(start, answer_r, answer_w)
        os.close(answer_w)
        answer = os.read(answer_r, 4)
        os.close(answer_r)
        os.waitpid(middle, 0)
        if len(answer) < 4:
            self._socket.send(encode(ForkFailed(start.start_token, "the second fork failed")))
            return
        pid = int.from_bytes(answer, "little")
        self._pids.add(pid)
        self._socket.send(encode(Forked(start.start_token, pid)))

    def _fork_again(self, start: WorkerStart, answer_r: int, answer_w: int) -> NoReturn:
        try:
            pid = os.fork()
            if pid:
                os.write(answer_w, pid.to_bytes(4, "little"))
                os._exit(0)
            os.close(answer_r)
            os.close(answer_w)
            self._socket.close()
            _restore_environment(self._config)
            run_worker(start, self._config.agent_pid, self._worker)
        finally:
            os._exit(1)


def tidy_up(home: NodeHome) -> None:
    """Remove what a killed agent could not: processes that left their worker's group, and the folders."""
    if not home.node_id:
        return
    mark = f"{NODE_VARIABLE}={home.node_id}".encode()
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{int(name)}/environ", "rb") as file:
                if mark in file.read().split(b"\0"):
                    os.kill(int(name), signal.SIGKILL)
        except (ValueError, OSError):
            continue  # no process, gone, or somebody else's
    strays.end_strays(bytes.fromhex(home.node_id))
    shutil.rmtree(home.node_dir, ignore_errors=True)
    session.clean_if_free(home.session_dir)


def run_worker(start: WorkerStart, agent_pid: int, worker: Any) -> NoReturn:
    """The first steps of a worker process, then its life."""
    os.setsid()
    # Until the process in between has ended, its death would be taken for the agent's.
    while os.getppid() != agent_pid:
        if not _is_alive(agent_pid):
            os._exit(1)
        os.sched_yield()
    die_with_parent(agent_pid)
    try:
        _name_process("retinue-worker")
        redirect_output(start)
        _reset_signals()
        _reseed()
        _protect_others()
        strays.mark_this_process(strays.mark_of(start.node_id, start.worker_id))
        _enter_environment(start)
        gc.enable()
        worker.main(start)
    except SystemExit as error:
        _flush_output()
        os._exit(error.code if isinstance(error.code, int) else 0 if error.code is None else 1)
    except BaseException:  # noqa: BLE001 - it goes no further: this is the bottom of the process
        traceback.print_exc()
        _flush_output()
        os._exit(1)
    _flush_output()
    os._exit(0)


def exec_main(start_fd: int, agent_pid: int, worker_module: str) -> NoReturn:
    """Entry of a worker that is exec'ed instead of forked; its WorkerStart is to be read from a pipe."""
    with os.fdopen(start_fd, "rb") as file:
        start = msgspec.msgpack.decode(file.read(), type=WorkerStart)
    worker = importlib.import_module(worker_module)
    run_worker(start, agent_pid, worker)


# --- importing --------------------------------------------------------------------------------------------


def _preload(package: str, config: ZygoteConfig, sock: socket.socket) -> None:
    try:
        importlib.import_module(package)
    except BaseException as error:  # noqa: BLE001 - a package may raise anything, SystemExit included
        sock.send(encode(Unfit(package, f"importing it raised {type(error).__name__}: {error}")))
        return
    reason = unfit_reason()
    if reason:
        sock.send(encode(Unfit(package, reason)))
        _start_anew(config, without=package)


def unfit_reason() -> str:
    """Why this process may not be forked from any more; "" if it may."""
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return f"importing it started {threads - 1} thread(s), which a fork would lose"
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith(GPU_DEVICES):
            return f"importing it opened {target}, which processes cannot share"
    return ""


def _start_anew(config: ZygoteConfig, *, without: str) -> NoReturn:
    """The same process and socket, a new interpreter: what the import did is undone."""
    kept = [name for name in config.preload if name != without]
    again = msgspec.structs.replace(config, preload=kept)
    for fd in (config.socket_fd, config.lifeline_fd):
        os.set_inheritable(fd, True)
    argv = [sys.executable, *sys.orig_argv[1:-1], msgspec.json.encode(again).decode()]
    os.execv(sys.executable, argv)


# --- the child's first steps ------------------------------------------------------------------------------


def die_with_parent(parent_pid: int) -> None:
    """SIGKILL for this process when the parent's main thread ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)  # it ended before the line above


def _name_process(name: str) -> None:
    _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def kill_group(pid: int) -> None:
    """SIGKILL for the process group that `pid` leads."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def output_paths(node_dir: str, worker_id: bytes, pid: int) -> tuple[str, str]:
    """Where a worker's stdout and stderr go."""
    base = os.path.join(node_dir, "logs", f"worker-{worker_id.hex()[:12]}-{pid}")
    return f"{base}.out", f"{base}.err"


def redirect_output(start: WorkerStart) -> None:
    """Standard output and error into the worker's files, a line at a time; standard input is empty."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    for number, path in enumerate(output_paths(start.node_dir, start.worker_id, os.getpid()), start=1):
        fd = os.open(path, flags, 0o600)
        os.dup2(fd, number)
        os.close(fd)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    logging = sys.modules.get("logging")
    if logging is not None:
        logging.root.handlers.clear()


def _reseed() -> None:
    """Workers of one zygote must not draw the same numbers."""
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy.random" in sys.modules:
        numpy.random.seed()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(int.from_bytes(os.urandom(7), "little"))


def _protect_others() -> None:
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(OOM_SCORE))
    except OSError:
        pass  # not allowed here: the memory monitor still acts first


def _restore_environment(config: ZygoteConfig) -> None:
    """What was set for the imports is not the user's: OpenMP and BLAS stay at one thread until a lease."""
    os.environ.pop("JE_ARROW_MALLOC_CONF", None)
    os.environ.update(config.restore)


def _enter_environment(start: WorkerStart) -> None:
    env = start.env
    os.environ[NODE_VARIABLE] = start.node_id.hex()
    os.environ.update(env.env_vars)
    if env.sys_path:
        known = set(env.sys_path)
        sys.path[:] = env.sys_path + [path for path in sys.path if path not in known]
    if env.working_dir:
        os.chdir(env.working_dir)
