from __future__ import annotations

from pathlib import Path

from retinue.core.node.logs import (
    BURST_LINES,
    MAX_BEHIND_BYTES,
    REPEAT_WINDOW_S,
    LineFolder,
    LogFollower,
    tail,
)


def test_repeated_lines_are_folded_into_a_count() -> None:
    folder = LineFolder()
    assert folder.lines(["a", "a", "a", "b"], now=0.0) == ["a", "a [repeated 2 times]", "b"]


def test_a_count_is_told_after_a_while_of_silence() -> None:
    folder = LineFolder()
    assert folder.lines(["a", "a"], now=0.0) == ["a"]
    assert folder.tick(now=REPEAT_WINDOW_S / 2) == []
    assert folder.tick(now=REPEAT_WINDOW_S) == ["a [repeated 1 times]"]
    assert folder.tick(now=REPEAT_WINDOW_S * 2) == []


def test_a_flood_is_cut_and_what_was_cut_is_counted() -> None:
    folder = LineFolder()
    shown = folder.lines([str(i) for i in range(BURST_LINES + 50)], now=0.0)
    assert len(shown) == BURST_LINES
    later = folder.lines(["after"], now=10.0)
    assert later == ["[50 lines were not shown; they are in the worker's log file]", "after"]


class Screen:
    def __init__(self) -> None:
        self.lines: list[tuple[str, bool, str]] = []

    def show(self, job_id: bytes, source: str, is_stderr: bool, text: str) -> None:
        self.lines += [(source, is_stderr, line) for line in text.splitlines()]


def test_lines_are_shown_when_they_are_complete_and_the_rest_when_the_worker_is_dead(tmp_path: Path) -> None:
    out, err = tmp_path / "w.out", tmp_path / "w.err"
    screen = Screen()
    follower = LogFollower(screen.show)
    follower.follow(b"w", b"job", "worker", (str(out), str(err)))
    follower.poll(now=0.0)
    out.write_text("one\ntw")
    err.write_text("bad\n")
    follower.poll(now=0.1)
    assert screen.lines == [("worker", False, "one"), ("worker", True, "bad")]
    with out.open("a") as file:
        file.write("o\nthree")
    follower.follow(b"w", b"job", "Actor", (str(out), str(err)))
    follower.poll(now=0.2)
    follower.forget(b"w", now=0.3)
    assert screen.lines[2:] == [("Actor", False, "two"), ("Actor", False, "three")]


def test_of_a_file_that_grows_too_fast_the_middle_is_skipped(tmp_path: Path) -> None:
    out = tmp_path / "w.out"
    out.write_text("x" * 99 + "\n")
    screen = Screen()
    follower = LogFollower(screen.show)
    follower.follow(b"w", b"job", "worker", (str(out), str(tmp_path / "none")))
    follower.poll(now=0.0)
    with out.open("a") as file:
        file.write(("y" * 99 + "\n") * (MAX_BEHIND_BYTES // 50))
    follower.poll(now=0.1)
    assert "bytes were not shown" in screen.lines[1][2]


def test_a_tail_begins_with_a_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("first line\nsecond line\nthird line\n")
    assert tail(str(path), 25) == "second line\nthird line"
    assert tail(str(tmp_path / "none"), 25) == ""
