"""Which modules an application's code needs: for the zygotes, the replicas' path, and its version.

A pickle names the modules that its code refers to; the user's own among them are followed through what they
have imported. Installed packages found so are preloaded in zygotes; files of the user's own count into the
version, since code that goes by reference is in no pickle. Lives here: that. Does not: importing anything.
"""

from __future__ import annotations

import hashlib
import os
import pickletools
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

# What replicas import by themselves.
_OWN = frozenset(
    {
        *(
            "retinue",
            "annotated_types",
            "anyio",
            "click",
            "cloudpickle",
            "google",
            "h11",
            "httptools",
            "idna",
        ),
        *("markdown_it", "mdurl", "msgspec", "psutil", "pydantic", "pydantic_core", "pygments", "rich"),
        *("sniffio", "starlette", "typing_extensions", "typing_inspection", "uvicorn", "uvloop", "yaml"),
        *("pip", "pytest", "_pytest", "pluggy", "setuptools"),
    }
)


class Dependencies(NamedTuple):
    """`preload`: modules of installed packages. `sys_path`: the user's own folders, in their order."""

    preload: list[str]
    sys_path: list[str]


def of(referenced: Iterable[set[str]]) -> Dependencies:
    """What an application's deployments need together (they share a zygote), from what each refers to."""
    names: set[str] = set()
    for part in referenced:
        names |= part
    installed = {name for name in reachable(names) if is_installed(name)}
    return Dependencies(
        sorted(name for name in installed if name.partition(".")[0] not in _OWN), user_folders()
    )


def referenced(pickled: bytes) -> set[str]:
    """The loaded modules that a pickle names."""
    return {
        argument
        for _, argument, _ in pickletools.genops(pickled)
        if isinstance(argument, str) and argument in sys.modules
    }


def reachable(names: Iterable[str]) -> set[str]:
    """These modules, and those that the user's own among them have imported, and so on."""
    found: set[str] = set()
    waiting = [name for name in names if name != "__main__"]
    while waiting:
        name = waiting.pop()
        if name in found or name not in sys.modules:
            continue
        found.add(name)
        if is_users(name):
            waiting += _imported_by(sys.modules[name])
    return found


def _imported_by(module: ModuleType) -> Iterator[str]:
    for value in list(vars(module).values()):
        if isinstance(value, ModuleType):
            yield value.__name__
        else:
            home = _home(value)
            if home is not None:
                yield home


def _home(value: Any) -> str | None:
    """The module that the class, function, or the object's class is from."""
    home = getattr(value, "__module__", None)
    if not isinstance(home, str):
        home = type(value).__module__
    return home if home != "builtins" else None


def is_installed(name: str) -> bool:
    """A module in the interpreter's package folders: the same in every process, and it does not change."""
    file = _file(name)
    return file is not None and file.startswith(_package_folders())


def is_users(name: str) -> bool:
    """A module in a folder of the user's own."""
    file = _file(name)
    if file is None or name.partition(".")[0] == "retinue":
        return False
    return not file.startswith((*_package_folders(), *_library()))


def _file(name: str) -> str | None:
    module = sys.modules.get(name)
    if module is None:
        return None
    file = getattr(module, "__file__", None)
    if file is None:  # a namespace package, or built in
        paths = list(getattr(module, "__path__", ()))
        file = paths[0] + os.sep if paths else None
    return os.path.abspath(file) if isinstance(file, str) else None


@cache
def _package_folders() -> tuple[str, ...]:
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    paths.add(site.getusersitepackages())
    # Debian's python has its packages beside, not in, what sysconfig says.
    paths |= {path for path in sys.path if path.rstrip(os.sep).endswith(("site-packages", "dist-packages"))}
    return tuple(os.path.abspath(path) + os.sep for path in paths if path)


@cache
def _library() -> tuple[str, ...]:
    paths = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    return tuple(os.path.abspath(path) + os.sep for path in paths if path)


def user_folders() -> list[str]:
    """The entries of sys.path that are neither of the interpreter nor of packages."""
    folders = []
    for entry in sys.path:
        path = os.path.abspath(entry or os.getcwd())
        inside = path + os.sep
        if os.path.isdir(path) and not inside.startswith((*_package_folders(), *_library())):
            folders.append(path)
    return list(dict.fromkeys(folders))


def source_digest(names: Iterable[str]) -> bytes:
    """Of the files of the user's own modules that these reach: other code, another digest."""
    digest = hashlib.sha256()
    for name in sorted(reachable(names)):
        file = _file(name) if is_users(name) else None
        if file is not None and os.path.isfile(file):
            digest.update(name.encode() + b"\0" + hashlib.sha256(Path(file).read_bytes()).digest())
    return digest.digest()
