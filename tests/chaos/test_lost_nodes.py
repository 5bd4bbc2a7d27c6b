"""What becomes of objects when a node dies, and where copies go when nobody wants them any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import retinue
from retinue.cluster_utils import Cluster, ClusterNode
from retinue.core.current import get_runtime
from retinue.core.transport.blocking import BlockingClient
from retinue.core.wire.messages import NodeCall
from retinue.exceptions import ObjectLostError, OwnerDiedError

MIB = 1 << 20
SIZE = 20 * MIB


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The driver is on a node of its own; two others have one `worker` each."""
    monkeypatch.setenv("RETINUE_TEMP_DIR", str(tmp_path))
    monkeypatch.delenv("RETINUE_ADDRESS", raising=False)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(2):
        cluster.add_node(num_cpus=1, resources={"worker": 1})
    cluster.wait_for_nodes()
    cluster.connect()
    yield cluster
    cluster.shutdown()


def copies(cluster: Cluster, object_id: str) -> dict[ClusterNode, dict[str, Any]]:
    """The nodes whose stores have the object, and what they say of it."""
    found = {}
    for node in cluster.list_all_nodes():
        processes = cluster._started()
        with BlockingClient(node.process.address, processes.token) as client:
            _, payload = client.request(NodeCall(0, "objects"))
        for info in msgspec.msgpack.decode(payload):
            if info["object_id"] == object_id:
                found[node] = info
    return found


def wait_until(is_so: Callable[[], bool], timeout_s: float = 20.0) -> float:
    """Ask again until it is so; how long that took."""
    started = time.monotonic()
    while not is_so():
        assert time.monotonic() < started + timeout_s, "it did not become so in time"
    return time.monotonic() - started


@retinue.remote(resources={"worker": 1})
def make(path: str) -> np.ndarray:
    with open(path, "a") as log:
        log.write("made\n")
    return np.arange(SIZE, dtype=np.uint8)


@retinue.remote(resources={"worker": 1})
def total(array: np.ndarray) -> int:
    return int(array.sum())


def lose(cluster: Cluster, ref: Any) -> None:
    """Kill the node that has the object."""
    retinue.wait([ref], fetch_local=False, timeout=30)
    (node,) = copies(cluster, ref.hex())
    assert cluster.remove_node(node, allow_graceful=False)


def test_a_lost_result_is_made_again_by_its_task(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    ref = make.remote(str(log))
    lose(cluster, ref)
    value = retinue.get(ref, timeout=30)
    assert np.array_equal(value, np.arange(SIZE, dtype=np.uint8))
    assert log.read_text() == "made\n" * 2


def test_a_lost_argument_is_made_again_for_the_task_that_needs_it(cluster: Cluster, tmp_path: Path) -> None:
    ref = make.remote(str(tmp_path / "log"))
    expected = int(np.arange(SIZE, dtype=np.uint8).sum())
    lose(cluster, ref)
    assert retinue.get(total.remote(ref), timeout=30) == expected


def test_a_lost_result_that_may_not_be_made_again_is_named(cluster: Cluster, tmp_path: Path) -> None:
    ref = make.options(max_retries=0).remote(str(tmp_path / "log"))
    lose(cluster, ref)
    with pytest.raises(ObjectLostError, match=ref.hex()):
        retinue.get(ref, timeout=30)


def test_a_put_of_a_process_on_a_lost_node_is_lost_and_named(cluster: Cluster) -> None:
    @retinue.remote(resources={"worker": 1})
    class Holder:
        def put(self) -> list[Any]:
            self.ref = retinue.put(np.ones(SIZE, dtype=np.uint8))
            return [self.ref]

    holder = Holder.remote()
    (ref,) = retinue.get(holder.put.remote(), timeout=30)
    lose(cluster, ref)
    with pytest.raises(OwnerDiedError, match=ref.hex()):
        retinue.get(ref, timeout=30)


def test_a_copy_elsewhere_takes_the_place_of_a_lost_one(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    ref = make.remote(str(log))
    first = np.array(retinue.get(ref, timeout=30))  # a copy: it pins nothing
    (made_on,) = [node for node, info in copies(cluster, ref.hex()).items() if info["is_primary"]]
    assert len(copies(cluster, ref.hex())) == 2
    assert cluster.remove_node(made_on, allow_graceful=False)
    wait_until(lambda: [i["is_primary"] for i in copies(cluster, ref.hex()).values()] == [True])
    assert np.array_equal(retinue.get(ref, timeout=30), first)
    assert log.read_text() == "made\n"


def test_a_dropped_reference_frees_the_copies_on_every_node(cluster: Cluster) -> None:
    ref = retinue.put(np.ones(SIZE, dtype=np.uint8))
    retinue.get([total.remote(ref) for _ in range(2)], timeout=30)
    while len(copies(cluster, ref.hex())) < 3:  # one worker may have done both
        retinue.get([total.remote(ref) for _ in range(2)], timeout=30)
    object_id = ref.hex()
    del ref
    assert wait_until(lambda: not copies(cluster, object_id)) < 1.0


def test_an_owner_learns_which_copies_gave_way(cluster: Cluster, tmp_path: Path) -> None:
    refs = [make.remote(str(tmp_path / "log")) for _ in range(10)]  # more than the driver's node can hold
    for ref in refs:
        assert retinue.get(ref, timeout=30)[-1] == (SIZE - 1) % 256

    def known(ref: Any) -> set[bytes]:
        return set(get_runtime().table.entries[ref.binary()].nodes)

    def held(ref: Any) -> set[bytes]:
        return {node.process.config.node_id for node in copies(cluster, ref.hex())}

    wait_until(lambda: all(known(ref) == held(ref) for ref in refs))
    assert {len(held(ref)) for ref in refs} == {1, 2}


def test_what_a_dead_process_owned_is_freed_on_every_node(cluster: Cluster, tmp_path: Path) -> None:
    @retinue.remote(num_cpus=0)
    class Owner:
        def own(self, path: str) -> list[Any]:
            self.refs = [retinue.put(np.ones(SIZE, dtype=np.uint8)), make.remote(path)]
            return self.refs

    owner = Owner.options(scheduling_strategy="SPREAD").remote()
    refs = retinue.get(owner.own.remote(str(tmp_path / "log")), timeout=30)
    for ref in refs:
        assert retinue.get(ref, timeout=30).size == SIZE  # and so there are copies here too
    names = [ref.hex() for ref in refs]
    assert all(copies(cluster, name) for name in names)
    retinue.kill(owner)
    wait_until(lambda: not any(copies(cluster, name) for name in names))


def test_a_detached_actor_keeps_its_large_arguments(cluster: Cluster) -> None:
    @retinue.remote(num_cpus=0, max_restarts=1, lifetime="detached", name="kept")
    class Kept:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def total(self) -> int:
            return int(self.array.sum())

    @retinue.remote(num_cpus=0)
    class Maker:
        def make(self) -> int:
            self.kept = Kept.remote(np.ones(SIZE, dtype=np.uint8))
            return retinue.get(self.kept.total.remote())

    maker = Maker.remote()
    assert retinue.get(maker.make.remote(), timeout=30) == SIZE
    kept = retinue.get_actor("kept")
    retinue.kill(maker)
    with pytest.raises(retinue.exceptions.ActorDiedError):
        retinue.get(maker.make.remote(), timeout=30)
    retinue.kill(kept, no_restart=False)

    def is_back() -> bool:
        try:
            return bool(retinue.get(kept.total.remote(), timeout=30) == SIZE)
        except retinue.exceptions.ActorUnavailableError:
            return False

    wait_until(is_back)
    retinue.kill(kept)
