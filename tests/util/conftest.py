"""One small cluster for the tests that are marked `e2e`; all other tests here need none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import retinue


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "e2e: starts a cluster; deselect with -m 'not e2e'")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETINUE_TEMP_DIR", str(tmp_path_factory.mktemp("retinue")))
        patch.delenv("RETINUE_ADDRESS", raising=False)
        retinue.init(address="local", num_cpus=2, namespace="util-tests")
        yield
        retinue.shutdown()
