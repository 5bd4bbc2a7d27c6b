from __future__ import annotations

import threading
from typing import Any

import pytest

import retinue
from retinue.util import deregister_serializer, register_serializer


class Guarded:
    def __init__(self, value: int) -> None:
        self.value = value
        self.lock = threading.Lock()


@pytest.mark.e2e
@pytest.mark.usefixtures("cluster")
def test_a_class_travels_as_its_serializer_says() -> None:
    @retinue.remote
    def value_of(guarded: Any) -> int:
        with guarded.lock:
            return int(guarded.value)

    register_serializer(Guarded, serializer=lambda g: g.value, deserializer=Guarded)
    assert retinue.get(value_of.remote(Guarded(7))) == 7
    assert retinue.get(retinue.put(Guarded(8))).value == 8

    deregister_serializer(Guarded)
    deregister_serializer(Guarded)
    with pytest.raises(TypeError):
        retinue.put(Guarded(9))
