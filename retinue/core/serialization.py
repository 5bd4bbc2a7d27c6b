"""Values to bytes and back: pickle 5 with buffers out of band, cloudpickle where plain pickle cannot.

A serialized value (a *blob*) names its format in its first byte:
  0x80  a plain pickle
  B     bytes: the rest is the value
  M     a pickle with buffers: u32 count at 4, u64 pickle size at 8, u64 size of each buffer; then the
        pickle and the buffers, each aligned to 64 bytes
  R     references that the rest brings, to be counted in one step: u32 size of their list at 4; the list,
        msgpack of (owner, ids) each; the value itself, in one of the formats above, aligned to 64 bytes
  E     an error: a pickle of the exception that `get` raises, or of the fields of a RetinueTaskError with
        the blob of its cause among them

Lives here: formats, what goes by value, custom serializers. Does not: where blobs are stored.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import struct
import sys
from collections import ChainMap
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import cloudpickle
import msgspec

from retinue.core.errors import RetinueTaskError, UnserializableException, safe_repr
from retinue.core.references import collector, groups_of, is_restore, restorer_of
from retinue.core.wire.messages import Address

PROTOCOL = 5
ALIGNMENT = 64
# An error travels within one frame, never through the store.
ERROR_LIMIT_BYTES = 1 << 20
TRACEBACK_LIMIT = 64 * 1024
# From this many references on they are listed ahead of the value: then one costs 0.35 us to load, not 0.8.
LISTED_FROM = 16
_BYTES_TAG, _MULTI_TAG, _ERROR_TAG, _REFERENCES_TAG = b"B", b"M", b"E", b"R"
_MULTI_HEADER = struct.Struct("<c3xIQ")
_REFERENCES_HEADER = struct.Struct("<c3xI")
_encode_groups = msgspec.msgpack.Encoder().encode
_decode_groups = msgspec.msgpack.Decoder(list[tuple[Address, list[bytes]]]).decode
_PICKLE_TAG = 0x80
_UNPICKLABLE = (pickle.PicklingError, TypeError, AttributeError)
_SAFE_MODULES = frozenset({"builtins", "retinue.core.errors"})
_PLAIN_TYPES = frozenset({int, float, str, bool, type(None)})

Found = list[tuple[bytes, Address | None]]
_by_value_modules = cloudpickle.cloudpickle._PICKLE_BY_VALUE_MODULES
_custom: dict[type, Any] = {}
_adapters_loaded: set[str] = set()
_plain_table: Any = ChainMap(_custom, copyreg.dispatch_table)


class _CloudPickler(cloudpickle.CloudPickler):  # type: ignore[misc]
    # The C pickler looks at the class when it is made: a table set on an instance is not seen.
    dispatch_table: ClassVar[Any] = ChainMap(_custom, *cloudpickle.CloudPickler.dispatch_table.maps)


class Serialized:
    """A value in parts: its pickle, its buffers, and the references inside it.

    `size` is that of the blob. References are (object id, owner or None for this process); `head` is what
    the blob says of them ahead of the value, where they are many.
    """

    __slots__ = ("_kept", "buffers", "data", "found", "head", "size")

    def __init__(
        self,
        data: bytes,
        buffers: Sequence[memoryview] = (),
        found: Found | tuple[()] = (),
        kept: object = None,
    ) -> None:
        self.data = data
        self.buffers = buffers
        self.found = found
        self._kept = kept  # the references themselves, alive until whoever has this has counted `found`
        self.head = b"" if len(found) < LISTED_FROM else _references_head(found)
        self.size = len(data) if not buffers else multi_layout(len(data), [b.nbytes for b in buffers])[-1]
        self.size += len(self.head)

    def to_bytes(self) -> bytes:
        """The blob in one piece."""
        if not self.buffers:
            return self.head + self.data
        blob = bytearray(self.size)
        for offset, part in self.parts():
            blob[offset : offset + len(part)] = part
        return bytes(blob)

    def parts(self) -> list[tuple[int, bytes | memoryview]]:
        """(offset within the blob, bytes) of each part, in order, for writing it somewhere."""
        base = len(self.head)
        head: list[tuple[int, bytes | memoryview]] = [(0, self.head)] if base else []
        if not self.buffers:
            return [*head, (base, self.data)]
        sizes = [b.nbytes for b in self.buffers]
        offsets = [base + offset for offset in multi_layout(len(self.data), sizes)]
        header = _MULTI_HEADER.pack(_MULTI_TAG, len(sizes), len(self.data))
        header += struct.pack(f"<{len(sizes)}Q", *sizes)
        return [
            *head,
            (base, header),
            (offsets[0], self.data),
            *zip(offsets[1:-1], self.buffers, strict=True),
        ]


class SerializedBytes(Serialized):
    """A long bytes value, which is copied once, to where it is written."""

    __slots__ = ()

    def __init__(self, value: bytes) -> None:
        super().__init__(value)
        self.size = 1 + len(value)

    def to_bytes(self) -> bytes:
        return _BYTES_TAG + self.data

    def parts(self) -> list[tuple[int, bytes | memoryview]]:
        return [(0, _BYTES_TAG), (1, self.data)]


def _references_head(found: Found | tuple[()]) -> bytes:
    """What comes ahead of a value with many references; "" if they are handles rather."""
    groups = groups_of(found)
    if not groups:
        return b""
    listed = _encode_groups(groups)
    head = _REFERENCES_HEADER.pack(_REFERENCES_TAG, len(listed)) + listed
    return head + bytes(-len(head) % ALIGNMENT)


def multi_layout(pickle_size: int, sizes: Sequence[int]) -> list[int]:
    """Offsets of the pickle and of each buffer within an M blob, then the blob's size."""
    position = _MULTI_HEADER.size + 8 * len(sizes)
    offsets = []
    for size in (pickle_size, *sizes):
        position = -(-position // ALIGNMENT) * ALIGNMENT
        offsets.append(position)
        position += size
    offsets.append(position)
    return offsets


def serialize(value: Any) -> Serialized:
    """Serialize a value for another process; collects the ObjectRefs and handles inside it.

    Raises what the value's own pickling raises (TypeError, PicklingError).
    """
    kind = type(value)
    if kind is bytes:
        return SerializedBytes(value)
    if kind in _PLAIN_TYPES:
        return Serialized(pickle.dumps(value, PROTOCOL))
    buffers: list[pickle.PickleBuffer] = []
    outer = collector.found, collector.kept
    found: Found = []
    kept: list[Any] = []
    collector.found, collector.kept = found, kept
    try:
        data = _dumps(value, buffers, found)
    finally:
        collector.found, collector.kept = outer
    if not buffers:
        return Serialized(data, (), found, kept)
    return Serialized(data, [b.raw() for b in buffers], found, kept)


def _dumps(value: Any, buffers: list[pickle.PickleBuffer], found: Found) -> bytes:
    _load_adapters()
    if not _by_value_modules:
        try:
            if _custom:
                file = io.BytesIO()
                pickler = pickle.Pickler(file, PROTOCOL, buffer_callback=buffers.append)
                pickler.dispatch_table = _plain_table
                pickler.dump(value)
                data = file.getvalue()
            else:
                data = pickle.dumps(value, PROTOCOL, buffer_callback=buffers.append)
            # Plain pickle takes what is defined in `__main__` by name, which means something else
            # in the other process (0.1 us for the test).
            if b"__main__" not in data:
                return data
        except _UNPICKLABLE:
            pass  # local classes, lambdas: cloudpickle knows them, or raises the error that counts
        buffers.clear()
        found.clear()
    file = io.BytesIO()
    _CloudPickler(file, protocol=PROTOCOL, buffer_callback=buffers.append).dump(value)
    return file.getvalue()


def dump_definition(thing: Any) -> tuple[bytes, Found]:
    """A function or class by value, with the references that it captures."""
    outer = collector.found
    found: Found = []
    collector.found = found
    try:
        return cloudpickle.dumps(thing, protocol=PROTOCOL), found
    finally:
        collector.found = outer


def load_definition(blob: bytes) -> Any:
    return cloudpickle.loads(blob)


def deserialize(blob: bytes | memoryview) -> Any:
    """The value of a blob. Buffers are views of `blob`: read-only, and they keep it.

    An error blob gives the exception itself as the value; see `is_error_blob`.
    """
    first = blob[0]
    if first == _PICKLE_TAG:
        return pickle.loads(blob)
    if first == 66:  # B
        return bytes(blob[1:])
    if first == 77:  # M
        data, buffers = _multi_parts(memoryview(blob))
        return pickle.loads(data, buffers=buffers)
    if first == 82:  # R
        return _load_with_references(memoryview(blob))
    if first == 69:  # E
        return _load_error(bytes(blob[1:]))
    raise ValueError(f"not a serialized value: it begins with {bytes(blob[:4])!r}")


def _multi_parts(view: memoryview) -> tuple[memoryview, list[memoryview]]:
    """The pickle and the buffers of an M blob."""
    if not view.readonly:
        view = view.toreadonly()
    _, count, pickle_size = _MULTI_HEADER.unpack_from(view)
    sizes = struct.unpack_from(f"<{count}Q", view, _MULTI_HEADER.size)
    offsets = multi_layout(pickle_size, sizes)
    data = view[offsets[0] : offsets[0] + pickle_size]
    return data, [view[o : o + n] for o, n in zip(offsets[1:-1], sizes, strict=True)]


class _ReferencesUnpickler(pickle.Unpickler):
    """Takes a value's ObjectRefs from those that were counted ahead."""

    def __init__(self, data: memoryview, buffers: Sequence[memoryview], restore: Callable[..., Any]) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self._restore = restore

    def find_class(self, module: str, name: str) -> Any:
        return self._restore if is_restore(module, name) else super().find_class(module, name)


def _load_with_references(blob: memoryview) -> Any:
    start, size = _REFERENCES_HEADER.size, _REFERENCES_HEADER.unpack_from(blob)[1]
    restore = restorer_of(_decode_groups(blob[start : start + size]))
    data = blob[-(-(start + size) // ALIGNMENT) * ALIGNMENT :]
    buffers: list[memoryview] = []
    if data[0] != _PICKLE_TAG:
        data, buffers = _multi_parts(data)
    return _ReferencesUnpickler(data, buffers, restore).load()


def is_error_blob(blob: bytes | memoryview) -> bool:
    return blob[0] == 69


def serialize_error(error: BaseException) -> bytes:
    """An error blob. What does not survive pickling, or is too large for a frame, leaves its text."""
    return serialize_error_found(error)[0]


def serialize_error_found(error: BaseException) -> tuple[bytes, Found]:
    """An error blob, and the references inside the error."""
    found: Found = []
    if isinstance(error, RetinueTaskError):
        return _ERROR_TAG + _dump_task_error(error, found), found
    data, problem = _dump_exception(error, found)
    if problem:
        data = pickle.dumps(UnserializableException(None, f"{safe_repr(error)} ({problem})"), PROTOCOL)
    return _ERROR_TAG + data, found


def _dump_exception(error: BaseException, found: Found) -> tuple[bytes, str]:
    """The pickled exception, or why it cannot be sent."""
    try:
        serialized = serialize(error)
        data = serialized.to_bytes()
        if type(error).__module__ not in _SAFE_MODULES:
            deserialize(data)  # an __init__ of its own that does not take `args` fails only here
    except BaseException as failure:  # noqa: BLE001 - it runs code of the exception's class
        return b"", f"it could not be sent: {safe_repr(failure)}"
    if len(data) > ERROR_LIMIT_BYTES:
        return b"", f"it could not be sent: {len(data)} bytes are more than {ERROR_LIMIT_BYTES}"
    found += serialized.found
    return data, ""


def _dump_task_error(error: RetinueTaskError, found: Found) -> bytes:
    """Text, traceback and, in a blob of its own, the cause: where that cannot be loaded the rest can."""
    cause, problem = _dump_exception(error.cause, found) if error.cause is not None else (b"", "")
    text = error.traceback_str
    if len(text) > TRACEBACK_LIMIT:
        text = f"... {len(text) - TRACEBACK_LIMIT} characters ...\n{text[-TRACEBACK_LIMIT:]}"
    cause_repr = error.cause_repr[:TRACEBACK_LIMIT]
    if problem:
        cause_repr = f"{cause_repr} ({problem})"
    fields = (error.function_name, text, cause, error.pid, error.ip, error.actor_repr, cause_repr)
    return pickle.dumps(fields, PROTOCOL)


def _load_error(data: bytes) -> BaseException:
    try:
        error = deserialize(data)
    except Exception as failure:  # noqa: BLE001 - the same
        return UnserializableException(None, f"the remote error could not be unpickled: {safe_repr(failure)}")
    if type(error) is tuple:
        return _load_task_error(*error)
    return error if isinstance(error, BaseException) else UnserializableException(None, safe_repr(error))


def _load_task_error(
    name: str, text: str, blob: bytes, pid: int, ip: str, actor_repr: str | None, cause_repr: str
) -> BaseException:
    cause: BaseException | None = None
    if blob:
        try:
            cause = deserialize(blob)
        except Exception as failure:  # noqa: BLE001 - the same
            cause_repr = f"{cause_repr} (it could not be unpickled here: {safe_repr(failure)})"
    return RetinueTaskError(name, text, cause, pid, ip, actor_repr, cause_repr).as_instanceof_cause()


# --- custom serializers and adapters -----------------------------------------------------------------------


def register_serializer(
    cls: type, *, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]
) -> None:
    """Serialize instances of exactly `cls` in this process with `serializer(instance)`.

    What it returns is pickled, and `deserializer(that)` makes the instance again; both travel by value.
    """
    if not isinstance(cls, type):
        raise TypeError(f"register_serializer takes a class, got {cls!r}")
    restore = cloudpickle.dumps(deserializer)
    _custom[cls] = lambda instance: (_apply_deserializer, (restore, serializer(instance)))


def deregister_serializer(cls: type) -> None:
    """Forget the serializer of `cls`; nothing happens if there is none."""
    _custom.pop(cls, None)


def _apply_deserializer(restore: bytes, state: Any) -> Any:
    return cloudpickle.loads(restore)(state)


def _load_adapters() -> None:
    """Learn the packages that the user has imported by now and whose values need help."""
    if "torch" in sys.modules and "torch" not in _adapters_loaded:
        torch = sys.modules["torch"]
        if not hasattr(torch, "Tensor"):
            return  # another thread is importing it right now
        _adapters_loaded.add("torch")
        from retinue.core.adapters import torch_tensors

        _custom.update(torch_tensors.reducers())
