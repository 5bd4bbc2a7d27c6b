from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from retinue.serve import context, logs
from retinue.serve.schema import EncodingType, LoggingConfig


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


def test_a_file_stays_within_bounds_and_loses_nothing_at_the_change(tmp_path: Path) -> None:
    file = logs.LogFile(tmp_path / "x.log", max_bytes=100)
    for number in range(12):
        file.write(f"line number {number:02d}....\n")  # 19 bytes: six fill it
    file.close()  # one of its writers
    file.write("the last\n")
    file.end()
    file.write("too late\n")
    old, new = (tmp_path / "x.log.1").read_text(), (tmp_path / "x.log").read_text()
    assert old.splitlines()[-1] == "line number 11...."
    assert new == "the last\n"


def test_settings_are_those_of_the_public_model() -> None:
    config = LoggingConfig(encoding=EncodingType.JSON, log_level="ERROR", enable_access_log=False)
    read = logs.read_settings(config.model_dump_json().encode())
    assert (read.encoding, read.log_level, read.enable_access_log) == ("JSON", "ERROR", False)
    assert logs.read_settings(b"") == logs.LogSettings()


def test_an_access_line_of_a_replica() -> None:
    line = (0.0, "id-1", "/r", "GET", "/r/a\nb", 200, 0.0012)
    text = logs.replica_access_form(LoggingConfig(), "replica", "app#D#1")(line)
    assert text.endswith(" replica app#D#1 id-1 -- GET /r/a\\nb 200 1.2ms\n")
    assert text.count("\n") == 1
    told = json.loads(
        logs.replica_access_form(LoggingConfig(encoding=EncodingType.JSON), "replica", "app#D#1")(line)
    )
    assert (told["application"], told["status"], told["latency_ms"]) == ("app", 200, 1.2)
