"""What `init()` refuses, and what it takes although it means little here."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

import retinue


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"resources": {"CPU": 1}}, "use num_cpus"),
        ({"resources": {"GPU": 1}}, "use num_gpus"),
        ({"resources": {"object_store_memory": 1e9}}, r"init\(object_store_memory"),
        ({"resources": {"license": -1}}, "license"),
        ({"object_store_memory": 1 << 20}, "75 MiB"),
    ],
)
def test_nodes_that_could_not_be_are_refused_before_anything_starts(
    arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        retinue.init("local", **arguments)
    assert not retinue.is_initialized()


def test_who_wants_a_dashboard_hears_where_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RETINUE_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(logging.getLogger("retinue"), "propagate", True)
    with caplog.at_level(logging.INFO, "retinue"):
        retinue.init(
            "local",
            num_cpus=1,
            object_store_memory=128 << 20,
            include_dashboard=True,
            configure_logging=False,
        )
        retinue.shutdown()
    assert "retinue status" in caplog.text
