"""Keep a process running beside an agent: the loop's counterpart of `launch.HeadSupervisor`.

A file of its own because drivers, which use `launch`, start without asyncio (16 ms of init()).
"""

from __future__ import annotations

import asyncio
import time

from retinue.core.launch import SupervisedProcess


async def supervise(service: SupervisedProcess) -> None:
    """Start it, and again whenever it dies, until cancelled (`service.stop()` ends it too). For agents."""
    loop = asyncio.get_running_loop()
    while True:
        service.start(time.monotonic())
        await _ended(service.pidfd, loop)
        delay = service.restart_delay(time.monotonic())
        if delay is None:
            return
        await asyncio.sleep(delay)


async def _ended(pidfd: int, loop: asyncio.AbstractEventLoop) -> None:
    ended = loop.create_future()
    loop.add_reader(pidfd, lambda: None if ended.done() else ended.set_result(None))
    try:
        await ended
    finally:
        loop.remove_reader(pidfd)
