"""Files that examples keep between runs, so that a second start is quick. All work without them.

They lie in ~/.cache/retinue-examples (XDG_CACHE_HOME instead of ~/.cache, if it is set), are named by a hash
of what they were made from, and may be deleted at any time.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

logger = logging.getLogger(__name__)


def cache_file(name: str, made_from: Iterable[str]) -> Path:
    """Where `name` (with its ending) is kept, if it is made from these texts."""
    digest = hashlib.sha256()
    for text in made_from:
        digest.update(text.encode() + b"\0")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retinue-examples"
    stem, dot, ending = name.partition(".")
    return folder / f"{stem}-{digest.hexdigest()[:16]}{dot}{ending}"


def keep(path: Path, content: bytes) -> None:
    """Write it whole or not at all: several replicas may do so at once. Where that cannot be, only tell."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content)
        os.replace(file.name, path)
    except OSError as error:
        logger.warning("%s is not kept for the next start: %s", path, error)
