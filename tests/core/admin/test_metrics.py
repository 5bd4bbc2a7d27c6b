import sys
from types import ModuleType
from typing import Any

import msgspec
import pytest

from retinue.core.admin.metrics import cluster_samples, node_samples
from retinue.core.metric_text import render_prometheus
from retinue.core.metrics_report import INTERVAL_S, MAX_REPORT_BYTES, METRICS_MODULE, MetricsReporter, encode
from retinue.core.wire.messages import Address, NodeInfo

FACTS = {
    "tasks_finished": 10,
    "tasks_failed": 1,
    "task_events_dropped": 0,
    "actors": 2,
    "workers": 3,
    "worker_starts": 4,
    "total": {"CPU": 2.0},
    "available": {"CPU": 0.5},
    "waiting": [{"resources": {"CPU": 1.0}, "count": 7}, {"resources": {"GPU": 1.0}, "count": 1}],
    "store": {"objects": 1, "used_bytes": 2, "budget_bytes": 3, "pinned_bytes": 4, "on_disk_bytes": 5},
}


def test_a_nodes_metrics_read_as_prometheus_text() -> None:
    text = render_prometheus([node_samples(FACTS)], [{"node": "n1"}])
    assert 'retinue_tasks_finished_total{node="n1"} 10.0' in text
    assert 'retinue_leases_waiting{node="n1"} 8.0' in text
    assert 'retinue_resource_used{resource="CPU",node="n1"} 1.5' in text
    assert 'retinue_object_store_on_disk_bytes{node="n1"} 5.0' in text


def test_the_heads_metrics_count_nodes_by_state() -> None:
    here = Address(b"", b"", "")
    nodes = [NodeInfo(b"1", here, {}, {}), NodeInfo(b"2", here, {}, {}, alive=False)]
    text = render_prometheus([cluster_samples({"actors": 1, "jobs": 2, "epoch": 3}, nodes)])
    assert 'retinue_nodes{state="dead"} 1.0' in text
    assert "retinue_head_epoch 3.0" in text


class Module(ModuleType):
    def __init__(self) -> None:
        super().__init__(METRICS_MODULE)
        self.samples: list[dict[str, Any]] = [{"name": "a", "value": 1.0}]

    def snapshot(self) -> list[dict[str, Any]]:
        return self.samples


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Module:
    module = Module()
    monkeypatch.setitem(sys.modules, METRICS_MODULE, module)
    return module


def test_reports_go_out_at_most_every_interval_and_only_with_news(module: Module) -> None:
    sent: list[bytes] = []
    reporter = MetricsReporter(lambda message, payload: sent.append(payload))
    assert reporter.tick(10.0) == INTERVAL_S
    assert reporter.tick(10.5) == INTERVAL_S - 0.5
    assert reporter.tick(12.0) == INTERVAL_S
    assert [msgspec.msgpack.decode(payload) for payload in sent] == [module.samples]
    module.samples = [{"name": "a", "value": 2.0}]
    reporter.tick(13.0)
    reporter.tick(14.0)
    assert len(sent) == 2


def test_nothing_is_reported_while_nobody_uses_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, METRICS_MODULE, raising=False)
    sent: list[bytes] = []
    reporter = MetricsReporter(lambda message, payload: sent.append(payload))
    reporter.tick(10.0)
    reporter.report()
    assert sent == []


def test_a_report_never_exceeds_its_limit() -> None:
    samples: list[dict[str, object]] = [{"name": "x" * 1000} for _ in range(1000)]
    assert 0 < len(encode(samples)) <= MAX_REPORT_BYTES
