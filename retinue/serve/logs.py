"""Logs of serve's processes: a file for each in the session's `logs/serve`, lines that name the request.

Users log with `logging.getLogger("retinue.serve")`; each record has the request's id, route and application.

Lives here: handlers, files and their bounds, the lines' form. Does not: the proxy's access lines
(`access_log`). Free of pydantic, which replicas go without.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TextIO

import msgspec

from retinue.core import doors
from retinue.serve.access_log import stamp
from retinue.serve.context import request_context

LOGGER_NAME = "retinue.serve"
FOLDER = ("logs", "serve")
# A file of this size becomes the file `NAME.1`, whose predecessor goes.
MAX_BYTES_SETTING = "RETINUE_SERVE_LOG_MAX_BYTES"
MAX_BYTES = 64 * 1024 * 1024
_JSON = "JSON"


class LogOptions(Protocol):
    """What `schema.LoggingConfig` and `LogSettings` have in common."""

    @property
    def encoding(self) -> str: ...
    @property
    def log_level(self) -> str: ...
    @property
    def logs_dir(self) -> str | None: ...
    @property
    def enable_access_log(self) -> bool: ...
    @property
    def additional_log_standard_attrs(self) -> list[str]: ...


class LogSettings(msgspec.Struct, frozen=True):
    """`schema.LoggingConfig` as its JSON is read where pydantic is not."""

    encoding: str = "TEXT"
    log_level: str = "INFO"
    logs_dir: str | None = None
    enable_access_log: bool = True
    additional_log_standard_attrs: list[str] = []


def read_settings(text: bytes) -> LogSettings:
    """The settings that the JSON of a LoggingConfig says; empty: the defaults."""
    return msgspec.json.decode(text, type=LogSettings) if text else LogSettings()


def log_folder(config: LogOptions | None = None) -> Path:
    """Where serve's processes of this node log; made if it is not there."""
    given = config.logs_dir if config is not None else None
    folder = Path(given) if given else Path(doors.session_dir()).joinpath(*FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class LogFile:
    """A file to which several threads and writers add whole lines; it is kept within bounds.

    Writers may `close` it, which the others do not notice; `end` closes it. Another process that writes to
    the same file (the proxies of two nodes on one machine) loses nothing: what it adds after a change of
    files goes on in the old one for a while.
    """

    def __init__(self, path: Path, max_bytes: int = 0) -> None:
        self.path = path
        self._max_bytes = max_bytes or int(os.environ.get(MAX_BYTES_SETTING, MAX_BYTES))
        self._lock = threading.Lock()
        self._file: TextIO | None = path.open("a", encoding="utf-8")
        self._size = self._file.tell()

    def write(self, text: str) -> int:
        """Add whole lines, at once: nothing is left in a buffer. Raises OSError."""
        with self._lock:
            file = self._file
            if file is None:
                return 0
            file.write(text)
            file.flush()
            self._size += len(text)
            if self._size >= self._max_bytes:
                self._change()
        return len(text)

    def _change(self) -> None:
        assert self._file is not None
        self._file.close()
        if self.path.exists() and self.path.stat().st_size >= self._max_bytes:
            # Otherwise another process has done it already.
            self.path.replace(self.path.with_name(self.path.name + ".1"))
        self._file = self.path.open("a", encoding="utf-8")
        self._size = self._file.tell()

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def end(self) -> None:
        with self._lock:
            file, self._file = self._file, None
            if file is not None:
                file.close()


class _FileHandler(logging.Handler):
    def __init__(self, file: LogFile) -> None:
        super().__init__()
        self._out = file

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._out.write(self.format(record) + "\n")
        except Exception:  # noqa: BLE001 - as every handler of logging
            self.handleError(record)

    def close(self) -> None:
        super().close()
        self._out.end()


def add_request(record: logging.LogRecord) -> bool:
    """A filter that says of every record which request it belongs to."""
    request = request_context.get()
    record.request_id = request.request_id
    record.route = request.route
    record.application = request.app_name
    return True


def configure(
    config: LogOptions,
    *,
    file_name: str,
    component: str,
    component_id: str,
    terminal_level: int = logging.NOTSET,
) -> LogFile:
    """Have this process's serve logger write to a file of its own, and to stderr. Returns the file.

    Called again, it replaces what the earlier call set. `component` and `component_id` are in each line.
    `terminal_level`: what is less goes to the file alone. Raises OSError where the file cannot be made.
    """
    file = LogFile(log_folder(config) / file_name)
    logger = logging.getLogger(LOGGER_NAME)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    form: logging.Formatter
    if config.encoding == _JSON:
        form = JsonFormatter(component, component_id, config.additional_log_standard_attrs)
    else:
        form = TextFormatter(component, component_id, config.additional_log_standard_attrs)
    to_terminal = logging.StreamHandler()
    to_terminal.setLevel(terminal_level)
    for added in (_FileHandler(file), to_terminal):
        added.setFormatter(form)
        added.addFilter(add_request)
        logger.addHandler(added)
    if add_request not in logger.filters:
        logger.addFilter(add_request)  # for handlers that users add
    logger.setLevel(config.log_level)
    logger.propagate = False
    return file


def replica_access_form(config: LogOptions, component: str, component_id: str) -> Callable[[Any], str]:
    """How a replica's access line is written: (monotonic time, request id, route, method, path, status,
    seconds). With TEXT `INFO time component id request -- METHOD PATH STATUS 1.2ms`."""
    offset = time.time() - time.monotonic()
    who = f"{component} {component_id}"

    def as_text(line: Any) -> str:
        at, request_id, _, method, path, status, seconds = line
        path = path if path.isprintable() else path.encode("unicode_escape").decode()
        return (
            f"INFO {stamp(at + offset)} {who} {request_id} -- {method} {path} {status} "
            f"{seconds * 1000:.1f}ms\n"
        )

    def as_json(line: Any) -> str:
        at, request_id, route, method, path, status, seconds = line
        told = {
            "levelname": "INFO",
            "asctime": stamp(at + offset),
            "component_name": component,
            "component_id": component_id,
            "request_id": request_id,
            "route": route,
            "application": component_id.partition("#")[0],
            "method": method,
            "path": path,
            "status": status,
            "latency_ms": round(seconds * 1000, 3),
        }
        return msgspec.json.encode(told).decode() + "\n"

    return as_json if config.encoding == _JSON else as_text


class TextFormatter(logging.Formatter):
    """`LEVEL time component id request -- message`."""

    def __init__(self, component: str, component_id: str, attributes: list[str]) -> None:
        super().__init__()
        self._who = f"{component} {component_id}"
        self._attributes = attributes

    def format(self, record: logging.LogRecord) -> str:
        words = [record.levelname, stamp(record.created), self._who]
        if request_id := getattr(record, "request_id", ""):
            words.append(request_id)
        words += [f"{name}={getattr(record, name, None)}" for name in self._attributes]
        text = f"{' '.join(words)} -- {record.getMessage()}"
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        return text


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the record's extra fields among the others."""

    def __init__(self, component: str, component_id: str, attributes: list[str]) -> None:
        super().__init__()
        self._component = component
        self._component_id = component_id
        self._attributes = attributes

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "levelname": record.levelname,
            "asctime": stamp(record.created),
            "component_name": self._component,
            "component_id": self._component_id,
            "message": record.getMessage(),
            "filename": record.filename,
            "lineno": record.lineno,
        }
        if getattr(record, "request_id", ""):
            line |= {name: getattr(record, name) for name in _OF_REQUEST}
        for name in self._attributes:
            line[name] = getattr(record, name, None)
        line |= {k: v for k, v in record.__dict__.items() if k not in _STANDARD and k not in line}
        if record.exc_info:
            line["exc_text"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=repr).decode()


_OF_REQUEST = ("request_id", "route", "application")
_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {
    "message",
    "asctime",
    *_OF_REQUEST,
}
