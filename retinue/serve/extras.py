"""What the extra `serve` installs, and what to say where it is not. Imports nothing."""

from __future__ import annotations

# Names as they are imported.
PACKAGES = ("httptools", "prometheus_client", "pydantic", "starlette", "uvicorn", "websockets", "yaml")


def advice(error: ModuleNotFoundError) -> str | None:
    """What to install, or None if the extra does not have what is missing."""
    package = (error.name or "").partition(".")[0]
    if package not in PACKAGES:
        return None
    return f"serving needs {package}, which is not installed: pip install 'retinue[serve]'"
