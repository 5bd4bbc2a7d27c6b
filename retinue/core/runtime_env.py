"""`runtime_env`: what a job, task or actor wants of its worker processes.

Supported: env_vars, working_dir and py_modules (local folders), preload, py_executable. Everything else
that Ray has is refused by name. Lives here: validation, and turning it into a WorkerEnv. Does not:
starting workers.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import msgspec

from retinue.core.errors import UnsupportedError
from retinue.core.wire.messages import WorkerEnv

_SUPPORTED = ("env_vars", "working_dir", "py_modules", "preload", "py_executable", "config")
_REFUSED = {
    "pip": "install the packages where the cluster is started, or name their python in py_executable",
    "uv": "install the packages where the cluster is started, or name their python in py_executable",
    "conda": "name the environment's python in py_executable",
    "container": "run the node itself in the container",
    "image_uri": "run the node itself in the container",
    "java_jars": "Retinue runs Python",
    "nsight": "start the profiler around the node",
    "rocprof_sys": "start the profiler around the node",
    "worker_process_setup_hook": "list the module in preload, or call the hook in the task",
    "excludes": "the folder is used where it is and never packed",
    "py_executable_args": "wrap the interpreter in a script and name that in py_executable",
}


@dataclasses.dataclass
class RuntimeEnvConfig:
    """Settings of making a runtime_env. Setting one up takes no downloads, so there is little to set.

    `setup_timeout_seconds`: how long a worker may take to start in it (default 600).
    `eager_install`: accepted for Ray's sake; nothing is installed.
    """

    setup_timeout_seconds: int = 600
    eager_install: bool = True
    log_files: list[str] | None = None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class RuntimeEnv(dict[str, Any]):
    """A validated runtime_env; also a plain dict.

    Raises TypeError or ValueError for a bad field, naming it, and UnsupportedError for one of Ray's
    that Retinue has not.
    """

    def __init__(
        self,
        *,
        env_vars: Mapping[str, str] | None = None,
        working_dir: str | os.PathLike[str] | None = None,
        py_modules: list[Any] | None = None,
        preload: list[str] | None = None,
        py_executable: str | None = None,
        config: Mapping[str, Any] | RuntimeEnvConfig | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        for name, value in others.items():
            if name not in _REFUSED:
                raise ValueError(f"runtime_env has no field {name!r}; it has {', '.join(_SUPPORTED)}")
            if value is not None and value != {} and value != []:
                raise UnsupportedError(f"runtime_env[{name!r}] is not supported; {_REFUSED[name]}")
        if env_vars is not None:
            self["env_vars"] = _checked_env_vars(env_vars)
        if working_dir is not None:
            self["working_dir"] = _checked_folder("working_dir", working_dir)
        if py_modules is not None:
            if not isinstance(py_modules, list | tuple):
                raise TypeError(
                    f"runtime_env['py_modules'] is a list of folders or modules, got {py_modules!r}"
                )
            self["py_modules"] = [_checked_module(m) for m in py_modules]
        if preload is not None:
            if not isinstance(preload, list | tuple) or not all(isinstance(m, str) for m in preload):
                raise TypeError(f"runtime_env['preload'] is a list of module names, got {preload!r}")
            self["preload"] = list(preload)
        if py_executable is not None:
            if not isinstance(py_executable, str):
                raise TypeError(f"runtime_env['py_executable'] is a path, got {py_executable!r}")
            self["py_executable"] = py_executable
        if config is not None:
            self["config"] = _checked_config(config)

    def to_dict(self) -> dict[str, Any]:
        return dict(self)

    def env_vars(self) -> dict[str, str]:
        return dict(self.get("env_vars", {}))

    def working_dir(self) -> str | None:
        folder: str | None = self.get("working_dir")
        return folder

    def py_modules(self) -> list[str] | None:
        modules: list[str] | None = self.get("py_modules")
        return modules

    def py_executable(self) -> str | None:
        executable: str | None = self.get("py_executable")
        return executable

    def get(self, name: str, default: Any = None, data_class: Any = None) -> Any:
        """The field, or `default`; with `data_class` (RuntimeEnvConfig) as an instance of it."""
        value = dict.get(self, name, default)
        if data_class is not None and isinstance(value, dict):
            return data_class(**value)
        return value


def _checked_env_vars(env_vars: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(env_vars, Mapping):
        raise TypeError(f"runtime_env['env_vars'] is a dict of strings, got {type(env_vars).__name__}")
    for key, value in env_vars.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"runtime_env['env_vars'] maps strings to strings, got {key!r}: {value!r}")
        if not key or "=" in key or "\0" in key or "\0" in value:
            raise ValueError(f"runtime_env['env_vars']: the system takes no variable {key!r}: {value!r}")
    return dict(env_vars)


def _checked_config(config: Mapping[str, Any] | RuntimeEnvConfig) -> dict[str, Any]:
    if isinstance(config, RuntimeEnvConfig):
        return config.to_dict()
    if not isinstance(config, Mapping):
        raise TypeError(f"runtime_env['config'] is a dict or a RuntimeEnvConfig, got {config!r}")
    known = [field.name for field in dataclasses.fields(RuntimeEnvConfig)]
    for name in config:
        if name not in known:
            raise ValueError(f"runtime_env['config'] has no field {name!r}; it has {', '.join(known)}")
    return dict(config)


def _checked_folder(field: str, path: str | os.PathLike[str]) -> str:
    text = _checked_path(field, path)
    full = os.path.abspath(os.path.expanduser(text))
    if not os.path.isdir(full):
        raise ValueError(f"runtime_env[{field!r}]={text!r} is not a folder")
    return full


def _checked_path(field: str, path: object) -> str:
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise TypeError(f"runtime_env[{field!r}] is a path, got {path!r}")
    if "://" in text:
        raise UnsupportedError(f"runtime_env[{field!r}]={text!r}: only local folders are supported")
    return text


def _checked_module(module: Any) -> str:
    if isinstance(module, ModuleType):
        paths: Any = getattr(module, "__path__", None)
        path: str | None = next(iter(paths)) if paths else getattr(module, "__file__", None)
        if path is None:
            raise ValueError(f"runtime_env['py_modules']: module {module.__name__} has no file")
        return os.path.abspath(path)
    text = os.path.abspath(os.path.expanduser(_checked_path("py_modules", module)))
    if not os.path.exists(text):
        raise ValueError(f"runtime_env['py_modules']: {module!r} does not exist")
    if not os.path.isdir(text) and not text.endswith(".py"):
        raise UnsupportedError(f"runtime_env['py_modules']: {module!r} is neither a folder nor a .py file")
    return text


def validated(runtime_env: Mapping[str, Any] | None) -> RuntimeEnv:
    """Any form of runtime_env as a RuntimeEnv; raises what its constructor raises.

    One that was checked before is checked again: it is a dict, and may have been changed.
    """
    if runtime_env is None:
        return RuntimeEnv()
    if not isinstance(runtime_env, Mapping):
        raise TypeError(f"runtime_env is a dict or a RuntimeEnv, got {type(runtime_env).__name__}")
    return RuntimeEnv(**dict(runtime_env))


def driver_env(job_id: bytes, namespace: str, runtime_env: RuntimeEnv) -> WorkerEnv:
    """The environment of a driver's workers: its import path, main script and folder, and its runtime_env."""
    file: str | None = getattr(sys.modules.get("__main__"), "__file__", None)
    script = os.path.abspath(file) if file else ""
    path = [os.path.abspath(p) if p else os.getcwd() for p in sys.path]
    base = WorkerEnv(
        job_id=job_id,
        working_dir=os.getcwd(),
        sys_path=list(dict.fromkeys(path)),
        main_script=script,
        namespace=namespace,
    )
    return extend(base, runtime_env)


def extend(base: WorkerEnv, runtime_env: RuntimeEnv) -> WorkerEnv:
    """`base` with a task's or actor's runtime_env on top; env_vars are merged, other fields replaced."""
    if not runtime_env:
        return base
    sys_path = list(base.sys_path)
    working_dir = runtime_env.working_dir()
    if working_dir is not None:
        sys_path.insert(0, working_dir)
    for module in runtime_env.py_modules() or ():
        sys_path.insert(0, os.path.dirname(module))
    env_vars = {**base.env_vars, **runtime_env.env_vars()}
    described = {**json.loads(base.runtime_env), **runtime_env}
    if env_vars:
        described["env_vars"] = env_vars
    return msgspec.structs.replace(
        base,
        env_vars=env_vars,
        working_dir=working_dir or base.working_dir,
        sys_path=sys_path,
        preload=runtime_env.get("preload") or base.preload,
        py_executable=runtime_env.py_executable() or base.py_executable,
        runtime_env=json.dumps(described),
    )
