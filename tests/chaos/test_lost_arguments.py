"""Objects that an actor's constructor needs again when the actor is restarted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import retinue
from retinue.cluster_utils import Cluster
from retinue.core.transport.blocking import BlockingClient
from retinue.core.wire.messages import NodeCall
from retinue.exceptions import ActorDiedError, ActorUnavailableError
from tests.chaos.support import wait_until

SIZE = 8 << 20
HALF = {"worker": 0.5}


@pytest.fixture
def cluster(base: str) -> Iterator[Cluster]:
    """The driver is on a node of its own; another one is for work."""
    cluster = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 0})
    cluster.add_node(num_cpus=1, resources={"worker": 1})
    yield cluster
    cluster.shutdown()


def replace_worker_node(cluster: Cluster) -> None:
    (old,) = cluster.worker_nodes
    cluster.add_node(num_cpus=1, resources={"worker": 1})
    assert cluster.remove_node(old, allow_graceful=False)


@retinue.remote(resources=HALF, num_cpus=1)
def make(log: str) -> np.ndarray:
    with open(log, "a") as file:
        file.write("made\n")
    return np.ones(SIZE, dtype=np.uint8)


class Holder:
    def __init__(self, array: np.ndarray, *more: Any) -> None:
        self.array = array

    def total(self) -> int:
        return int(self.array.sum())


class AsyncHolder(Holder):
    async def total(self) -> int:  # type: ignore[override]
        return int(self.array.sum())


@pytest.mark.parametrize(
    ("kind", "more"), [(Holder, {}), (Holder, {"max_concurrency": 2}), (AsyncHolder, {})]
)
def test_an_argument_lost_with_the_actors_node_is_made_again(
    cluster: Cluster, tmp_path: Path, kind: Any, more: dict[str, Any]
) -> None:
    log = tmp_path / "log"
    # It holds the CPU that its argument's task needs.
    options: dict[str, Any] = {"num_cpus": 1, "resources": HALF, "max_restarts": 1, "max_task_retries": -1}
    holder = retinue.remote(kind).options(**options, **more).remote(make.remote(str(log)))
    assert retinue.get(holder.total.remote(), timeout=30) == SIZE
    replace_worker_node(cluster)
    assert retinue.get(holder.total.remote(), timeout=30) == SIZE
    assert log.read_text() == "made\n" * 2


def test_where_it_may_not_be_made_again_the_actor_dies_naming_its_task(
    cluster: Cluster, tmp_path: Path
) -> None:
    argument = make.options(max_retries=0).remote(str(tmp_path / "log"))
    options: dict[str, Any] = {"num_cpus": 0, "resources": HALF, "max_restarts": -1, "max_task_retries": -1}
    holder = retinue.remote(Holder).options(**options).remote(argument)
    assert retinue.get(holder.total.remote(), timeout=30) == SIZE
    replace_worker_node(cluster)
    with pytest.raises(ActorDiedError, match=r"(?s)ObjectLostError.*task make"):
        retinue.get(holder.total.remote(), timeout=30)


# --- detached actors --------------------------------------------------------------------------------------


def start_detached(**options: Any) -> Any:
    detached = retinue.remote(Holder).options(num_cpus=0, lifetime="detached", name="kept", **options)
    holder = detached.remote(np.ones(SIZE, dtype=np.uint8))
    assert retinue.get(holder.total.remote()) == SIZE
    return holder


def stored(cluster: Cluster) -> int:
    """Objects in the stores of all nodes."""
    count = 0
    for node in cluster.list_all_nodes():
        with BlockingClient(node.process.address, cluster._started().token) as client:
            _, payload = client.request(NodeCall(0, "objects"))
        count += len(msgspec.msgpack.decode(payload))
    return count


def test_a_detached_actor_whose_arguments_were_on_a_lost_node_dies_and_says_so(cluster: Cluster) -> None:
    @retinue.remote(resources=HALF)
    def start() -> None:
        retinue.get(start_detached(resources=HALF, max_restarts=-1, max_task_retries=-1).total.remote())

    retinue.get(start.remote(), timeout=30)
    holder = retinue.get_actor("kept")
    replace_worker_node(cluster)
    with pytest.raises(ActorDiedError, match=r"(?s)its constructor's arguments lay on node"):
        retinue.get(holder.total.remote(), timeout=30)


@retinue.remote(num_cpus=0, resources=HALF)
class Maker:
    def start(self, **options: Any) -> None:
        start_detached(**options)


@pytest.mark.parametrize("is_maker_alive", [True, False])
def test_arguments_are_freed_when_the_actor_is_killed(cluster: Cluster, *, is_maker_alive: bool) -> None:
    maker: Any = Maker.remote()
    retinue.get(maker.start.remote(max_restarts=-1), timeout=30)
    if not is_maker_alive:
        retinue.kill(maker)
        with pytest.raises(ActorDiedError):
            retinue.get(maker.start.remote(), timeout=30)
    holder = retinue.get_actor("kept")
    retinue.kill(holder, no_restart=False)
    wait_until(lambda: total_of(holder) == SIZE, "it is back")
    assert stored(cluster) >= 1
    retinue.kill(holder)
    wait_until(lambda: stored(cluster) == 0, "the arguments are freed")


def test_arguments_are_freed_when_it_may_not_restart_any_more(cluster: Cluster) -> None:
    maker: Any = Maker.remote()
    retinue.get(maker.start.remote(max_restarts=1, resources={"worker": 0.25}), timeout=30)
    retinue.kill(maker)
    holder = retinue.get_actor("kept")
    for _ in range(2):
        wait_until(lambda: total_of(holder) == SIZE, "it is there")
        assert stored(cluster) >= 1
        retinue.kill(holder, no_restart=False)
    wait_until(lambda: stored(cluster) == 0, "the arguments are freed")


def total_of(holder: Any) -> int | None:
    try:
        return int(retinue.get(holder.total.remote(), timeout=30))
    except ActorUnavailableError:
        return None
