"""Serve on three nodes: where replicas and proxies are, and what becomes of them when a node goes."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

import retinue
from retinue import serve
from retinue.cluster_utils import Cluster
from retinue.core.current import get_runtime
from retinue.core.wire.messages import DrainNode
from retinue.serve.messages import PROXY_NAME_PREFIX
from retinue.serve.schema import ReplicaDetails
from retinue.util.state import list_actors
from tests.e2e import serving

APP = "where"


class Where:
    def __call__(self) -> str:
        return retinue.get_runtime_context().get_node_id()


@pytest.fixture
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETINUE_TEMP_DIR", str(tmp_path_factory.mktemp("r")))
        patch.delenv("RETINUE_ADDRESS", raising=False)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
        for _ in range(2):
            cluster.add_node(num_cpus=4)
        cluster.wait_for_nodes()
        cluster.connect()
        yield cluster
        serve.shutdown()
        cluster.shutdown()


def replicas() -> list[ReplicaDetails]:
    return serving.deployment("Where", APP).replicas


def nodes_of_replicas() -> Counter[str]:
    return Counter(r.node_id for r in replicas() if r.state == "RUNNING" and r.node_id)


def healthy_proxies() -> set[str]:
    return {node_id for node_id, proxy in serving.details().proxies.items() if proxy.status == "HEALTHY"}


def test_a_proxy_on_every_node_with_replicas_and_replacement_when_a_node_goes(topology: Cluster) -> None:
    nodes = {node.node_id for node in topology.list_all_nodes()}
    serve.start(proxy_location="EveryNode", http_options={"port": 0})
    deployment = serve.deployment(Where, num_replicas=3, ray_actor_options={"num_cpus": 1})
    serve.run(deployment.bind(), name=APP)
    assert set(nodes_of_replicas()) == nodes  # spread
    serving.until(lambda: healthy_proxies() == nodes, "not every node has a proxy")
    for target in serving.details().target_groups[0].targets:
        url = f"http://{target.ip}:{target.port}/"
        assert httpx.get(url, timeout=serving.TIMEOUT_S).text == target.instance_id  # the nearest replica
    lost = next(iter(topology.worker_nodes))
    topology.remove_node(lost, allow_graceful=False)
    left = nodes - {lost.node_id}
    serving.until(
        lambda: sum(nodes_of_replicas().values()) == 3 and set(nodes_of_replicas()) <= left,
        "no other replica was started",
    )
    serving.until(lambda: healthy_proxies() == left and set(serving.details().proxies) == left)
    host, port = serving.address()
    assert httpx.get(f"http://{host}:{port}/", timeout=serving.TIMEOUT_S).text in left


def test_a_limit_per_node_and_a_proxy_on_the_heads_node_alone(topology: Cluster) -> None:
    assert topology.head_node is not None
    serve.start(proxy_location="HeadOnly", http_options={"port": 0})
    deployment = serve.deployment(
        Where, num_replicas=5, max_replicas_per_node=2, ray_actor_options={"num_cpus": 0.1}
    )
    serve.run(deployment.bind(), name=APP)
    assert sorted(nodes_of_replicas().values()) == [1, 2, 2]
    serving.until(lambda: healthy_proxies() == {topology.head_node.node_id})
    lost = next(iter(topology.worker_nodes))
    topology.remove_node(lost, allow_graceful=False)
    serving.until(
        lambda: sorted(nodes_of_replicas().values()) == [2, 2] and lost.node_id not in nodes_of_replicas(),
        "four replicas have room on two nodes",
    )
    new = topology.add_node(num_cpus=4)
    serving.until(lambda: nodes_of_replicas()[new.node_id] == 1, "the fifth replica goes to the new node")


def test_replicas_leave_a_node_that_drains_before_it_ends(topology: Cluster) -> None:
    serve.start(proxy_location="HeadOnly", http_options={"port": 0})
    deployment = serve.deployment(Where, num_replicas=3, ray_actor_options={"num_cpus": 1})
    handle = serve.run(deployment.bind(), name=APP)
    leaving = next(iter(topology.worker_nodes)).node_id
    assert nodes_of_replicas()[leaving] == 1
    before = set(serving.pids("Where", APP))
    get_runtime().head.call(DrainNode(0, bytes.fromhex(leaving)))

    def has_moved() -> bool:
        assert handle.remote().result(timeout_s=serving.TIMEOUT_S)  # no request fails meanwhile
        found = nodes_of_replicas()
        assert sum(found.values()) + sum(r.state == "PENDING_MIGRATION" for r in replicas()) >= 3
        return not any(r.node_id == leaving for r in replicas()) and sum(found.values()) == 3

    serving.until(has_moved, "a replica stays on the node that drains")
    assert len(before & set(serving.pids("Where", APP))) == 2


def test_kill_9_of_one_of_two_proxies_on_a_port_refuses_no_connection(topology: Cluster) -> None:
    serve.start(proxy_location="HeadOnly", http_options={"port": 0, "num_processes": 2})
    serve.run(serve.deployment(Where).bind(), name=APP)
    names = [
        f"{PROXY_NAME_PREFIX}{node_id}-{slot}" for node_id in serving.details().proxies for slot in (0, 1)
    ]
    serving.until(lambda: len(living(names)) == 2, "there are not two proxies")
    host, port = serving.address()
    before = living(names)
    os.kill(min(before.values()), signal.SIGKILL)
    answers = Counter[str]()
    while len(living(names)) < 2 or living(names) == before or sum(answers.values()) < 200:
        try:
            answers[str(httpx.get(f"http://{host}:{port}/", timeout=serving.TIMEOUT_S).status_code)] += 1
        except httpx.ConnectError:
            answers["refused"] += 1
    assert answers.keys() == {"200"}


def living(names: list[str]) -> dict[str, int]:
    return {a.name: a.pid for a in list_actors() if a.name in names and a.state == "ALIVE" and a.pid}
