"""The agent's process: its first steps, in the order that makes it quick.

First the zygote is started, then the agent is imported, which takes as long as the zygote does to import
what workers need: `init()` waits for both. Lives here: that order. Everything else is in `serve`.
"""

from __future__ import annotations

import ctypes
import os
import signal

from retinue.core.config import AgentConfig, read_config
from retinue.core.node.zygote import WORKER_MODULE
from retinue.core.node.zygote_start import home_of, start_zygote
from retinue.core.wire.messages import WorkerEnv

_PR_SET_CHILD_SUBREAPER = 36


def main(lifeline_fd: int) -> None:
    """Run a node agent. `lifeline_fd`: the pipe with an AgentConfig in it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = read_config(lifeline_fd, AgentConfig)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # The workers' own lifeline: its writing end is open in this process alone.
    workers_r, workers_w = os.pipe2(os.O_CLOEXEC)
    module = config.system_config.get("worker_module", WORKER_MODULE)
    first = start_zygote(WorkerEnv(b""), lifeline_fd=workers_r, worker_module=module, home=home_of(config))

    from retinue.core.node.serve import run  # only now: see above

    try:
        run(config, lifeline_fd, workers_r, first)
    finally:
        os.close(workers_r)
        os.close(workers_w)
