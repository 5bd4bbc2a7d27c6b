"""The streamed language model: events one by one, the same text for a seed, readers that leave."""

from __future__ import annotations

import json
import re
import time
from itertools import pairwise

import httpx
import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")

from examples.semantic_search.passages import passages
from examples.token_stream import client
from examples.token_stream.app import Settings, build
from tests.examples.conftest import Serve

TOPICS = ["try", "raise", "with", "while"]
WORD = re.compile(r"\w+")


@pytest.fixture(scope="module")
def url(run_example: Serve) -> str:
    return run_example(build(Settings(epochs=40, topics=TOPICS)), "token_stream")


def text(url: str, **parameters: object) -> str:
    answer = httpx.get(f"{url}/stream/generate", params={"pause_s": 0, **parameters}, timeout=60)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done = answer.text.strip().split("\n\n")
    assert done.splitlines() == ["event: done", f'data: {{"words": {len(events)}}}']
    return "".join(json.loads(event.removeprefix("data: "))["word"] for event in events)


def test_it_has_learned_what_follows(url: str) -> None:
    written = WORD.findall(text(url, prompt="The exception", words=60, temperature=0.3, seed=1))
    read = WORD.findall(" ".join(passage.prose for passage in passages(TOPICS)))
    known = set(pairwise(read))
    pairs = list(pairwise(written))
    assert len(set(pairs)) > 20
    assert sum(pair in known for pair in pairs) > 0.6 * len(pairs)


def test_a_seed_gives_the_same_text_again(url: str) -> None:
    one, same, other = (text(url, words=30, seed=seed, temperature=1) for seed in (1, 1, 2))
    assert one == same != other


def test_words_come_one_by_one(url: str) -> None:
    started = time.monotonic()
    with httpx.Client(base_url=f"{url}/stream", timeout=60) as http:
        words = client.read(http, "The", 1000)  # which take 20 s
        for _ in range(3):
            next(words)
        words.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 10


def test_a_reader_that_leaves_stops_the_work(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    client.main(["--url", url, "--words", "5"])
    printed = capsys.readouterr().out
    assert "(5 words in" in printed
    stopped = int(printed.partition("server wrote ")[2].split()[0])
    assert client.LEAVE_AFTER <= stopped < client.LEAVE_AFTER + 100
    assert httpx.get(f"{url}/stream/stats").json()["running"] == 0
