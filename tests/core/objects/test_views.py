"""Pins hang on the exporter: whatever is derived from a view keeps them, and nothing else does."""

import gc
import pickle
import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from retinue.core.objects.arena import Arena
from retinue.core.objects.views import COPY_WITH_GIL_MAX, Pin, copy_into

KEY = 4096
SIZE = 8192


class Reader:
    """An arena with one object of the bytes 0, 1, ..., 255, 0, ... and the queue of dropped pins."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.released: deque[int] = deque()
        arena.map_writable(KEY, SIZE)[:] = bytes(range(256)) * (SIZE // 256)

    def view(self) -> memoryview:
        return self.arena.view(KEY, SIZE, Pin(KEY, self.released))

    def private_view(self) -> memoryview:
        return self.arena.private_view(KEY, SIZE, Pin(KEY, self.released))


@pytest.fixture
def reader() -> Iterator[Reader]:
    with Arena.create(8 << 20) as arena:
        yield Reader(arena)


def test_pin_goes_with_the_view(reader: Reader) -> None:
    view = reader.view()
    assert not reader.released
    del view
    assert list(reader.released) == [KEY]


def test_each_view_has_its_own_pin(reader: Reader) -> None:
    first, second = reader.view(), reader.view()
    del first
    assert len(reader.released) == 1
    assert second[255] == 255


def _numpy_slice(view: memoryview) -> Any:
    np = pytest.importorskip("numpy")
    return np.frombuffer(view, dtype=np.float64)[3:].reshape(-1, 1).T[:, ::2]


def _numpy_flat(view: memoryview) -> Any:
    np = pytest.importorskip("numpy")
    return np.asarray(view).reshape(64, -1).flat


def _numpy_of_unpickled(view: memoryview) -> Any:
    np = pytest.importorskip("numpy")
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(np.arange(100.0), protocol=5, buffer_callback=buffers.append)
    array = pickle.loads(data, buffers=[view[64:864]])
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    return array[5:].view(np.uint8)


def _repickled(view: memoryview) -> Any:
    np = pytest.importorskip("numpy")
    buffers: list[pickle.PickleBuffer] = []
    pickle.dumps(np.frombuffer(view, dtype=np.uint8), protocol=5, buffer_callback=buffers.append)
    return buffers


def _arrow_slice(view: memoryview) -> Any:
    pa = pytest.importorskip("pyarrow")
    array = pa.Array.from_buffers(pa.int64(), SIZE // 8, [None, pa.py_buffer(view)])
    return pa.table({"column": array}).slice(10, 20)["column"].chunk(0).slice(2)


def _arrow_to_numpy(view: memoryview) -> Any:
    pa = pytest.importorskip("pyarrow")
    array = pa.Array.from_buffers(pa.int64(), SIZE // 8, [None, pa.py_buffer(view)])
    return array.to_numpy(zero_copy_only=True)[7:]


def _cycle(view: memoryview) -> Any:
    cycle: list[Any] = [view[1:]]
    cycle.append(cycle)
    return cycle


DERIVE: list[Callable[[memoryview], Any]] = [
    lambda view: view[10:20],
    lambda view: view[10:2000][5:50][::3],
    lambda view: memoryview(view),
    lambda view: view.cast("d"),
    lambda view: pickle.PickleBuffer(view),
    _numpy_slice,
    _numpy_flat,
    _numpy_of_unpickled,
    _repickled,
    _arrow_slice,
    _arrow_to_numpy,
    _cycle,
]


@pytest.mark.parametrize("derive", DERIVE)
def test_derived_views_keep_the_pin(reader: Reader, derive: Callable[[memoryview], Any]) -> None:
    derived = derive(reader.view())
    gc.collect()
    assert not reader.released
    del derived
    gc.collect()
    assert list(reader.released) == [KEY]


def test_torch_views_keep_the_pin_and_write_to_themselves(reader: Reader) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.frombuffer(reader.private_view(), dtype=torch.uint8).view(torch.int32)[4:]
    part = tensor.view(2, -1)[1].numpy()[3:]
    del tensor
    gc.collect()
    assert not reader.released
    part[:] = 0
    assert bytes(reader.view()) == bytes(range(256)) * (SIZE // 256)
    reader.released.clear()
    del part
    gc.collect()
    assert list(reader.released) == [KEY]


def test_private_views_keep_the_pin(reader: Reader) -> None:
    np = pytest.importorskip("numpy")
    array = np.frombuffer(reader.private_view(), dtype=np.uint8)[5:]
    array += 1
    assert not reader.released
    del array
    assert list(reader.released) == [KEY]


def test_private_view_of_a_view_keeps_its_pin(reader: Reader) -> None:
    view = reader.view()
    private = reader.arena.private_of(view[100:200])
    assert private is not None
    assert bytes(private) == bytes(range(100, 200))
    del view
    assert not reader.released
    private[:] = bytes(100)
    del private
    assert list(reader.released) == [KEY]
    assert bytes(reader.view())[100:200] == bytes(range(100, 200))


def test_other_memory_has_no_private_view(reader: Reader) -> None:
    assert reader.arena.private_of(memoryview(b"elsewhere")) is None
    reader.view()
    assert reader.arena.private_of(memoryview(b"elsewhere")) is None


def test_pin_dropped_in_another_thread(reader: Reader) -> None:
    held = [reader.view()]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert list(reader.released) == [KEY]


def test_copies_carry_no_pin(reader: Reader) -> None:
    copy = bytes(reader.view()[:100])
    assert list(reader.released) == [KEY]
    assert copy == bytes(range(100))


@pytest.mark.parametrize("size", [1, 1000, COPY_WITH_GIL_MAX, COPY_WITH_GIL_MAX + 1, 3 << 20])
def test_copy_into_copies_every_byte(reader: Reader, size: int) -> None:
    source = random.Random(size).randbytes(size)
    target = reader.arena.map_writable(64, size)
    copy_into(target, source)
    assert bytes(target) == source
    copy_into(target, memoryview(bytearray(size)))
    assert bytes(target) == bytes(size)


def test_copy_into_takes_any_contiguous_array(reader: Reader) -> None:
    np = pytest.importorskip("numpy")
    for shape in ((40, 50), (400, 500)):
        array = np.asfortranarray(np.random.default_rng(0).random(shape).astype(complex))
        target = reader.arena.map_writable(64, array.nbytes)
        copy_into(target, array)
        assert bytes(target) == array.tobytes(order="F")


def test_copy_into_refuses_another_size(reader: Reader) -> None:
    target = reader.arena.map_writable(0, 100)
    with pytest.raises(ValueError, match="99 bytes do not fit a place of 100"):
        copy_into(target, bytes(99))


def test_copy_into_leaves_no_reference(reader: Reader) -> None:
    source = bytearray(1 << 20)
    before = sys.getrefcount(source)
    copy_into(reader.arena.map_writable(0, len(source)), source)
    assert sys.getrefcount(source) == before
    source.clear()  # raises BufferError if the buffer were still held
