import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.core.admin import log_reader
from retinue.core.admin.log_reader import TextFilter, group_of, tail_offset


def reader(content: bytes, part_bytes: int = 8) -> log_reader.ReadPart:
    def read(offset: int) -> tuple[bytes, int, int]:
        begin = max(0, len(content) + offset) if offset < 0 else offset
        return content[begin : begin + part_bytes], begin, len(content)

    return read


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reader, "PART_BYTES", 8)


@given(st.lists(st.text("ab\n", max_size=12)).map(lambda parts: "\n".join(parts).encode()), st.integers(0, 9))
def test_the_tail_is_what_the_last_lines_are(content: bytes, lines: int) -> None:
    expected = b"".join(content.splitlines(keepends=True)[-lines:] if lines else [])
    assert content[tail_offset(reader(content), lines) :] == expected


@given(st.text(), st.integers(1, 4))
def test_text_is_decoded_across_the_borders_of_parts(text: str, size: int) -> None:
    data = text.encode("utf-8", "surrogatepass")
    plain = TextFilter("utf-8", "replace", drop_ansi=False)
    shown = "".join(plain.feed(data[i : i + size]) for i in range(0, len(data), size))
    assert shown + plain.feed(b"", is_last=True) == data.decode("utf-8", "replace")


@given(st.integers(1, 12))
def test_colours_are_dropped_even_where_parts_cut_them(size: int) -> None:
    data = b"\x1b[31mred\x1b[0m and plain\nlast \x1b[1;4mline"
    plain = TextFilter("utf-8", "strict", drop_ansi=True)
    shown = "".join(plain.feed(data[i : i + size]) for i in range(0, len(data), size))
    assert shown + plain.feed(b"", is_last=True) == "red and plain\nlast line"


def test_without_an_encoding_bytes_stay_bytes() -> None:
    assert TextFilter(None, "strict", drop_ansi=False).feed(b"\xff") == b"\xff"


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("worker-ab-1.out", "worker_out"),
        ("worker-ab-1.err", "worker_err"),
        ("head.log", "head"),
        ("agent-ab.log", "agent"),
        ("x", "other"),
    ],
)
def test_files_are_grouped_by_name(name: str, group: str) -> None:
    assert group_of(name) == group
