"""The core's tests run against one node and against three: nothing in them may assume a single node."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import retinue
from retinue.cluster_utils import Cluster


@pytest.fixture(scope="module", params=["one node", "three nodes"])
def topology(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETINUE_TEMP_DIR", str(tmp_path_factory.mktemp("r")))
        patch.delenv("RETINUE_ADDRESS", raising=False)
        if request.param == "one node":
            retinue.init(address="local", num_cpus=4, object_store_memory=256 << 20)
            yield request.param
            retinue.shutdown()
        else:
            cluster = Cluster(
                initialize_head=True,
                head_node_args={"num_cpus": 2, "object_store_memory": 256 << 20},
            )
            for _ in range(2):
                cluster.add_node(num_cpus=1, object_store_memory=256 << 20)
            cluster.wait_for_nodes()
            cluster.connect()
            yield request.param
            retinue.shutdown()
            cluster.shutdown()


@pytest.fixture(autouse=True)
def _cluster(topology: str) -> str:
    return topology
