"""What is compared: how each peer's server is started, for which works, in which environment.

Lives here: commands, variables, versions. Does not: processes, figures.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from servebench.processes import free_port

ROOT = Path(__file__).resolve().parents[2]
APPS = Path(__file__).parent / "apps"
REQUIREMENTS = Path(__file__).parent / "requirements"
PACKAGES = ("uvloop", "uvicorn", "starlette", "httptools")  # whose versions change figures
ALL_WORKS = ("echo", "stream", "raw", "batch", "embed")


@dataclass(frozen=True)
class Peer:
    name: str
    title: str
    package: str  # on PyPI
    app: str  # a file of apps/
    environment: str  # a folder below the root
    requirements: str  # a file of requirements/; "" for Retinue, which is installed already
    works: tuple[str, ...] = ALL_WORKS
    variables: Mapping[str, str] = field(default_factory=dict)
    start_timeout_s: float = 60.0
    pauses_streams: bool = True  # can wait between two events of a stream without holding up others

    @property
    def python(self) -> str:
        return sys.executable if not self.requirements else str(ROOT / self.environment / "bin" / "python")

    @property
    def is_installed(self) -> bool:
        return Path(self.python).exists() and bool(self.versions().get(self.package))

    def command(self, work: str, port: int) -> list[str]:
        if self.name == "bentoml":
            service = [f"{Path(self.app).stem}:service", "--host", "127.0.0.1", "--port", str(port)]
            return [self.python, "-m", "bentoml", "serve", *service, "--working-dir", str(APPS)]
        return [self.python, str(APPS / self.app), work, str(port)]

    def environ(self, work: str, folder: Path) -> dict[str, str]:
        """The variables of its server; whatever it writes lies in `folder`."""
        inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        own = {
            "SERVEBENCH_WORK": work,
            "PYTHONPATH": str(APPS) if self.requirements else os.pathsep.join([str(APPS), str(ROOT)]),
            "TOKENIZERS_PARALLELISM": "false",
            "BENTOML_HOME": str(folder / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True",
            "RETINUE_TEMP_DIR": str(folder / "retinue"),
            "RAY_TMPDIR": str(folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "TMPDIR": str(folder),
        }
        return {**inherited, **own, **self._haproxy(folder), **self.variables}

    def _haproxy(self, folder: Path) -> dict[str, str]:
        """Its files and ports are fixed ones unless told otherwise, and would meet those of another run."""
        if "RAY_SERVE_ENABLE_HA_PROXY" not in self.variables:
            return {}
        prefix = "RAY_SERVE_HAPROXY_"
        return {
            prefix + "CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            prefix + "SOCKET_PATH": str(folder / "haproxy.sock"),
            prefix + "SERVER_STATE_BASE": str(folder),
            prefix + "SERVER_STATE_FILE": str(folder / "server-state"),
            prefix + "METRICS_PORT": str(free_port()),
            prefix + "STATS_PORT": str(free_port()),
        }

    def versions(self) -> dict[str, str]:
        """What is installed of its own package and of those that change figures."""
        code = (
            "import sys, importlib.metadata as m\n"
            "for name in sys.argv[1:]:\n"
            "  try: print(name, m.version(name))\n"
            "  except m.PackageNotFoundError: pass\n"
        )
        done = subprocess.run(
            [self.python, "-c", code, self.package, *PACKAGES], capture_output=True, text=True, check=False
        )
        return dict(line.split() for line in done.stdout.splitlines())

    def install(self, *, with_embedding: bool) -> None:
        """Make its environment. CalledProcessError if that fails."""
        if not self.requirements:
            return
        if not Path(self.python).exists():
            subprocess.run([sys.executable, "-m", "venv", str(ROOT / self.environment)], check=True)
        files = [self.requirements]
        if with_embedding and "embed" in self.works:
            files.append("embedding.txt")
        wanted = [part for name in files for part in ("--requirement", str(REQUIREMENTS / name))]
        subprocess.run(
            [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted],
            check=True,
        )


_TUNED = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
_WITHOUT_RAW = ("echo", "stream", "batch", "embed")

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            "retinue", "Retinue", "retinue", "retinue_app.py", ".venv", "",
            (*ALL_WORKS, "call"), {"SERVEBENCH_MODULE": "retinue"},
        ),
        Peer(
            "uvicorn", "bare uvicorn", "uvicorn", "uvicorn_app.py", ".venv-peers/uvicorn", "uvicorn.txt",
            ("echo", "stream", "raw"),
        ),
        Peer(
            "mosec", "mosec", "mosec", "mosec_app.py", ".venv-peers/mosec", "mosec.txt",
            pauses_streams=False,
        ),
        Peer(
            "litserve", "LitServe", "litserve", "litserve_app.py", ".venv-peers/litserve", "litserve.txt",
            _WITHOUT_RAW,
        ),
        Peer(
            "bentoml", "BentoML", "bentoml", "bentoml_app.py", ".venv-peers/bentoml", "bentoml.txt",
            _WITHOUT_RAW,
        ),
        Peer(
            "ray-tuned", "Ray Serve, tuned", "ray", "ray_app.py", ".venv-ray", "ray.txt",
            (*ALL_WORKS, "call"), {"SERVEBENCH_MODULE": "ray", **_TUNED}, 120.0,
        ),
        Peer(
            "ray", "Ray Serve", "ray", "ray_app.py", ".venv-ray", "ray.txt",
            (*ALL_WORKS, "call"), {"SERVEBENCH_MODULE": "ray"}, 120.0,
        ),
    )
}  # fmt: skip


class Folder:
    """A short-named folder for a run's files: sockets lie in it, whose paths may have 107 bytes."""

    def __enter__(self) -> Path:
        self._path = Path(tempfile.mkdtemp(prefix="sb-", dir="/tmp"))
        return self._path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
