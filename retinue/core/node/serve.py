"""The agent's life within its process: until it is told to end or its parent is gone."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket

import uvloop

from retinue.core.config import AgentConfig
from retinue.core.launch import AdminProcess, HeadProcess, SupervisedProcess
from retinue.core.lifeline import Lifeline
from retinue.core.node.agent import Agent
from retinue.core.node.zygote_start import ZygoteProcess
from retinue.core.session import leave
from retinue.core.supervision import supervise

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
    services = [(service, loop.create_task(supervise(service))) for service in _services(config)]
    fds = [config.unix_fd] + ([config.tcp_fd] if config.tcp_fd >= 0 else [])
    try:
        await agent.start([socket.socket(fileno=fd) for fd in fds])
        await agent.stopped.wait()
    finally:
        lifeline.close()
        for service, supervisor in services:
            supervisor.cancel()
            service.stop()
        await agent.stop(keep=[service.pid for service, _ in services])
        for service, _ in services:
            await loop.run_in_executor(None, service.wait)


def _services(config: AgentConfig) -> list[SupervisedProcess]:
    """What runs beside this agent, and ends with it."""
    found: list[SupervisedProcess] = []
    if config.supervised_head is not None:
        found.append(HeadProcess(config.supervised_head))
    if config.supervised_admin is not None:
        found.append(AdminProcess(config.supervised_admin))
    return found


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
