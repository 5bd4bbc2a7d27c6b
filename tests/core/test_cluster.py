import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from retinue.core import cluster as clusters
from retinue.core import session as sessions
from retinue.core.cluster import (
    LOOPBACK,
    LocalCluster,
    NodeOptions,
    parse_address,
    start_head_node,
    start_local_cluster,
    start_node,
    stop,
)
from retinue.core.errors import RetinueSystemError
from retinue.core.node_watch import NodeWatch
from retinue.core.transport.blocking import BlockingClient
from retinue.core.wire import messages as m
from tests.core.fake_agent import use_fake_agents

ONE_CPU = NodeOptions(num_cpus=1)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A temp folder of its own, in which nothing is left."""
    use_fake_agents(monkeypatch)
    path = str(tmp_path / "r")
    monkeypatch.setenv(sessions.TEMP_DIR_VARIABLE, path)
    yield path
    try:
        assert os.listdir(path) == []
    finally:
        stop(force=True, include_private=True)


def test_a_local_cluster_answers_soon_and_leaves_nothing(base: str) -> None:
    cluster = start_local_cluster(ONE_CPU)
    with NodeWatch(cluster.head_address, cluster.token) as watch:
        watch.wait_alive(cluster.agents[0], timeout_s=10)
        assert [info.is_head for info in watch.nodes.values()] == [True]
    with BlockingClient(cluster.agent_address, b"", kind="agent") as client:
        client.request(m.Ping(0))
    assert sessions.find_cluster() is None
    assert sessions.find_cluster(include_private=True) is not None
    started = time.monotonic()
    cluster.shutdown()
    cluster.shutdown()
    assert time.monotonic() - started < 2.0


def test_nodes_come_and_go_and_a_dead_agent_is_noticed_at_once(base: str) -> None:
    cluster = LocalCluster(sessions.new_session(), tcp_host=LOOPBACK)
    cluster.start_head()
    first, second, third = (cluster.start_agent(ONE_CPU) for _ in range(3))
    with NodeWatch(cluster.head_address, cluster.token) as watch:
        for agent in (first, second, third):
            watch.wait_alive(agent, timeout_s=10)

        def is_dead(agent: object) -> None:
            node_id = agent.config.node_id  # type: ignore[attr-defined]
            watch.wait_until(lambda nodes: not nodes[node_id].alive, timeout_s=10)

        cluster.stop_agent(second)
        is_dead(second)
        cluster.stop_agent(third, is_graceful=False)
        is_dead(third)
        assert watch.nodes[third.config.node_id].death_reason == "its agent process ended"
        with pytest.raises(ConnectionRefusedError):
            BlockingClient(second.address, b"")
        assert cluster.head is not None
        cluster.head.kill()
        watch.close()
        watch.wait_alive(first, timeout_s=10)
    cluster.shutdown()


def test_a_second_node_needs_tcp(base: str) -> None:
    cluster = start_local_cluster(ONE_CPU)
    with pytest.raises(ValueError, match="TCP"):
        cluster.start_agent(ONE_CPU)
    cluster.shutdown()


def test_a_started_node_outlives_its_starter_and_is_found_and_stopped(base: str) -> None:
    started = start_head_node(ONE_CPU)
    assert sessions.find_cluster() == started.cluster
    head = started.cluster.head
    other = start_node(f"{head.host}:{head.port}", ONE_CPU)
    assert other.cluster.cluster_id == started.cluster.cluster_id
    with NodeWatch(head, started.session.token) as watch:
        watch.wait_until(lambda nodes: len(nodes) == 2, timeout_s=10)
    result = stop()
    assert (result.ended, result.killed) == (2, 0)
    assert stop().ended == 0


def test_the_agent_beside_it_restarts_a_killed_head(base: str) -> None:
    started = start_head_node(ONE_CPU)
    with NodeWatch(started.cluster.head, started.session.token) as watch:
        node_id = started.agent.config.node_id
        watch.wait_until(lambda nodes: node_id in nodes and nodes[node_id].alive, timeout_s=10)
        with BlockingClient(started.cluster.head, b"") as client:
            pid = _head_pid(client)
        pidfd = os.pidfd_open(pid)
        os.kill(pid, 9)
        assert select.select([pidfd], [], [], 10)[0]
        os.close(pidfd)
        watch.close()
        watch.wait_until(lambda nodes: node_id in nodes and nodes[node_id].alive, timeout_s=10)
    stop()


def _head_pid(client: BlockingClient) -> int:
    return int(msgspec.msgpack.decode(client.request(m.Query(0, "summary"))[1])["pid"])


def test_a_blocking_node_ends_with_its_starter(base: str) -> None:
    started = start_head_node(ONE_CPU, block=True)
    assert started.agent.returncode is None
    started.close()


def test_an_agent_that_does_not_end_is_killed_after_the_grace(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_agents(monkeypatch, "stubborn")
    monkeypatch.setattr(clusters, "AGENT_END_S", 0.05)
    start_head_node(ONE_CPU)
    result = stop(grace_period_s=0.05)
    assert (result.ended, result.killed) == (0, 1)


def test_stop_with_force_does_not_ask(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_agents(monkeypatch, "stubborn")
    start_head_node(ONE_CPU)
    assert stop(force=True).ended == 1


def test_a_node_that_fails_to_start_says_why(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_agents(monkeypatch, "broken")
    with pytest.raises(RetinueSystemError, match="no CPU on this machine"):
        start_head_node(ONE_CPU)


def test_joining_needs_an_address_and_a_token(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(sessions.TOKEN_VARIABLE, raising=False)
    with pytest.raises(ConnectionError, match="RETINUE_TOKEN"):
        start_node("127.0.0.1:1", ONE_CPU)
    assert parse_address("[::1]:80") == ("::1", 80)
    with pytest.raises(ValueError, match="host:port"):
        parse_address("localhost")
