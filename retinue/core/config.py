"""What a head or node agent process is told when it starts.

The starter encodes a config as JSON and writes it into the pipe that is also the child's lifeline: first the
config, then nothing, and end of file means that the parent is gone. So no token is ever seen on a command
line or in an environment. Lives here: the configs, and how they travel. Does not: starting processes
(`launch.py`), or the choice of folders and tokens (`session.py`).
"""

from __future__ import annotations

import os
from typing import TypeVar

import msgspec

from retinue.core.wire.messages import Address

_LENGTH_BYTES = 4


class HeadConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything the head needs. It listens on sockets that its starter made and keeps."""

    cluster_id: str
    address: Address  # where others reach it: the Unix path, and host and port if it listens on TCP
    token: bytes
    session_dir: str
    storage: str  # "sqlite:<path>" (":memory:" in tests)
    unix_fd: int
    tcp_fd: int = -1  # -1 = no TCP
    lock_fd: int = -1  # this process's hold on the session folder; see session.leave
    log_path: str = ""  # "" = the inherited stderr
    has_parent: bool = True  # end when the lifeline ends
    register_grace_s: float = 5.0  # a new head waits so long for the nodes it knew
    node_grace_s: float = 1.0  # a lost agent connection may come back within this
    driver_grace_s: float = 3.0  # likewise a driver's, before its job ends


class AdminConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything the admin server needs: the cluster that it shows, and the socket on which it listens."""

    cluster_id: str
    head: Address
    token: bytes
    session_dir: str
    listen_fd: int
    lock_fd: int = -1  # as above
    log_path: str = ""
    has_parent: bool = True
    sys_path: list[str] = []  # where libraries with routes of their own are found


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a node agent needs. It listens on sockets that its starter made.

    Resources that are None are found out by the agent: CPUs by affinity and cgroup, GPUs, memory, 30 % of
    the memory for the store.
    """

    cluster_id: str
    node_id: bytes
    address: Address  # the agent's own: `worker_id` names the agent, host and port if it listens on TCP
    head: Address
    token: bytes
    session_dir: str
    node_dir: str  # this node's own folder below it: sockets, logs, spilled objects
    unix_fd: int
    tcp_fd: int = -1
    lock_fd: int = -1  # as above
    num_cpus: float | None = None
    num_gpus: float | None = None
    memory: float | None = None
    object_store_memory: int | None = None
    resources: dict[str, float] = {}
    labels: dict[str, str] = {}
    node_ip: str = "127.0.0.1"
    is_head_node: bool = False
    has_parent: bool = True  # end when the lifeline ends
    log_path: str = ""  # the agent's own log; "" = the inherited stderr
    spill_dir: str = ""  # "" = below node_dir
    supervised_head: HeadConfig | None = None  # keep the head running (`retinue start`)
    supervised_admin: AdminConfig | None = None  # likewise the admin server
    system_config: dict[str, str] = {}  # knobs for tests


Config = TypeVar("Config", HeadConfig, AgentConfig, AdminConfig)


def write_config(fd: int, config: HeadConfig | AgentConfig | AdminConfig) -> None:
    """Write the config into a pipe, for `read_config` at its other end. It fits into the pipe's buffer."""
    text = msgspec.json.encode(config)
    data = len(text).to_bytes(_LENGTH_BYTES, "little") + text
    while data:
        data = data[os.write(fd, data) :]


def read_config(fd: int, kind: type[Config]) -> Config:
    """Read the config from the lifeline pipe; leaves `fd` open and at its end of data.

    Raises EOFError if the parent was gone first.
    """
    size = int.from_bytes(_read(fd, _LENGTH_BYTES), "little")
    return msgspec.json.decode(_read(fd, size), type=kind)


def _read(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = os.read(fd, size - len(data))
        if not chunk:
            raise EOFError("the parent ended before it had said what to start")
        data += chunk
    return data
