"""Rows about the whole of `serve run`: how soon it answers, how much memory it takes."""

import sys
import time
from pathlib import Path

from servebench import payloads
from servebench.catalogue import Figures, Setting, Target, less, row
from servebench.peers import APPS
from servebench.processes import free_port, running
from servebench.ready import wait

NOOP = "serve_apps:echo"


@row(
    "",
    less("serve_run", "`serve run` of a no-op application to the first right answer", "s", Target(1.5)),
    less("serve_memory", "  every process of it, PSS", "MB", Target(300)),
    less("serve_processes", "  their number", ""),
)
def serve_run(setting: Setting) -> Figures:
    port = free_port()
    command = [str(Path(sys.executable).parent / "serve"), "run", "--app-dir", str(APPS)]
    command += ["--http-port", str(port), NOOP]
    env = setting.peer.environ("echo", setting.folder)
    started = time.perf_counter()
    with running(command, port=port, folder=setting.folder, env=env, cwd=APPS) as server:
        wait(server, payloads.echo(), payloads.is_echo, 60)
        answered = time.perf_counter()
        sizes = _when_settled(server.processes)
    return {"serve_run": answered - started, "serve_memory": sum(sizes) / 1e6, "serve_processes": len(sizes)}


def _when_settled(processes) -> list[int]:
    """Sizes of all processes, once there have been the same ones for a second."""
    before: set[int] = set()
    while True:
        now = {process.pid for process in processes()}
        if now == before:
            break
        before = now
        time.sleep(1.0)
    return [size for process in processes() if (size := process.memory_full_info().pss)]
