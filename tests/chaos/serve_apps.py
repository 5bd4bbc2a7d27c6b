"""Applications for the chaos tests of serve; replicas import this module."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

from retinue import serve

TINY = {"num_cpus": 0.1}
SEAT = {"num_cpus": 0.1, "resources": {"seat": 1}}


@serve.deployment(ray_actor_options=TINY, max_ongoing_requests=20)
class Worker:
    """Answers after a few milliseconds who it is."""

    def __init__(self, version: str = "1", breaks: bool = False, folder: str = "", delay_s: float = 0.004):
        if breaks:
            raise ValueError(f"no weights for version {version}")
        self.version = version
        self.folder = folder
        self.delay_s = delay_s
        self.config: Any = None

    def reconfigure(self, config: Any) -> None:
        self.config = config

    async def __call__(self) -> dict[str, Any]:
        await asyncio.sleep(self.delay_s)
        return {"pid": os.getpid(), "version": self.version, "config": self.config}

    def check_health(self) -> None:
        if self.folder and Path(self.folder, f"ill-{os.getpid()}").exists():
            raise RuntimeError("the model is ill")


@serve.deployment(ray_actor_options=TINY, max_ongoing_requests=100)
class Slow:
    """Requests wait in it until somebody opens it (a file: other processes can)."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self) -> dict[str, Any]:
        Path(self.folder, f"began-{os.getpid()}-{threading.get_ident()}").touch()
        pause = threading.Event()
        while not Path(self.folder, "open").exists():
            pause.wait(0.01)
        return {"pid": os.getpid(), "version": "1"}
