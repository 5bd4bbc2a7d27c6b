"""What is sent in each work, and when an answer to it is right."""

import json
import math
from collections.abc import Callable

from servebench.http import PATH, Answer, json_request, request
from servebench.stats import is_event_stream_right
from servebench.texts import texts

RAW_BYTES = 220 * 1024
ECHO = {"text": "a small request", "n": 1}
ECHO_LUA = "'" + json.dumps(ECHO) + "'"
RAW_LUA = f'string.rep("x", {RAW_BYTES})'
VECTOR_SIZE = 384
CHUNKS = 200

Check = Callable[[Answer], bool]


def remembering(check: Check) -> Check:
    """The same check, but a body that was right once is not read again: for answers that are all alike."""
    known: set[bytes] = set()

    def is_right(answer: Answer) -> bool:
        body = bytes(answer.body)
        if body in known:
            return True
        if check(answer):
            known.add(body)
            return True
        return False

    return is_right


def echo() -> bytes:
    return json_request(ECHO)


def is_echo(answer: Answer) -> bool:
    return answer.json() == ECHO


def raw() -> bytes:
    return request(PATH, b"x" * RAW_BYTES, content_type="application/octet-stream")


def is_raw(answer: Answer) -> bool:
    return answer.body == b"%d" % RAW_BYTES


def stream(chunks: int = CHUNKS, pause_ms: int = 0) -> bytes:
    """The same bytes for every peer: those that read JSON find there what others find in the query."""
    fields = {"chunks": chunks, "pause_ms": pause_ms}
    return json_request(fields, f"{PATH}?chunks={chunks}&pause_ms={pause_ms}")


def is_stream(chunks: int = CHUNKS) -> Check:
    return lambda answer: is_event_stream_right(answer.body, chunks)


def batch(number: int, *, as_list: bool = False) -> bytes:
    """`as_list`: for BentoML, whose clients send batches that it makes larger ones of."""
    return json_request({"n": [number] if as_list else number})


def is_double(number: int) -> Check:
    return lambda answer: answer.json() in ({"n": 2 * number}, [2 * number])


def embed(number: int, *, as_list: bool = False) -> bytes:
    text = texts()[number % len(texts())]
    return json_request({"text": [text] if as_list else text})


def is_vector(answer: Answer) -> bool:
    value = answer.json()
    vector = value["vector"] if isinstance(value, dict) else value[0]
    return len(vector) == VECTOR_SIZE and math.isclose(sum(x * x for x in vector), 1.0, abs_tol=1e-3)


def probe(work: str, peer: str) -> tuple[bytes, Check]:
    """A request whose right answer says that a server of `work` is ready."""
    as_list = peer == "bentoml"
    return {
        "echo": lambda: (echo(), is_echo),
        "raw": lambda: (raw(), is_raw),
        "stream": lambda: (stream(), is_stream()),
        "batch": lambda: (batch(7, as_list=as_list), is_double(7)),
        "embed": lambda: (embed(0, as_list=as_list), is_vector),
        "call": lambda: (request(f"{PATH}?n=1"), lambda answer: len(answer.json()) == 1),
    }[work]()
