"""A node agent that only registers with the head: what tests of starting and stopping need of one.

Runs as a process in place of `retinue.core.node.main` (see `use_fake_agents`).
"""

import asyncio
import os
import signal
import socket
from typing import Any

import pytest

from retinue.core import launch
from retinue.core.config import AgentConfig, read_config
from retinue.core.launch import HeadProcess
from retinue.core.lifeline import Lifeline
from retinue.core.session import leave
from retinue.core.supervision import supervise
from retinue.core.transport.loop import LoopConnection, connect, serve
from retinue.core.wire import messages as m


def use_fake_agents(monkeypatch: pytest.MonkeyPatch, kind: str = "main") -> None:
    """Let `launch` start this module instead of the real agent. `kind`: main, broken, stubborn."""
    module = __name__ if kind == "main" else f"{__name__}_{kind}"
    monkeypatch.setattr(launch, "AGENT_MODULE", module)
    monkeypatch.setattr(launch, "_PACKAGES", (*launch._PACKAGES, "tests"))


def main(lifeline_fd: int, *, is_stubborn: bool = False) -> None:
    config = read_config(lifeline_fd, AgentConfig)
    asyncio.run(run(config, lifeline_fd, is_stubborn=is_stubborn))
    leave(config.session_dir, config.lock_fd)


async def run(config: AgentConfig, lifeline_fd: int, *, is_stubborn: bool) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, (lambda: None) if is_stubborn else stopped.set)
    if config.has_parent:
        Lifeline(lifeline_fd, stopped.set).watch(loop)
    tasks = []
    head = None

    def answer(connection: LoopConnection, message: Any, payload: bytes) -> None:
        if isinstance(message, m.Ping | m.Shutdown):
            connection.send(m.Ok(message.rid))
        if isinstance(message, m.Shutdown) and not is_stubborn:
            stopped.set()

    if config.supervised_head is not None:
        head = HeadProcess(config.supervised_head)
        tasks.append(asyncio.create_task(supervise(head)))
    for fd, token in ((config.unix_fd, None), (config.tcp_fd, config.token)):
        if fd >= 0:
            await serve(socket.socket(fileno=fd), answer, token=token)
    tasks.append(asyncio.create_task(stay_registered(config, stopped)))
    await stopped.wait()
    for task in tasks:
        task.cancel()
    if head is not None:
        head.stop()
        head.wait()


async def stay_registered(config: AgentConfig, stopped: asyncio.Event) -> None:
    cpus = {"CPU": config.num_cpus or 1.0}
    info = m.NodeInfo(
        config.node_id,
        config.address,
        cpus,
        cpus,
        config.labels,
        pid=os.getpid(),
        hostname=socket.gethostname(),
        session_dir=config.session_dir,
        is_head=config.is_head_node,
    )

    def handle(connection: LoopConnection, message: Any, payload: bytes) -> None:
        if isinstance(message, m.Shutdown):
            connection.send(m.Ok(message.rid))
            stopped.set()

    while True:
        lost = asyncio.Event()
        head = await connect(
            config.head,
            m.Hello("head", config.address),
            config.token,
            handle,
            lambda connection, lost=lost: lost.set(),
        )
        if not lost.is_set():
            head.start_request(m.RegisterNode(0, info)).add_done_callback(lambda f: f.exception())
        await lost.wait()
