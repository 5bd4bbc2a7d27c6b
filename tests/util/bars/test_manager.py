"""The shell over a bar that records what is done to it, and once over tqdm itself."""

from __future__ import annotations

import builtins
import io
import json
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

import retinue
from retinue.core import log_output
from retinue.experimental import tqdm_ray
from retinue.util.bars import bar, manager, wire
from retinue.util.bars.wire import BarState


class FakeBar:
    made: list[FakeBar]

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.total = options["total"]
        self.n: float = 0
        self.pos = -options["position"]
        self.desc = options["desc"]
        self.did: list[str] = []
        FakeBar.made.append(self)

    def update(self, n: float) -> None:
        self.n += n

    def set_description(self, desc: str, refresh: bool) -> None:
        self.desc = desc

    def refresh(self) -> None:
        self.did.append("refresh")

    def clear(self) -> None:
        self.did.append("clear")

    def close(self) -> None:
        self.did.append("close")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[FakeBar]:
    FakeBar.made = []
    driver = manager.BarManager(ip="here", pid=1, new_bar=FakeBar)
    monkeypatch.setattr(manager, "_manager", driver)
    monkeypatch.setattr(manager, "instance", lambda: driver)
    monkeypatch.setattr(builtins, "print", builtins.print)  # put back whatever happens
    monkeypatch.setattr(retinue, "is_initialized", lambda: False, raising=False)
    return FakeBar.made


def state(uuid: str, **changes: Any) -> BarState:
    fields: dict[str, Any] = {
        "ip": "here", "pid": 1, "pos": 0, "desc": "d", "x": 0, "total": 9, "unit": "it", "closed": False
    }  # fmt: skip
    return BarState(uuid=uuid, **{**fields, **changes})


def test_states_become_bars(fakes: list[FakeBar]) -> None:
    manager.instance().draw(state("a", x=2))
    manager.instance().draw(state("b", pid=2))
    manager.instance().draw(state("a", x=5, total=20, desc="new"))
    first, second = fakes
    assert (first.n, first.total, first.desc, first.pos) == (5, 20, "new", 0)
    assert second.pos == -1
    manager.instance().draw(state("a", x=6, closed=True))
    assert first.n == 6
    assert first.did[-1] == "close"
    assert (second.pos, second.did) == (0, ["clear", "refresh"])
    manager.instance().process_ended("here", 2)
    assert second.did[-1] == "close"


def test_lines_of_workers_are_told_apart(fakes: list[FakeBar]) -> None:
    assert not manager.draw_line("ordinary")
    assert manager.draw_line(wire.encode(state("a")))
    assert manager.draw_line(wire.encode(state("a", closed=True)))
    assert len(fakes) == 1


def test_worker_output_does_not_run_into_the_bars(
    fakes: list[FakeBar], capsys: pytest.CaptureFixture[str]
) -> None:
    assert manager.take_line in log_output.line_filters
    assert not manager.take_line("f pid=2", "printed as usual")
    assert manager.take_line("f pid=2", wire.encode(state("a", pid=2)))
    assert manager.take_line("f pid=2", "a line between")
    assert fakes[0].did == ["clear", "refresh"]
    assert manager.take_line("f pid=2", wire.encode(state("a", pid=2, closed=True)))
    assert not manager.take_line("f pid=2", "printed as usual")
    assert capsys.readouterr().out == "(f pid=2) a line between\n"


def test_decoded_lines_are_taken_as_well(fakes: list[FakeBar]) -> None:
    manager.instance().process_state_update({"no": "bar"})
    manager.instance().process_state_update(json.loads(wire.encode(state("a"))))
    manager.instance().draw(state("a", closed=True))
    assert len(fakes) == 1


