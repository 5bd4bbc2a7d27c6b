"""Read one stream to its end as it is written, leave another in the middle, and see that the server noticed.

python -m examples.token_stream.client ["A prompt"] [--words 60] [--url http://127.0.0.1:8000]
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence

import httpx

LEAVE_AFTER = 10
PATIENCE_S = 5.0


def read(client: httpx.Client, prompt: str, words: int) -> Iterator[str]:
    """The words, as they come. Raises httpx.HTTPError if the stream breaks."""
    parameters = {"prompt": prompt, "words": words}
    with client.stream("GET", "/generate", params=parameters) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: "):
                content = json.loads(line.removeprefix("data: "))
                if "word" in content:
                    yield content["word"]


def show(prompt: str, words: Iterator[str]) -> None:
    print(f"\n{prompt}", end="", flush=True)
    started = time.perf_counter()
    first_s = 0.0
    count = 0
    for word in words:
        count += 1
        first_s = first_s or time.perf_counter() - started
        print(word, end="", flush=True)
    took_s = time.perf_counter() - started
    print(f"\n({count} words in {took_s:.1f} s, the first after {first_s * 1000:.0f} ms)")


def leave_early(client: httpx.Client, prompt: str) -> None:
    """Read some words of many, and leave; print what the server's counters say of it."""
    before = client.get("/stats").json()
    words = read(client, prompt, 10_000)
    for _ in range(LEAVE_AFTER):
        next(words)
    words.close()  # type: ignore[attr-defined]  # closes the connection
    started = time.perf_counter()
    while (now := client.get("/stats").json())["cancelled"] == before["cancelled"]:
        if time.perf_counter() - started > PATIENCE_S:
            raise SystemExit("the server has not noticed that its reader left")
    noticed_ms = (time.perf_counter() - started) * 1000
    written = now["words"] - before["words"]
    print(
        f"\nLeft after {LEAVE_AFTER} of 10000 words: the server wrote {written} ({noticed_ms:.0f} ms later)."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("prompt", nargs="?", default="The try statement")
    parser.add_argument("--words", type=int, default=60)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    options = parser.parse_args(arguments)
    with httpx.Client(base_url=f"{options.url}/stream", timeout=60) as client:
        show(options.prompt, read(client, options.prompt, options.words))
        leave_early(client, options.prompt)


if __name__ == "__main__":
    main()
