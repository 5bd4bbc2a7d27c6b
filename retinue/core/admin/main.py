"""The admin server's process: takes its config from the lifeline, serves until its agent ends it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys

from retinue.core.admin.ask import Target
from retinue.core.config import AdminConfig, read_config
from retinue.core.lifeline import Lifeline
from retinue.core.session import leave

logger = logging.getLogger(__name__)

GRACE_S = 1


def main(lifeline_fd: int) -> None:
    """Run the admin server. `lifeline_fd`: the pipe with an AdminConfig in it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = read_config(lifeline_fd, AdminConfig)
    sys.path += [path for path in config.sys_path if path not in sys.path]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(_serve(config, lifeline_fd))
    finally:
        if config.lock_fd >= 0:
            leave(config.session_dir, config.lock_fd)


async def _serve(config: AdminConfig, lifeline_fd: int) -> None:
    # The config says where these packages are: they cannot be imported before it is read.
    import uvicorn

    from retinue.core.admin.context import AdminContext
    from retinue.core.admin.server import library_routes, make_app

    context = AdminContext(Target(config.head, config.token, config.session_dir), config.cluster_id)
    app = make_app(context, config.token, library_routes(context))
    settings = uvicorn.Config(
        app, log_level="warning", lifespan="off", access_log=False, timeout_graceful_shutdown=GRACE_S
    )
    server = uvicorn.Server(settings)
    # Ours stands behind uvicorn's, which raises the signal once more when it has ended in order.
    signal.signal(signal.SIGTERM, lambda number, frame: setattr(server, "should_exit", True))
    lifeline = Lifeline(lifeline_fd, lambda: setattr(server, "should_exit", True))
    if config.has_parent:
        lifeline.watch(asyncio.get_running_loop())
    with socket.socket(fileno=config.listen_fd) as listener:
        logger.info("admin server at %s:%d", *listener.getsockname()[:2])
        await server.serve(sockets=[listener])
    lifeline.close()
