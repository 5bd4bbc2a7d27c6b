"""Ask Python's reference, and print the passages that answer.

python -m examples.semantic_search.client ["a question" ...] [-k 2] [--url http://127.0.0.1:8000]
"""

import argparse
import time
from collections.abc import Sequence
from textwrap import shorten

import httpx

QUESTIONS = [
    "how do I catch an exception",
    "why is a default argument shared between calls",
    "split a string into words",
    "what is a context manager good for",
    "stop the debugger at a line",
]


def ask(client: httpx.Client, question: str, k: int) -> None:
    started = time.perf_counter()
    answer = client.get("/search", params={"q": question, "k": k})
    elapsed = time.perf_counter() - started
    answer.raise_for_status()
    found = answer.json()
    print(f"\n{question}?  ({elapsed * 1000:.0f} ms, {found['searched']} passages)")
    for hit in found["hits"]:
        place = f'help("{hit["topic"]}")'
        print(f"  {hit['score']:.2f}  {place:<24} {shorten(hit['heading'], 60)}")
        print(f"        {shorten(beginning(hit['text']), 100, placeholder=' ...')}")


def beginning(text: str) -> str:
    """Its first paragraph that is neither grammar nor a method's signature."""
    paragraphs = text.split("\n\n")
    return next((each for each in paragraphs if "::=" not in each and not each.endswith(")")), text)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("questions", nargs="*", default=QUESTIONS)
    parser.add_argument("-k", type=int, default=2, help="how many passages for each question")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    options = parser.parse_args(arguments)
    with httpx.Client(base_url=options.url, timeout=60) as client:
        for question in options.questions:
            ask(client, question.rstrip("?"), options.k)


if __name__ == "__main__":
    main()
