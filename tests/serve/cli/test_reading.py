"""What a status means, in few words."""

from __future__ import annotations

from typing import Any

from retinue.serve.cli.reading import base_urls, changes, failure, notes, outcome, table, urls
from retinue.serve.status_schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    ServeInstanceDetails,
    ServeStatus,
)


def status(**apps: str) -> ServeStatus:
    overviews = {
        name: ApplicationStatusOverview(ApplicationStatus(value), "", 0.0, {}) for name, value in apps.items()
    }
    return ServeStatus(applications=overviews)


def details(app_status: str = "RUNNING", message: str = "", **deployment: Any) -> ServeInstanceDetails:
    replica = {"replica_id": "app#Model#1", "state": "RUNNING", "start_time_s": 0.0}
    model = {
        "name": "Model",
        "status": "HEALTHY",
        "status_trigger": "UNSPECIFIED",
        "message": "",
        "deployment_config": {"name": "Model"},
        "target_num_replicas": 2,
        "required_resources": {},
        "replicas": [replica, {**replica, "replica_id": "app#Model#2", "state": "STARTING"}],
        **deployment,
    }
    app = {
        "name": "app",
        "route_prefix": "/app",
        "docs_path": None,
        "status": app_status,
        "message": message,
        "last_deployed_time_s": 0.0,
        "source": "imperative",
        "deployments": {"Model": model},
    }
    target = {"ip": "0.0.0.0", "port": 8000, "instance_id": "n", "name": "p"}
    group = {"protocol": "HTTP", "route_prefix": "/", "targets": [target, target]}
    return ServeInstanceDetails.model_validate(
        {"proxies": {}, "applications": {"app": app}, "target_groups": [group]}
    )


def test_what_was_deployed_runs_fails_is_gone_or_is_waited_for() -> None:
    seen = status(a="RUNNING", b="DEPLOYING", c="DEPLOY_FAILED", d="DELETING", e="UNHEALTHY")
    found = outcome(seen, ["a", "b", "c", "d", "e", "f"])
    assert (found.running, found.failed, found.gone) == (("a",), ("c",), ("d", "f"))
    assert list(found.waiting) == ["b", "e"]
    assert not found.is_settled
    assert outcome(seen, ["a", "c"]).is_settled


def test_an_application_is_reached_at_each_proxy_under_its_prefix() -> None:
    seen = details()
    assert base_urls(seen) == ["http://127.0.0.1:8000"]
    assert urls(seen, seen.applications["app"]) == ["http://127.0.0.1:8000/app"]
    assert table(seen) == [
        ["app", "RUNNING", "http://127.0.0.1:8000/app", "Model", "HEALTHY", "1 of 2, 1 STARTING"]
    ]
    assert notes(seen) == []


def test_a_failure_tells_the_reason_once_and_the_last_lines() -> None:
    dead = {
        "replica_id": "app#Model#0",
        "state": "STOPPED",
        "start_time_s": 0.0,
        "message": "no model",
        "log_tail": "loading\ngave up\n",
    }
    seen = details("DEPLOY_FAILED", "Model: no model", status="DEPLOY_FAILED", recent_dead_replicas=[dead])
    text = failure("app", seen.applications["app"])
    assert text.count("no model") == 1
    assert text.endswith("last lines of replica app#Model#0:\n  loading\n  gave up")
    assert notes(seen) == [text]
    assert "is gone" in failure("app", None)


def test_changes_of_status_are_told_once() -> None:
    before, after = status(a="RUNNING", b="RUNNING"), status(a="UNHEALTHY")
    assert changes(before, after, ["a", "b"]) == ["application 'a' is UNHEALTHY", "application 'b' is gone"]
    assert changes(after, after, ["a", "b"]) == []
