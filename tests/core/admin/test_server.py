"""The admin server's application over a scripted cluster."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("starlette")
httpx = pytest.importorskip("httpx")

from starlette.responses import PlainTextResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402

from retinue.core.admin import context as admin_context  # noqa: E402
from retinue.core.admin.ask import Answers, ServerUnavailable, Target  # noqa: E402
from retinue.core.admin.context import AdminContext  # noqa: E402
from retinue.core.admin.server import make_app  # noqa: E402
from retinue.core.wire import messages as m  # noqa: E402

HERE = m.Address(b"w" * 16, b"n" * 16, "/nowhere")
NODE = m.NodeInfo(b"n" * 16, HERE, {"CPU": 4.0}, {"CPU": 1.0})
TOKEN = {"Authorization": "Bearer secret"}


class FakeAsker:
    is_away = False

    def __init__(self, target: Target, timeout_s: float) -> None:
        pass

    def nodes(self) -> list[m.NodeInfo]:
        return [NODE]

    def ask_head(self, message: Any) -> Any:
        if self.is_away:
            raise ServerUnavailable("the head does not answer")
        return {"epoch": 1, "actors": 0, "jobs": 0} if isinstance(message, m.Query) else m.JobList(1, [])

    def ask_nodes(self, what: str, arguments: Any = None) -> Answers:
        return Answers(missing=["node 1: timed out"])


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(admin_context, "Asker", FakeAsker)
    context = AdminContext(Target(HERE, b"secret"), "cluster-1")
    extra = [Route("/api/mine", lambda request: PlainTextResponse("mine"))]
    transport = httpx.ASGITransport(make_app(context, b"secret", extra), raise_app_exceptions=False)

    def get(path: str, headers: Any = TOKEN) -> Any:
        return anyio_run(transport, path, headers)

    return get


def anyio_run(transport: Any, path: str, headers: Any) -> Any:
    import asyncio

    async def fetch() -> Any:
        async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(fetch())


def test_only_health_is_told_without_the_token(client: Any) -> None:
    assert client("/healthz", {}).text == "ok\n"
    for path in ("/metrics", "/api/version", "/api/state/nodes", "/api/mine", "/nowhere", "/healthz/x"):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            answer = client(path, headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"


def test_rows_come_as_json(client: Any) -> None:
    answer = client("/api/state/nodes?filter=state=ALIVE&limit=5")
    assert [row["node_id"] for row in answer.json()["rows"]] == [NODE.node_id.hex()]
    assert client("/api/state/placement-groups").json() == {"rows": [], "notes": []}


def test_what_is_missing_is_a_note(client: Any) -> None:
    with pytest.warns(UserWarning, match="timed out"):
        assert client("/api/state/workers").json() == {"rows": [], "notes": ["node 1: timed out"]}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/state/dragons", 404),
        ("/api/state/nodes?filter=x", 400),
        ("/api/state/nodes?filter=labels=x", 400),
        ("/api/state/nodes?limit=many", 400),
        ("/nowhere", 404),
    ],
)
def test_wrong_questions_are_the_callers_fault(client: Any, path: str, status: int) -> None:
    answer = client(path)
    assert answer.status_code == status
    assert answer.json()["error"]


def test_a_head_that_is_away_is_503(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeAsker, "is_away", True)
    assert client("/metrics").status_code == 503
    assert client("/api/state/jobs").status_code == 503


def test_metrics_are_prometheus_text(client: Any) -> None:
    answer = client("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "retinue_nodes_silent 1.0" in answer.text


def test_routes_of_libraries_are_served(client: Any) -> None:
    assert client("/api/mine").text == "mine"
    assert client("/api/version").json()["cluster_id"] == "cluster-1"
