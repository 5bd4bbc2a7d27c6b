"""Starting a zygote: what the agent does first of all, before it has loaded itself.

A zygote takes 60 ms to import what it has to, the agent as long: they do it side by side. So this file
imports little. Lives here: that start. Does not: talking to zygotes (`spawner`), being one (`zygote`).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import msgspec

from retinue.core.config import AgentConfig
from retinue.core.node.zygote import IMPORT_VARIABLES, MAX_PACKET_BYTES, WORKER_MODULE, NodeHome, ZygoteConfig
from retinue.core.wire.messages import WorkerEnv, WorkerStart


class ZygoteProcess:
    """The agent's end of one zygote."""

    def __init__(self, key: str, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self.key = key
        self.pid = process.pid
        self.process = process
        self.socket = sock
        self.is_ready = False
        self.unsent: list[bytes] = []
        self.forking: dict[int, WorkerStart] = {}


def start_zygote(
    env: WorkerEnv, *, lifeline_fd: int, worker_module: str = WORKER_MODULE, home: NodeHome | None = None
) -> ZygoteProcess:
    """Start the zygote that workers of this environment are forked from. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_PACKET_BYTES)
        config = ZygoteConfig(
            socket_fd=theirs.fileno(),
            lifeline_fd=lifeline_fd,
            agent_pid=os.getpid(),
            preload=env.preload,
            env_vars=env.env_vars if env.preload else {},
            restore={name: os.environ[name] for name in IMPORT_VARIABLES if name in os.environ},
            worker_module=worker_module,
            home=home or NodeHome(),
        )
        code = f"{path_code()};from retinue.core.node.zygote import main;main(sys.argv[1])"
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, msgspec.json.encode(config).decode()],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno(), lifeline_fd],
            env={**os.environ, **IMPORT_VARIABLES},
            start_new_session=True,
            cwd="/",
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    ours.setblocking(False)
    return ZygoteProcess(key_of(env), process, ours)


def home_of(config: AgentConfig) -> NodeHome:
    return NodeHome(config.node_id.hex(), config.node_dir, config.session_dir)


def key_of(env: WorkerEnv) -> str:
    """Environments with the same key share a zygote."""
    if not env.preload:
        return ""
    return repr((env.preload, sorted(env.env_vars.items())))


def path_code() -> str:
    """Where the runtime's own packages lie: the agent knows, the new interpreter may not."""
    return f"import sys;sys.path+=[p for p in {sys.path!r} if p not in sys.path]"
