"""What serve's own metrics are made of, and what proxy and replica say with it."""

from __future__ import annotations

import time

import pytest

from retinue.serve.context import RequestContext
from retinue.serve.measures import Tally, Timings
from retinue.serve.messages import CallHead, HttpHead, HttpResponseHead, pack, status_of
from retinue.serve.replica.measures import RequestMeasures
from retinue.util.metrics import render_prometheus


def test_a_boundary_belongs_to_the_range_below_it() -> None:
    timings = Timings("t", "", ("a",), (1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 3.0):
        timings.add(("x",), value)
    (sample,) = timings.samples({"b": "y"})
    assert (sample["counts"], sample["sum"]) == ([2, 1, 1], 6.0)
    assert sample["tags"] == {"a": "x", "b": "y"}
    assert timings.counts() == {("x",): 4}


def test_keys_without_end_are_counted_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retinue.serve.measures.MAX_KEYS", 2)
    timings = Timings("t", "", ("a",))
    for key in ("x", "y", "z", "w", "x"):
        timings.add((key,), 1.0)
    assert timings.counts() == {("x",): 2, ("y",): 1, ("",): 2}


def test_a_tally_adds_up() -> None:
    tally = Tally("n", "", ("a",))
    tally.add(("x",))
    tally.add(("x",), 2)
    assert [s["value"] for s in tally.samples()] == [3.0]


@pytest.mark.parametrize("status", [100, 200, 204, 255, 256, 404, 503])
def test_a_status_is_read_without_decoding(status: int) -> None:
    assert status_of(pack(HttpResponseHead(status, [(b"a", b"b")]), b"body")) == status


def entered(head: HttpHead | CallHead) -> RequestContext:
    context = RequestContext("/r", "id", "app")
    context.head, context.began = head, time.monotonic()
    return context


def test_what_a_replica_counts() -> None:
    measures = RequestMeasures("app", "D", "r1", lambda: 3)
    lines: list[tuple[object, ...]] = []

    class Log:
        add = staticmethod(lines.append)

        @staticmethod
        def flush() -> None: ...

    measures.access_log = Log()  # type: ignore[assignment]
    measures.answered(entered(HttpHead("GET", "/r", b"", b"", [])), pack(HttpResponseHead(200, []), b""))
    measures.logs_proxied = True  # the proxy has logged the first one, and this replica has not
    measures._is_flushing = True  # the timer would need a loop
    measures.answered(entered(HttpHead("GET", "/r/x", b"", b"", [])), pack(HttpResponseHead(404, []), b""))
    measures.answered(entered(CallHead("predict")), b"")
    measures.raised(entered(CallHead("predict")), ValueError())
    cut = entered(CallHead("items"))
    cut.failure, cut.is_cancelled = "CancelledError", True
    measures.stream_over(cut)
    measures.raised(RequestContext(), ValueError())  # what came was no request
    assert [line[3:6] for line in lines] == [
        ("GET", "/r/x", 404),
        ("CALL", "predict", "OK"),
        ("CALL", "predict", "ERROR"),
        ("CALL", "items", "CANCELLED"),
    ]
    page = render_prometheus([measures._samples()])
    here = 'application="app",deployment="D",replica="r1"'
    own = f'{here},route="/r",method="predict"'
    assert f"retinue_serve_deployment_request_counter_total{{{own}}} 2.0" in page
    assert f'retinue_serve_deployment_error_counter_total{{{own},exception_type="ValueError"}} 1.0' in page
    assert f"retinue_serve_replica_processing_queries{{{here}}} 3.0" in page
    assert 'exception_type="CancelledError"' not in page
