"""The README's screen of serving does what it says there."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from retinue import serve
from tests.examples.conftest import EXAMPLES, Serve

README = (EXAMPLES.parent / "README.md").read_text()


def test_the_application_answers_curl(
    run_example: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = re.search(r"```python\n# spam.py\n(.*?)```", README, re.DOTALL)
    asked = re.search(r"^\$ curl localhost:8000 -d (.*)\n(.*)$", README, re.MULTILINE)
    assert code
    assert asked
    (tmp_path / "spam.py").write_text(code[1])
    monkeypatch.syspath_prepend(tmp_path)
    app: serve.Application = importlib.import_module("spam").app
    url = run_example(app, "semantic_search")
    command = ["curl", "-s", url, "-d", *shlex.split(asked[1])]
    answered = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert answered.stdout == asked[2]
