"""Values as bytes: what handles send to replicas, and get from them.

Plain pickle where that does; cloudpickle where it does not, or where a name of `__main__` would mean
something else in the other process. Arguments may contain the results of other calls, which are passed on as
the bytes that they came as: placeholders stand for them in the pickle, and they follow it
(`CallHead.blobs`).

Lives here: that. Does not: heads (`messages`), errors (the doors carry those).
"""

from __future__ import annotations

import pickle
from typing import Any

import cloudpickle

from retinue.serve.messages import CallHead, pack

PROTOCOL = 5
_UNPICKLABLE = (pickle.PicklingError, TypeError, AttributeError)
_by_value_modules = cloudpickle.cloudpickle._PICKLE_BY_VALUE_MODULES
_PLAIN = frozenset({int, float, bool, bytes, type(None)})


class Forwarded:
    """Stands in pickled arguments for the value that follows as blob number `index`."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> tuple[Any, ...]:
        return Forwarded, (self.index,)


def dumps(value: Any) -> bytes:
    """Raises what the value's own pickling raises (TypeError, pickle.PicklingError)."""
    if type(value) in _PLAIN:
        return pickle.dumps(value, PROTOCOL)
    if not _by_value_modules:
        try:
            data = pickle.dumps(value, PROTOCOL)
        except _UNPICKLABLE:
            pass  # cloudpickle knows more kinds, or raises the error that counts
        else:
            if b"__main__" not in data:
                return data
    return cloudpickle.dumps(value, protocol=PROTOCOL)  # type: ignore[no-any-return]


def loads(data: bytes | memoryview) -> Any:
    return pickle.loads(data)


def dump_call(head: CallHead, args: tuple[Any, ...], kwargs: dict[str, Any], blobs: list[bytes]) -> bytes:
    """The body of a call: arguments, then the values that `Forwarded` ones among them stand for."""
    data = dumps((args, kwargs))
    if not blobs:
        return pack(head, data)
    head.args_size = len(data)
    head.blobs = [len(blob) for blob in blobs]
    return pack(head, b"".join((data, *blobs)))


def load_call(head: CallHead, payload: bytes | memoryview) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that `dump_call` put behind `head`, each forwarded value in its place."""
    if not head.blobs:
        return loads(payload)  # type: ignore[no-any-return]
    view = memoryview(payload)
    args, kwargs = loads(view[: head.args_size])
    values = []
    start = head.args_size
    for size in head.blobs:
        values.append(loads(view[start : start + size]))
        start += size
    args = tuple(values[a.index] if type(a) is Forwarded else a for a in args)
    kwargs = {name: values[a.index] if type(a) is Forwarded else a for name, a in kwargs.items()}
    return args, kwargs