def test_print_makes_room_while_a_bar_is_open(
    fakes: list[FakeBar], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = builtins.print
    manager.instance().draw(state("a"))
    assert builtins.print is manager.safe_print
    print("hello")
    print("elsewhere", file=io.StringIO())
    assert fakes[0].did == ["clear", "refresh"]
    manager.instance().draw(state("a", closed=True))
    assert builtins.print is plain
    assert capsys.readouterr().out == "hello\n"


def test_the_patch_of_print_can_be_turned_off(fakes: list[FakeBar], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.print
    monkeypatch.setenv("RETINUE_TQDM_PATCH_PRINT", "0")
    manager.instance().draw(state("a"))
    assert builtins.print is plain


def test_without_tqdm_nothing_is_drawn() -> None:
    silent = manager.BarManager(ip="here", pid=1, new_bar=None)
    silent.draw(state("a"))
    silent.draw(state("a", closed=True))


def test_a_missing_tqdm_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr("retinue.util.debug._seen", set())
    assert manager._tqdm_factory() is None
    assert manager._tqdm_factory() is None
    assert [record.message for record in caplog.records] == [
        "progress bars are not drawn: install tqdm (pip install tqdm)"
    ]


class TestBar:
    def test_in_the_driver_it_is_drawn(self, fakes: list[FakeBar]) -> None:
        with tqdm_ray.tqdm(range(3), desc="items", unit="x", flush_interval_s=0) as shown:
            assert list(shown) == [0, 1, 2]
        [drawn] = fakes
        assert (drawn.n, drawn.total, drawn.options["unit"], drawn.did[-1]) == (3, 3, "x", "close")

    def test_states_in_between_are_left_out(
        self, fakes: list[FakeBar], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 1000.0
        monkeypatch.setattr(bar, "time", SimpleNamespace(monotonic=lambda: now))
        shown = tqdm_ray.tqdm(total=10, flush_interval_s=5)
        shown.update()
        shown.update(2)
        assert fakes[0].n == 1
        now += 5
        shown.update()
        assert fakes[0].n == 4
        shown.update()
        shown.set_description("late")
        shown.close()
        shown.close()
        assert fakes[0].n == 5
        assert fakes[0].desc.endswith("late")

    def test_in_a_worker_it_prints_lines(
        self, fakes: list[FakeBar], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(bar, "_is_worker", lambda: True)
        shown = tqdm_ray.tqdm((i for i in range(3)), desc="items", total=3, flush_interval_s=0)
        assert list(shown) == [0, 1, 2]
        states = [wire.decode(line) for line in capsys.readouterr().out.splitlines()]
        assert [(s.x, s.closed) for s in states if s] == [(1, False), (2, False), (3, False), (3, True)]
        assert not fakes

    def test_total_and_n_are_as_in_tqdm(self, fakes: list[FakeBar]) -> None:
        shown = tqdm_ray.tqdm()
        assert shown.total is None
        shown.total, shown.n = 5, 2
        shown.refresh()
        shown.close()
        assert (fakes[0].total, fakes[0].n) == (5, 2)
        with pytest.raises(ValueError, match="without an iterable"):
            next(iter(shown))


def test_tqdm_itself_draws(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    monkeypatch.setattr(builtins, "print", builtins.print)
    driver = manager.BarManager(ip="here", pid=1, new_bar=manager._tqdm_factory())
    driver.draw(state("a", desc="first"))
    driver.draw(state("b", pid=2, desc="second"))
    driver.draw(state("a", desc="first", x=9, closed=True))
    driver.hide_bars()
    driver.unhide_bars()
    driver.draw(state("b", pid=2, desc="second", x=4, total=8, closed=True))
    text = capsys.readouterr().err
    assert "first: 100%" in text
    assert "(pid=2) second:  50%" in text


@pytest.mark.e2e
@pytest.mark.usefixtures("cluster")
def test_a_task_knows_that_it_is_not_the_driver() -> None:
    def is_worker() -> bool:
        return bar._is_worker()

    class Actor:
        def is_worker(self) -> bool:
            return bar._is_worker()

    assert not is_worker()
    assert retinue.get(retinue.remote(is_worker).remote())
    assert retinue.get(retinue.remote(Actor).remote().is_worker.remote())


@pytest.mark.e2e
@pytest.mark.usefixtures("cluster")
def test_a_bar_in_a_task_is_drawn_by_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("retinue.core.driver")
    drawn: list[BarState] = []
    is_closed = threading.Event()

    class Driver:
        has_bars = False

        def draw(self, state: BarState) -> None:
            drawn.append(state)
            if state.closed:
                is_closed.set()

    driver = Driver()
    monkeypatch.setattr(manager, "_manager", driver)
    monkeypatch.setattr(manager, "instance", lambda: driver)

    def work() -> int:
        return sum(tqdm_ray.tqdm(range(5), desc="items", flush_interval_s=0))

    assert retinue.get(retinue.remote(work).remote(), timeout=60) == 10
    assert is_closed.wait(60)
    assert [state.x for state in drawn] == [1, 2, 3, 4, 5, 5]
    assert {(state.desc, state.total) for state in drawn} == {("items", 5)}


@pytest.mark.e2e
@pytest.mark.usefixtures("cluster")
def test_a_driver_without_bars_of_its_own_draws_those_of_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bars: list[FakeBar] = []
    is_closed = threading.Event()

    class Bar(FakeBar):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            bars.append(self)

        def close(self) -> None:
            super().close()
            is_closed.set()

    monkeypatch.setattr(manager, "_manager", None)
    monkeypatch.setattr(manager, "_tqdm_factory", lambda: Bar)

    def work() -> int:
        return sum(tqdm_ray.tqdm(range(5), desc="items", flush_interval_s=0))

    task = retinue.remote(work)
    assert retinue.get(task.remote(), timeout=60) == 10
    assert is_closed.wait(60)
    assert len(bars) == 1
    assert retinue.get(task.remote(), timeout=60) == 10
