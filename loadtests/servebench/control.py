"""A Retinue server that takes orders while load runs: deploy, scale, say which process is what."""

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from servebench import http
from servebench.peers import APPS, PEERS
from servebench.processes import Server, free_port, running
from servebench.ready import wait

CONTROLLER = "SERVE_CONTROLLER"
PROXY = "SERVE_PROXY"
REPLICA = "SERVE_REPLICA"


class OrderFailedError(RuntimeError):
    """What the server said of an order that it could not carry out."""


class Control:
    """`order` may be called from threads, one at a time."""

    def __init__(self, server: Server, answers: IO[str]) -> None:
        self.server = server
        self._answers = answers
        self._lock = threading.Lock()
        self._is_reached = False

    def order(self, order: str, **fields: Any) -> Any:
        """Raises OrderFailedError."""
        assert self.server.process.stdin is not None
        with self._lock:
            self.server.process.stdin.write(json.dumps({"order": order, **fields}).encode() + b"\n")
            self.server.process.stdin.flush()
            return self.answer()

    def answer(self) -> Any:
        line = self._answers.readline()
        if not line:
            raise OrderFailedError(f"the server ended\n{self.server.last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise OrderFailedError(answer["error"])
        return answer["value"]

    def deploy(self, version: str = "1", *, delay_s: float = 0.02, replicas: int = 2, **options: Any) -> None:
        """Returns when the new version runs, and the proxy has answered once."""
        self.order("deploy", version=version, delay_s=delay_s, replicas=replicas, **options)
        if not self._is_reached:
            wait(self.server, http.request(f"{http.PATH}?count=1"), lambda answer: answer.is_ok, 60)
            self._is_reached = True

    def pids(self, prefix: str) -> list[int]:
        """The processes of actors whose names begin so."""
        actors: dict[str, int] = self.order("actors")
        return [pid for name, pid in actors.items() if name.startswith(prefix)]

    def head_pid(self) -> int:
        for process in self.server.processes():
            if "retinue.core.head.main" in " ".join(process.cmdline()):
                return int(process.pid)
        raise OrderFailedError("there is no head")


@contextlib.contextmanager
def controlled(folder: Path) -> Iterator[Control]:
    port = free_port()
    reader, writer = os.pipe()
    peer = PEERS["retinue"]
    command = [peer.python, str(APPS / "controlled.py"), str(port), str(writer)]
    popen: dict[str, Any] = {"cwd": APPS, "pass_fds": [writer], "stdin": subprocess.PIPE}
    with (
        os.fdopen(reader) as answers,
        running(command, port=port, folder=folder, env=peer.environ("", folder), **popen) as server,
    ):
        os.close(writer)
        control = Control(server, answers)
        control.answer()
        yield control
        assert server.process.stdin is not None
        server.process.stdin.close()  # its loop over orders ends, and it shuts down in order
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(20)
