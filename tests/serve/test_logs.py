from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from retinue.serve import context, logs
from retinue.serve.schema import LoggingConfig


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    found = logging.getLogger(logs.LOGGER_NAME)
    was = (found.level, found.propagate)
    yield found
    for handler in list(found.handlers):
        found.removeHandler(handler)
        handler.close()
    found.level, found.propagate = was


def configured(folder: Path, **options: object) -> Path:
    config = LoggingConfig.model_validate({"logs_dir": str(folder), **options})
    return logs.configure(config, file_name="x.log", component="replica", component_id="app#D#1").path


def test_a_text_line_names_who_and_which_request(tmp_path: Path, logger: logging.Logger) -> None:
    path = configured(tmp_path)
    logger.info("outside of %s", "requests")
    token = context.request_context.set(context.RequestContext("/r", "id-1", "app"))
    logger.warning("inside")
    context.request_context.reset(token)
    first, second = path.read_text().splitlines()
    assert first.startswith("INFO 2")
    assert first.endswith("replica app#D#1 -- outside of requests")
    assert second.startswith("WARNING 2")
    assert second.endswith("replica app#D#1 id-1 -- inside")


def test_a_json_line_has_the_extra_fields(tmp_path: Path, logger: logging.Logger) -> None:
    path = configured(tmp_path, encoding="JSON", additional_log_standard_attrs=["process"])
    token = context.request_context.set(context.RequestContext("/r", "id-1", "app"))
    logger.info("hello", extra={"model": "m", "thing": object})
    context.request_context.reset(token)
    line = json.loads(path.read_text())
    assert line["message"] == "hello"
    assert (line["request_id"], line["route"], line["application"]) == ("id-1", "/r", "app")
    assert (line["model"], line["thing"]) == ("m", "<class 'object'>")
    assert isinstance(line["process"], int)


def test_an_exception_keeps_its_traceback(tmp_path: Path, logger: logging.Logger) -> None:
    path = configured(tmp_path)
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("it failed")
    assert "ValueError: why" in path.read_text()


def test_the_level_holds_and_a_second_configuration_replaces_the_first(
    tmp_path: Path, logger: logging.Logger
) -> None:
    configured(tmp_path, log_level="WARNING")
    path = configured(tmp_path, log_level="ERROR")
    logger.warning("no")
    logger.error("yes")
    assert [line.rpartition("-- ")[2] for line in path.read_text().splitlines()] == ["yes"]
