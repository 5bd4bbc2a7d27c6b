"""Logs of serve's processes: a file for each in the session's `logs/serve`, lines that name the request.

Users log with `logging.getLogger("retinue.serve")`; each line has the request's id, route and application.

Lives here: handlers and the lines' form. Does not: the access log's lines (`access_log`).
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import msgspec

from retinue.core import doors
from retinue.serve.context import request_context
from retinue.serve.schema import EncodingType, LoggingConfig

LOGGER_NAME = "retinue.serve"
FOLDER = ("logs", "serve")


def log_folder(config: LoggingConfig | None = None) -> Path:
    """Where serve's processes of this node log; made if it is not there."""
    given = config.logs_dir if config is not None else None
    folder = Path(given) if given else Path(doors.session_dir()).joinpath(*FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def configure(config: LoggingConfig, *, file_name: str, component: str, component_id: str) -> Path:
    """Have this process's serve logger write to a file of its own, and to stderr. Returns the file.

    Called again, it replaces what the earlier call set. `component` and `component_id` are in each line.
    """
    path = log_folder(config) / file_name
    logger = logging.getLogger(LOGGER_NAME)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    form: logging.Formatter
    if config.encoding == EncodingType.JSON:
        form = JsonFormatter(component, component_id, config.additional_log_standard_attrs)
    else:
        form = TextFormatter(component, component_id, config.additional_log_standard_attrs)
    to_file = logging.FileHandler(path, encoding="utf-8", delay=True)
    to_terminal = logging.StreamHandler()
    for added in (to_file, to_terminal):
        added.setFormatter(form)
        logger.addHandler(added)
    logger.setLevel(config.log_level)
    logger.propagate = False
    return path


class TextFormatter(logging.Formatter):
    """`LEVEL time component id request -- message`."""

    def __init__(self, component: str, component_id: str, attributes: list[str]) -> None:
        super().__init__()
        self._who = f"{component} {component_id}"
        self._attributes = attributes

    def format(self, record: logging.LogRecord) -> str:
        request_id = request_context.get().request_id
        words = [record.levelname, stamp(record.created), self._who]
        if request_id:
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
        request = request_context.get()
        if request.request_id:
            line["request_id"] = request.request_id
            line["route"] = request.route
            line["application"] = request.app_name
        for name in self._attributes:
            line[name] = getattr(record, name, None)
        line.update((k, v) for k, v in record.__dict__.items() if k not in _STANDARD and k not in line)
        if record.exc_info:
            line["exc_text"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=repr).decode()


def stamp(at: float) -> str:
    """Wall clock as people read it, in milliseconds."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at))},{int(at % 1 * 1000):03d}"


_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime"}
