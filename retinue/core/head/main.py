"""The head process: takes its config from the lifeline, serves until told to end or its parent is gone."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading

import uvloop

from retinue.core.config import HeadConfig, read_config
from retinue.core.head.server import HeadServer
from retinue.core.head.storage import open_storage
from retinue.core.lifeline import Lifeline
from retinue.core.session import clean_stale, leave

logger = logging.getLogger(__name__)


def main(lifeline_fd: int) -> None:
    """Run the head. `lifeline_fd`: the pipe with a HeadConfig in it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the starter's thread may have blocked what ends us
    config = read_config(lifeline_fd, HeadConfig)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(_serve(config, lifeline_fd))
    finally:
        loop.close()
        if config.lock_fd >= 0:
            leave(config.session_dir, config.lock_fd)


async def _serve(config: HeadConfig, lifeline_fd: int) -> None:
    loop = asyncio.get_running_loop()
    server = HeadServer(config, open_storage(config.storage))
    loop.add_signal_handler(signal.SIGTERM, server.stopped.set)
    lifeline = Lifeline(lifeline_fd, server.stopped.set)
    if config.has_parent:
        lifeline.watch(loop)
    fds = [config.unix_fd] + ([config.tcp_fd] if config.tcp_fd >= 0 else [])
    await server.start([socket.socket(fileno=fd) for fd in fds])
    # Beside the work: gigabytes of spilled objects of a killed cluster may take a while.
    cleaner = threading.Thread(target=_clean, args=(os.path.dirname(config.session_dir),), daemon=True)
    cleaner.start()
    await server.stopped.wait()
    lifeline.close()
    await server.stop()


def _clean(base: str) -> None:
    try:
        removed = clean_stale(base)
    except OSError as error:
        logger.warning("could not remove old sessions: %s", error)
    else:
        if removed:
            logger.info("removed %d sessions that nobody holds", removed)
