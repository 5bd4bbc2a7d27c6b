"""The `serve` command as people type it, in a folder of its own; nothing may be left when a test ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retinue.core import session as sessions

TIMEOUT_S = 60.0
SERVE = [sys.executable, "-m", "retinue.serve.cli.main"]
RETINUE = [sys.executable, "-m", "retinue.core.cli.main"]

Run = Callable[..., subprocess.CompletedProcess[str]]

APP = """
from retinue import serve


@serve.deployment(num_replicas=1)
class Greeter:
    def __init__(self, word):
        self.word = word

    async def __call__(self, request):
        return f"{self.word} 1"


app = Greeter.bind("hello")


def build(args):
    return Greeter.bind(args["word"])


@serve.deployment
class Broken:
    def __init__(self):
        print("the model file is missing", flush=True)
        raise RuntimeError("no model here")


broken = Broken.bind()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, with an application in it; sessions are beside it."""
    monkeypatch.setenv(sessions.TEMP_DIR_VARIABLE, str(tmp_path / "r"))
    for name in (sessions.TOKEN_VARIABLE, sessions.TOKEN_FILE_VARIABLE, "RETINUE_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "greeting_app.py").write_text(APP)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def serve(folder: Path) -> Iterator[Run]:
    """Run a command to its end; `code`: what it has to exit with."""

    def run(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*SERVE, *words], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    yield run
    assert list((folder.parent / "r").glob("s-*")) == []


@pytest.fixture
def cluster(folder: Path) -> Iterator[str]:
    """A cluster that outlives its commands; its address."""
    started = subprocess.run(
        [*RETINUE, "start", "--head", "--port", "0", "--num-cpus", "3", "--admin-port", "0"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    found = re.search(r"at (\S+:\d+)\.", started.stdout)
    assert found, started.stdout
    yield found[1]
    subprocess.run([*RETINUE, "stop", "--force"], capture_output=True, timeout=TIMEOUT_S, check=True)


class Foreground:
    """A `serve run` that stays. `wait_for` returns the first line of its stderr with the text."""

    def __init__(self, *words: str) -> None:
        self._process = subprocess.Popen([*SERVE, "run", *words], stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()
        with self._news:
            self.lines.append("<end>")
            self._news.notify_all()

    def wait_for(self, text: str, *, after: int = 0) -> str:
        def found() -> str | None:
            return next((line for line in self.lines[after:] if text in line), None)

        with self._news:
            assert self._news.wait_for(lambda: found() or "<end>" in self.lines, TIMEOUT_S), self.lines
        line = found()
        assert line is not None, "".join(self.lines)
        return line

    def url(self) -> str:
        """Where it serves, once it does."""
        found = re.search(r"http://\S+", self.wait_for("running at"))
        assert found
        return found[0]

    def end(self, number: int = signal.SIGINT) -> int:
        if self._process.poll() is None:
            os.kill(self._process.pid, number)
        code = self._process.wait(TIMEOUT_S)
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()
        return code


@pytest.fixture
def foreground(serve: Run) -> Iterator[Callable[..., Foreground]]:
    started: list[Foreground] = []

    def start(*words: str) -> Foreground:
        started.append(Foreground(*words))
        return started[-1]

    yield start
    for one in started:
        one.end()


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        return str(answer.read().decode())
