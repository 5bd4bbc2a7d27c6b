"""Python's reference text, which every Python has, cut into passages.

Lives here: what becomes a passage. Does not: vectors, or searching.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pydoc_data.topics import topics

# A passage ends where it has this many and a sentence begins: the model sees 256 tokens, and a short passage
# is about one thing.
PASSAGE_WORDS = 80
_UNDERLINE = re.compile(r"([=*~^\-])\1{2,}")
_SIGNATURE = re.compile(r"(class )?[a-z]\w*(\.\w+)+\(.*\)")


@dataclass(frozen=True)
class Passage:
    """`topic` is what `help("...")` takes. `prose` is the text without code and grammar."""

    topic: str
    heading: str
    text: str
    prose: str

    @property
    def searched(self) -> str:
        """What a question is compared with. Grammar and code say little to a model of prose."""
        return f"{self.heading}. {self.prose}"


def passages(wanted: Sequence[str] | None = None) -> list[Passage]:
    """All passages of these topics (None: of all), each once. Raises KeyError for an unknown topic."""
    found: dict[str, Passage] = {}
    # The longest topics are made of others: what is in both belongs to the shorter one.
    for topic in sorted(wanted or topics, key=lambda topic: (len(topics[topic]), topic)):
        for passage in _cut(topic):
            found.setdefault(passage.text, passage)
    return list(found.values())


def _cut(topic: str) -> Iterator[Passage]:
    heading = topic
    paragraphs: list[str] = []
    for paragraph in re.split(r"\n\s*\n", topics[topic].strip()):
        title = _title(paragraph)
        is_full = len(" ".join(paragraphs).split()) >= PASSAGE_WORDS and _is_prose(paragraph)
        if title or is_full:
            yield from _passage(topic, heading, paragraphs)
            heading, paragraphs = title or heading, []
        if not title or title == paragraph:
            paragraphs.append(paragraph)
    yield from _passage(topic, heading, paragraphs)


def _title(paragraph: str) -> str:
    """Of a section, or of the description of one method; "": it is neither."""
    lines = paragraph.splitlines()
    if len(lines) == 2 and _UNDERLINE.fullmatch(lines[1].strip()):
        return lines[0].strip()
    return paragraph if _SIGNATURE.fullmatch(paragraph) else ""


def _passage(topic: str, heading: str, paragraphs: Sequence[str]) -> Iterator[Passage]:
    prose = [" ".join(each.split()) for each in paragraphs if _is_prose(each)]
    if prose:
        yield Passage(topic, heading, "\n\n".join(paragraphs), " ".join(prose))


def _is_prose(paragraph: str) -> bool:
    """Code and grammar are indented; so are descriptions of methods, but these are sentences."""
    if "+--" in paragraph:  # a table
        return False
    if not paragraph.startswith("   "):
        return True
    text = paragraph.strip()
    return text[0].isupper() and text[-1] in ".:)" and ">>>" not in text and "::=" not in text
