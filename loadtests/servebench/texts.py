"""A real corpus that every machine has: Python's own reference text, in passages. Standard library only."""

from functools import cache
from pydoc_data.topics import topics

LONGEST = 600  # characters, about a hundred words


@cache
def texts(count: int = 512) -> list[str]:
    passages = [" ".join(p.split()) for topic in sorted(topics) for p in topics[topic].split("\n\n")]
    return [p[:LONGEST] for p in passages if len(p) > 80][:count]
