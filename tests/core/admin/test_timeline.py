import json
from pathlib import Path
from typing import Any

from retinue.core.admin.timeline import trace_events, write_trace


def task(task_id: str, **more: Any) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "name": "f",
        "func_or_class_name": "f",
        "job_id": "1",
        "attempt_number": 0,
        "state": "FINISHED",
        "actor_id": None,
        "node_id": "n1",
        "worker_id": "w1",
        "worker_pid": 5,
        "start_time": 100.0,
        "end_time": 100.25,
        **more,
    }


def test_a_call_is_a_span_on_its_workers_line() -> None:
    events = trace_events([task("t1"), task("t2", worker_pid=6, worker_id="w2", node_id="n2")], now=200.0)
    names = [(e["name"], e["args"]["name"]) for e in events if e["ph"] == "M"]
    assert names == [
        ("process_name", "node n1"),
        ("process_name", "node n2"),
        ("thread_name", "worker 5 (w1)"),
        ("thread_name", "worker 6 (w2)"),
    ]
    spans = [e for e in events if e["ph"] == "X"]
    assert [(e["pid"], e["tid"], e["ts"], e["dur"]) for e in spans] == [
        (0, 5, 100_000_000, 250_000),
        (1, 6, 100_000_000, 250_000),
    ]


def test_a_running_call_lasts_until_now_and_a_waiting_one_is_left_out() -> None:
    running = task("t1", state="RUNNING", end_time=None)
    waiting = task("t2", start_time=None, worker_pid=None)
    events = trace_events([running, waiting], now=101.0)
    (span,) = [e for e in events if e["ph"] == "X"]
    assert span["dur"] == 1_000_000


def test_the_file_is_json_that_a_browser_reads(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    events = trace_events([task("t1", state="FAILED", error_type="ValueError")], now=0.0)
    write_trace(events, str(path))
    assert json.loads(path.read_text()) == events
    assert events[-1]["args"]["error"] == "ValueError"
