"""Send a callable with its large arrays in the object store, each of them put once.

joblib calls one function many times on the same data (an estimator on splits of one matrix, say). Pickled
with every batch, the data would cross as often as there are batches.
"""

from __future__ import annotations

import io
import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import cloudpickle

import retinue

MIN_STORED_BYTES = 100 * 1024  # below this, values travel within messages anyway
# Arrays that are made anew for every batch are met once only, and must not pile up.
MAX_STORED_ARRAYS = 64

_loading = threading.local()


class ArrayStore:
    """Remembers which arrays are in the object store, the most recently used of them."""

    def __init__(self, *, put: Callable[[Any], Any] | None = None) -> None:
        self._put = put or (lambda value: retinue.put(value))
        # The array is kept beside its reference, so that its id stays its own.
        self._stored: OrderedDict[int, tuple[Any, Any]] = OrderedDict()

    def dump(self, function: Callable[[], Any]) -> tuple[bytes, list[Any], list[Any]]:
        """Return the pickled function, references to its large arrays, and the references it had itself.

        The latter are taken out as well, because only the core's own pickling keeps count of them.
        """
        file = io.BytesIO()
        pickler = _Pickler(file, self._ref)
        pickler.dump(function)
        return file.getvalue(), pickler.array_refs, pickler.kept

    def clear(self) -> None:
        """Forget all arrays."""
        self._stored.clear()

    def _ref(self, array: Any) -> Any:
        if id(array) not in self._stored:
            self._stored[id(array)] = (array, self._put(array))
            if len(self._stored) > MAX_STORED_ARRAYS:
                self._stored.popitem(last=False)
        self._stored.move_to_end(id(array))
        return self._stored[id(array)][1]


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO, ref_of: Callable[[Any], Any]) -> None:
        super().__init__(file)
        self._ref_of = ref_of
        self.array_refs: list[Any] = []
        self.kept: list[Any] = []

    def reducer_override(self, obj: Any) -> Any:
        if _is_large_array(obj):
            self.array_refs.append(self._ref_of(obj))
            return _load_array, (len(self.array_refs) - 1,)
        if isinstance(obj, (retinue.ObjectRef, retinue.actor.ActorHandle)):
            self.kept.append(obj)
            return _load_kept, (len(self.kept) - 1,)
        return super().reducer_override(obj)


def run_stored(pickled: bytes, array_refs: list[Any], kept: list[Any]) -> Any:
    """Call the function that `dump` pickled. Its large arrays are read-only views of the store."""
    return load_stored(pickled, retinue.get(array_refs) if array_refs else [], kept)()


def load_stored(pickled: bytes, arrays: list[Any], kept: list[Any]) -> Any:
    """Return the function that `dump` pickled, with these arrays and references in it."""
    _loading.arrays, _loading.kept = arrays, kept
    try:
        return pickle.loads(pickled)
    finally:
        del _loading.arrays, _loading.kept


def _load_array(index: int) -> Any:
    return _loading.arrays[index]


def _load_kept(index: int) -> Any:
    return _loading.kept[index]


def _is_large_array(obj: Any) -> bool:
    # By its type's attribute, not the object's: what computes its size would be asked to do so.
    if isinstance(obj, type) or not hasattr(type(obj), "nbytes"):
        return False
    size = obj.nbytes
    return isinstance(size, int) and size >= MIN_STORED_BYTES
