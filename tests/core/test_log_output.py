from __future__ import annotations

import logging

import pytest

from retinue.core import log_output


def test_a_filter_that_fails_is_logged_and_its_line_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def take(source: str, line: str) -> bool:
        if line == "bad":
            raise RuntimeError("drawing failed")
        return line == "taken"

    monkeypatch.setattr(log_output, "line_filters", [take])
    with caplog.at_level(logging.ERROR):
        log_output.LogPrinter().show("worker pid=1", b"bad\ntaken\nfree\n", is_stderr=False)
    assert capsys.readouterr().out == "(worker pid=1) bad\n(worker pid=1) free\n"
    assert "could not be drawn" in caplog.text
