"""`Cluster` with real agents: nodes come, go and die."""

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from retinue.cluster_utils import Cluster
from retinue.core import session as sessions
from retinue.core.errors import RetinueSystemError


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    path = str(tmp_path / "r")
    monkeypatch.setenv(sessions.TEMP_DIR_VARIABLE, path)
    sessions.temp_dir()
    yield path
    assert os.listdir(path) == []


@pytest.fixture
def cluster(base: str) -> Iterator[Cluster]:
    cluster = Cluster(shutdown_at_exit=False)
    yield cluster
    cluster.shutdown()


def test_nodes_are_added_listed_and_removed(cluster: Cluster) -> None:
    head = cluster.add_node(num_cpus=1)
    other = cluster.add_node(num_cpus=2, resources={"x": 1}, labels={"zone": "b"}, wait=False)
    cluster.wait_for_nodes()
    assert cluster.list_all_nodes() == [head, other]
    assert (head.is_head, other.is_head) == (True, False)
    assert cluster.remaining_processes_alive()
    assert cluster.remove_node(other)
    assert not cluster.remove_node(other)
    assert cluster.list_all_nodes() == [head]
    cluster.wait_for_nodes()
    assert not other.is_alive()
    third = cluster.add_node()
    assert cluster.remove_node(third, allow_graceful=False)
    cluster.wait_for_nodes()


def test_it_is_found_by_its_address_only(cluster: Cluster) -> None:
    cluster.add_node()
    assert sessions.find_cluster() is None
    found = sessions.find_cluster_at(cluster.address)
    assert found is not None
    assert found.agent is not None
    assert found.agent.node_id.hex() == cluster.list_all_nodes()[0].node_id


def test_nodes_register_again_with_the_next_head(cluster: Cluster) -> None:
    cluster.add_node()
    cluster.add_node()
    processes = cluster._started()
    assert processes.head is not None
    pidfd = os.pidfd_open(processes.head.pid)
    cluster.kill_head()
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)
    cluster._nodes().close()
    cluster.wait_for_nodes()


def test_a_node_that_dies_is_missed(cluster: Cluster) -> None:
    cluster.add_node()
    other = cluster.add_node()
    other.process.kill()
    other.process.wait(10)
    assert not cluster.remaining_processes_alive()
    assert cluster.remove_node(other)
    cluster.wait_for_nodes()


def test_removing_the_heads_node_ends_the_head(cluster: Cluster) -> None:
    head = cluster.add_node()
    assert cluster.remove_node(head)
    assert cluster.list_all_nodes() == []
    assert not cluster.remaining_processes_alive()


def test_arguments_are_checked(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="initialize_head"):
        Cluster(connect=True)
    with pytest.raises(TypeError, match="num_cpu;"):
        cluster.add_node(num_cpu=1)
    with pytest.raises(RetinueSystemError, match="add_node"):
        _ = cluster.address
