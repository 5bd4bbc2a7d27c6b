"""How Retinue's own log lines look, in the driver and its workers."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import Any

_ENCODINGS = ("TEXT", "JSON")


@dataclass
class LoggingConfig:
    """`encoding`: "TEXT" or "JSON" lines. `log_level`: a name of the logging module.

    `additional_log_standard_attrs`: further attributes of log records to write, e.g. ["name"].

    Raises ValueError for another encoding or level.
    """

    encoding: str = "TEXT"
    log_level: str = "INFO"
    additional_log_standard_attrs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.encoding not in _ENCODINGS:
            raise ValueError(f"encoding is one of {', '.join(_ENCODINGS)}, got {self.encoding!r}")
        if not isinstance(logging.getLevelName(self.log_level), int):
            raise ValueError(f"log_level is a level of the logging module, got {self.log_level!r}")

    def to_dict(self) -> dict[str, Any]:
        return {
            "encoding": self.encoding,
            "log_level": self.log_level,
            "additional_log_standard_attrs": list(self.additional_log_standard_attrs),
        }

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> LoggingConfig:
        """Raises TypeError for an unknown key."""
        return cls(**d)

    def _apply(self) -> None:
        root = logging.getLogger()
        root.setLevel(self.log_level)
        handler = logging.StreamHandler()
        handler.setFormatter(_JsonFormatter(self) if self.encoding == "JSON" else _TextFormatter(self))
        root.handlers = [handler]


class _TextFormatter(logging.Formatter):
    def __init__(self, config: LoggingConfig) -> None:
        extra = "".join(f" {name}=%({name})s" for name in config.additional_log_standard_attrs)
        super().__init__(f"%(asctime)s\t%(levelname)s %(filename)s:%(lineno)d -- %(message)s{extra}")


class _JsonFormatter(logging.Formatter):
    def __init__(self, config: LoggingConfig) -> None:
        super().__init__()
        self._extra = config.additional_log_standard_attrs

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "asctime": self.formatTime(record),
            "levelname": record.levelname,
            "message": record.getMessage(),
            "filename": record.filename,
            "lineno": record.lineno,
            "process": record.process,
        }
        if record.exc_info:
            line["exc_text"] = self.formatException(record.exc_info)
        for name in self._extra:
            line[name] = getattr(record, name, None)
        return json.dumps(line, default=str)
