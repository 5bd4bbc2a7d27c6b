"""The names of Ray that a script imports: there, or absent with what to use instead."""

from __future__ import annotations

import importlib

import pytest

import retinue
from retinue import exceptions


def test_every_public_name_is_there() -> None:
    for name in dir(retinue):
        assert getattr(retinue, name) is not None, name


def test_an_absent_name_is_no_attribute_and_says_what_to_use() -> None:
    assert not hasattr(retinue, "tune")
    with pytest.raises(exceptions.UnsupportedError, match=r"retinue\.tune does not exist: .*hyperparameter"):
        _ = retinue.tune


@pytest.mark.parametrize("name", ["retinue.data", "retinue.tune.schedulers"])
def test_importing_an_absent_module_says_what_to_use(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"retinue\.\w+ does not exist: Retinue has no"):
        importlib.import_module(name)


def test_importing_an_absent_name_from_the_package_is_an_import_error() -> None:
    with pytest.raises(ImportError, match=r"retinue\.train does not exist: Retinue has no"):
        from retinue import train  # noqa: F401
    with pytest.raises(ImportError, match="cannot import name"):
        from retinue import no_such_name  # noqa: F401


def test_the_pickler_has_its_name() -> None:
    pickle = importlib.import_module("retinue.cloudpickle")
    assert pickle.loads(pickle.dumps(lambda: 5))() == 5


def test_an_actor_class_is_no_base() -> None:
    @retinue.remote
    class Base:
        pass

    with pytest.raises(TypeError, match="Base is an actor class, which cannot be a base"):

        class Derived(Base):  # type: ignore[misc, valid-type]
            pass


def test_a_name_of_rays_says_how_it_is_spelled_here() -> None:
    with pytest.raises(AttributeError, match=r"retinue\.exceptions\.RetinueTaskError"):
        _ = exceptions.RayTaskError
    with pytest.raises(AttributeError, match="has no attribute 'RayNoSuchError'"):
        _ = exceptions.RayNoSuchError
