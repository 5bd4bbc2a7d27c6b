"""The agent's life within its process: until it is told to end or its parent is gone."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket

import uvloop

from retinue.core.config import AgentConfig
from retinue.core.launch import HeadProcess, supervise_head
from retinue.core.lifeline import Lifeline
from retinue.core.node.agent import Agent
from retinue.core.node.zygote_start import ZygoteProcess
from retinue.core.session import leave

logger = logging.getLogger(__name__)


def run(config: AgentConfig, lifeline_fd: int, workers_fd: int, first_zygote: ZygoteProcess) -> None:
    """Serve until told to end. `workers_fd`: the lifeline that the workers get."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(_serve(config, lifeline_fd, workers_fd, first_zygote))
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        _remove_folder(config.node_dir)
        if config.lock_fd >= 0:
            leave(config.session_dir, config.lock_fd)


async def _serve(config: AgentConfig, lifeline_fd: int, workers_fd: int, first_zygote: ZygoteProcess) -> None:
    loop = asyncio.get_running_loop()
    agent = Agent(config, lifeline_fd=workers_fd, first_zygote=first_zygote)
    loop.add_signal_handler(signal.SIGTERM, agent.stopped.set)
    lifeline = Lifeline(lifeline_fd, agent.stopped.set)
    if config.has_parent:
        lifeline.watch(loop)
    head, supervisor = _head(config, loop)
    fds = [config.unix_fd] + ([config.tcp_fd] if config.tcp_fd >= 0 else [])
    try:
        await agent.start([socket.socket(fileno=fd) for fd in fds])
        await agent.stopped.wait()
    finally:
        lifeline.close()
        if head is not None and supervisor is not None:
            supervisor.cancel()
            head.stop()
        await agent.stop(keep=[head.pid] if head is not None else [])
        if head is not None:
            await loop.run_in_executor(None, head.wait)


def _head(
    config: AgentConfig, loop: asyncio.AbstractEventLoop
) -> tuple[HeadProcess | None, asyncio.Task[None] | None]:
    if config.supervised_head is None:
        return None, None
    head = HeadProcess(config.supervised_head)
    return head, loop.create_task(supervise_head(head))


def _remove_folder(path: str) -> None:
    """Sockets, logs and whatever else the node has left."""
    for folder, folders, files in os.walk(path, topdown=False):
        for name in files:
            _ignore_missing(os.unlink, os.path.join(folder, name))
        for name in folders:
            full = os.path.join(folder, name)
            _ignore_missing(os.unlink if os.path.islink(full) else os.rmdir, full)
    _ignore_missing(os.rmdir, path)


def _ignore_missing(remove: object, path: str) -> None:
    try:
        remove(path)  # type: ignore[operator]
    except FileNotFoundError:
        pass
