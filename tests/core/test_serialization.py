from __future__ import annotations

import dataclasses
import enum
import pickle
import subprocess
import sys
import threading
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.core import references
from retinue.core.errors import (
    ActorDiedError,
    RetinueTaskError,
    TaskCancelledError,
    UnserializableException,
)
from retinue.core.references import ObjectRef, collector
from retinue.core.serialization import (
    ALIGNMENT,
    ERROR_LIMIT_BYTES,
    TRACEBACK_LIMIT,
    deregister_serializer,
    deserialize,
    dump_definition,
    is_error_blob,
    load_definition,
    multi_layout,
    register_serializer,
    serialize,
    serialize_error,
    serialize_error_found,
)
from retinue.core.wire.messages import Address

ME = Address(b"m" * 16, b"n" * 16, "/me")
OTHER = Address(b"o" * 16, b"n" * 16, "/other")


def again(value: Any) -> Any:
    serialized = serialize(value)
    blob = serialized.to_bytes()
    assert len(blob) == serialized.size
    written = bytearray(serialized.size)
    for offset, part in serialized.parts():
        written[offset : offset + len(part)] = part
    assert written == blob, "in parts it is another blob than in one piece"
    return deserialize(blob)


# --- values

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=10,
)


@given(PLAIN)
def test_plain_values_come_back_equal_and_of_the_same_type(value):
    result = again(value)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize("value", [b"", b"B", b"x" * 1_000_000, bytearray(b"abc"), "__main__", [b"__main__"]])
def test_bytes_and_what_looks_like_a_format_of_ours_come_back(value):
    assert again(value) == value
    assert type(again(value)) is type(value)


def test_long_bytes_are_not_copied_before_they_are_written():
    value = b"x" * 1_000_000
    assert any(part is value for _, part in serialize(value).parts())


@given(
    shape=st.lists(st.integers(0, 5), max_size=4),
    dtype=st.sampled_from(["f8", "f4", "i1", ">i4", "c16", "?", "M8[s]", "U3", "S2"]),
    order=st.sampled_from("CF"),
    step=st.sampled_from([1, 2, -1]),
)
def test_arrays_of_any_shape_and_order_come_back(shape, dtype, order, step):
    array = np.zeros(shape, dtype=dtype, order=order)
    if array.ndim:
        array = array[::step]
    result = again(array)
    np.testing.assert_array_equal(result, array)
    # numpy itself swaps the bytes of strided arrays to the machine's order.
    assert result.dtype in (array.dtype, array.dtype.newbyteorder("="))
    assert result.shape == array.shape


def test_array_keeps_its_memory_order():
    array = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    assert again(array).flags.f_contiguous
    assert not again(array).flags.c_contiguous


def test_arrays_lie_out_of_band_aligned_and_come_back_without_a_copy():
    arrays = [np.arange(1001, dtype="i1"), np.arange(1000.0), np.arange(7, dtype="i2")]
    serialized = serialize({"a": arrays})
    assert len(serialized.buffers) == 3
    assert len(serialized.data) < 1000
    blob = serialized.to_bytes()
    view = memoryview(blob)
    base = np.frombuffer(view, dtype="u1").ctypes.data
    for result, array in zip(deserialize(view)["a"], arrays, strict=True):
        np.testing.assert_array_equal(result, array)
        assert not result.flags.writeable
        assert (result.ctypes.data - base) % ALIGNMENT == 0
        assert base <= result.ctypes.data < base + len(blob)


def test_arrays_of_a_writable_blob_are_read_only_all_the_same():
    blob = bytearray(serialize(np.ones(3)).to_bytes())
    assert not deserialize(memoryview(blob)).flags.writeable


def test_array_of_objects_and_structured_array_come_back():
    objects = np.array([{"a": 1}, None, "x"], dtype=object)
    assert again(objects).tolist() == objects.tolist()
    structured = np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])
    assert again(structured) == structured


@given(st.integers(0, 10_000), st.lists(st.integers(0, 10_000), max_size=6))
def test_parts_of_a_blob_are_aligned_and_do_not_overlap(pickle_size, sizes):
    *offsets, end = multi_layout(pickle_size, sizes)
    position = 16 + 8 * len(sizes)
    for offset, size in zip(offsets, [pickle_size, *sizes], strict=True):
        assert offset % ALIGNMENT == 0
        assert offset >= position
        position = offset + size
    assert end == position


def test_local_classes_and_lambdas_go_by_value():
    class Local:
        def __init__(self, x: int) -> None:
            self.x = x

    assert again(Local(3)).x == 3
    assert again(lambda y: y + 1)(2) == 3
    captured = 5
    assert again([lambda: captured])[0]() == 5


def test_class_by_value_is_the_same_class_within_one_process():
    class Local:
        pass

    assert type(again(Local())) is type(again(Local())) is Local


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Point:
    x: int


def test_classes_of_modules_go_by_reference():
    assert again(Color.RED) is Color.RED
    assert again(Point(1)) == Point(1)
    assert len(serialize(Point).data) < 100


def test_value_that_cannot_be_pickled_raises_its_own_error():
    with pytest.raises(TypeError, match="cannot pickle"):
        serialize(threading.Lock())
    with pytest.raises(TypeError, match="cannot pickle"):
        serialize([1, {"lock": threading.Lock()}])


def test_error_in_the_users_own_pickling_is_not_hidden():
    class Stubborn:
        def __reduce__(self) -> Any:
            raise ValueError("not me")

    with pytest.raises(ValueError, match="not me"):
        serialize(Stubborn())


def test_garbage_is_refused_by_name():
    with pytest.raises(ValueError, match="not a serialized value"):
        deserialize(b"zzzz")


SCRIPT = """
import sys
from dataclasses import dataclass
from retinue.core.serialization import dump_definition, serialize, serialize_error
from retinue.core.errors import RetinueTaskError

class Base:
    factor = 2

class Point(Base):
    def __init__(self, x): self.x = x
    def scaled(self): return helper(self.x) * self.factor

class Refusal(Exception):
    def __init__(self, reason, code):
        super().__init__(reason, code)
        self.code = code

def helper(x): return x + 1
def function(x): return Point(x).scaled()

parts = [
    serialize({"points": [Point(1)], "function": function}).to_bytes(),
    dump_definition(function)[0],
    serialize_error(RetinueTaskError("f", "Traceback ...", Refusal("no", 7))),
    serialize(Point).to_bytes(),
]
for part in parts:
    sys.stdout.buffer.write(len(part).to_bytes(4, "little") + part)
"""


def test_what_a_script_defines_works_in_another_process(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    output = subprocess.run([sys.executable, str(path)], check=True, capture_output=True, cwd=".").stdout
    blobs = []
    while output:
        size = int.from_bytes(output[:4], "little")
        blobs.append(output[4 : 4 + size])
        output = output[4 + size :]
    value = deserialize(blobs[0])
    assert value["points"][0].scaled() == 4
    assert value["function"](2) == 6
    assert load_definition(blobs[1])(3) == 8
    error = deserialize(blobs[2])
    assert isinstance(error, RetinueTaskError)
    assert type(error.cause).__name__ == "Refusal"
    assert isinstance(error, type(error.cause))
    assert error.code == 7
    assert deserialize(blobs[3]) is type(value["points"][0])


# --- custom serializers


class Handle:
    def __init__(self, number: int) -> None:
        self.lock = threading.Lock()
        self.number = number


@pytest.fixture
def registered():
    register_serializer(Handle, serializer=lambda h: h.number, deserializer=lambda n: Handle(n * 10))
    yield
    deregister_serializer(Handle)


@pytest.mark.usefixtures("registered")
def test_registered_serializer_is_used_wherever_the_class_occurs():
    assert again(Handle(1)).number == 10
    assert again([{"h": Handle(2)}])[0]["h"].number == 20
    assert again([lambda: 0, Handle(3)])[1].number == 30, "together with what only cloudpickle can"


def test_deregistered_serializer_is_forgotten(registered):
    deregister_serializer(Handle)
    deregister_serializer(Handle)
    with pytest.raises(TypeError):
        serialize(Handle(1))


def test_serializer_of_something_else_than_a_class_is_refused():
    with pytest.raises(TypeError, match="takes a class"):
        register_serializer("Handle", serializer=str, deserializer=str)  # type: ignore[arg-type]


def test_modules_registered_with_cloudpickle_go_by_value():
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        blob = serialize(Point(1)).to_bytes()
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    assert len(blob) > 200
    assert deserialize(blob).x == 1


# --- errors


class Picky(Exception):
    """Cannot be unpickled: its __init__ wants what `args` does not hold."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__("message")
        self.first = first


class TwoFields(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class WithLock(Exception):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.lock = threading.Lock()


class Speechless(Exception):
    def __repr__(self) -> str:
        raise ValueError("no words")


class Keyword(Exception):
    def __init__(self, *, code: int = 0) -> None:
        super().__init__()
        self.code = code


def task_error(cause: BaseException) -> RetinueTaskError:
    return RetinueTaskError("f", "Traceback: the remote one", cause, 42, "10.0.0.1")


def error_again(error: BaseException) -> Any:
    blob = serialize_error(error)
    assert is_error_blob(blob)
    return deserialize(blob)


@pytest.mark.parametrize(
    "cause",
    [
        ValueError("x"),
        KeyError("k"),
        TwoFields(7, "because"),
        Keyword(code=3),
        FileNotFoundError(2, "none", "name"),
        UnicodeDecodeError("utf8", b"x", 0, 1, "why"),
        StopIteration(4),
        ExceptionGroup("several", [ValueError(1), KeyError(2)]),
    ],
    ids=lambda e: type(e).__name__,
)
def test_users_error_arrives_as_an_instance_of_its_own_type(cause):
    error = error_again(task_error(cause))
    assert isinstance(error, type(cause))
    assert isinstance(error, RetinueTaskError)
    assert type(error.cause) is type(cause)
    assert repr(error.args) == repr(cause.args)
    for name, value in vars(cause).items():
        assert getattr(error, name) == value, "the user's attributes are those of the cause"
    assert "Traceback: the remote one" in str(error)
    assert (error.pid, error.ip, error.function_name) == (42, "10.0.0.1", "f")


def test_users_init_does_not_run_again_for_the_combined_error():
    error = error_again(task_error(TwoFields(7, "because")))
    assert (error.code, error.reason) == (7, "because")


def test_combined_error_can_travel_on():
    first = error_again(task_error(TwoFields(7, "because")))
    second = error_again(first)
    assert (second.code, str(second)) == (7, str(first))
    assert isinstance(pickle.loads(pickle.dumps(first)), TwoFields)


def test_errors_of_the_same_type_share_one_combined_type():
    assert type(error_again(task_error(ValueError(1)))) is type(error_again(task_error(ValueError(2))))


@pytest.mark.parametrize("cause", [Picky(1, 2), WithLock("x")], ids=["unpickling", "pickling"])
def test_error_that_does_not_survive_keeps_its_text_and_traceback(cause):
    error = error_again(task_error(cause))
    assert type(error) is RetinueTaskError
    assert error.cause is None
    assert type(cause).__name__ in error.cause_repr
    assert "could not be sent" in error.cause_repr
    assert "Traceback: the remote one" in str(error)


def test_error_whose_class_is_unknown_here_keeps_its_text_and_traceback():
    class Foreign(Exception):
        pass

    Foreign.__module__ = "no_such_module"
    sys.modules["no_such_module"] = module = type(sys)("no_such_module")
    Foreign.__qualname__ = "Foreign"
    module.Foreign = Foreign  # type: ignore[attr-defined]
    try:
        blob = serialize_error(task_error(Foreign("hello")))
    finally:
        del sys.modules["no_such_module"]
    error = deserialize(blob)
    assert type(error) is RetinueTaskError
    assert "hello" in error.cause_repr
    assert "no_such_module" in error.cause_repr
    assert "Traceback: the remote one" in str(error)


def test_error_without_words_is_sent_all_the_same():
    assert "Speechless" in error_again(task_error(Speechless())).cause_repr
    assert isinstance(error_again(task_error(Speechless())), Speechless)


@pytest.mark.parametrize("cause", [SystemExit(3), KeyboardInterrupt()])
def test_what_would_end_the_caller_is_not_raised_there_as_itself(cause):
    error = error_again(task_error(cause))
    assert type(error) is RetinueTaskError
    assert type(error.cause) is type(cause)


def test_error_of_ours_inside_a_task_is_raised_as_itself():
    error = error_again(task_error(TaskCancelledError("ab", "task f was cancelled")))
    assert type(error) is TaskCancelledError
    assert str(error) == "task f was cancelled"


def test_errors_of_ours_travel_as_they_are():
    error = error_again(ActorDiedError("it is dead", "abcd"))
    assert type(error) is ActorDiedError
    assert (str(error), error.actor_id) == ("it is dead", "abcd")


@pytest.mark.parametrize("error", [Picky(1, 2), WithLock("x")])
def test_bare_error_that_does_not_survive_becomes_its_text(error):
    result = error_again(error)
    assert type(result) is UnserializableException
    assert type(error).__name__ in str(result)


def test_error_larger_than_a_frame_keeps_its_text_only():
    error = error_again(task_error(ValueError("x" * (ERROR_LIMIT_BYTES + 1))))
    assert error.cause is None
    assert "more than" in error.cause_repr
    assert len(serialize_error(error)) < 4 * TRACEBACK_LIMIT


def test_endless_traceback_is_cut_at_its_beginning():
    error = error_again(RetinueTaskError("f", "first" + "x" * 10 * TRACEBACK_LIMIT + "last", ValueError(1)))
    assert error.traceback_str.endswith("last")
    assert len(error.traceback_str) < 2 * TRACEBACK_LIMIT


def test_error_blob_that_cannot_be_read_is_an_error_itself():
    assert isinstance(deserialize(b"E" + b"\x80garbage"), UnserializableException)
    assert isinstance(deserialize(b"E" + pickle.dumps("no exception", 5)), UnserializableException)


# --- references


class FakeRuntime:
    def __init__(self) -> None:
        self.added: list[tuple[bytes, Address | None]] = []
        self.added_together: list[tuple[bytes, Address | None]] = []
        self.escaped: list[bytes] = []

    def add_reference(self, object_id: bytes, owner: Address | None) -> ObjectRef[Any]:
        self.added.append((object_id, owner))
        return ObjectRef(object_id, None if owner == ME else owner)

    def add_references(self, groups: references.Groups) -> dict[bytes, ObjectRef[Any]]:
        self.added_together += [(object_id, owner) for owner, ids in groups for object_id in ids]
        return {i: ObjectRef(i, None if owner == ME else owner) for owner, ids in groups for i in ids}

    def own_address(self) -> Address:
        return ME

    def reference_escaped(self, object_id: bytes) -> None:
        self.escaped.append(object_id)


@pytest.fixture
def runtime():
    runtime = FakeRuntime()
    before = references._runtime
    references.bind(runtime)  # type: ignore[arg-type]
    yield runtime
    references.bind(before)
    references.dropped.clear()


def oid(name: str) -> bytes:
    return name.encode().ljust(28, b"-")


A, B = oid("a"), oid("b")


def test_references_in_nested_containers_are_found_with_their_owners(runtime):
    value = {"list": [ObjectRef(A)], "deep": {"er": (ObjectRef(B, OTHER), Point(1))}}
    serialized = serialize(value)
    assert serialized.found == [(A, None), (B, OTHER)]
    result = deserialize(serialized.to_bytes())
    assert runtime.added == [(A, ME), (B, OTHER)]
    assert result["list"] == [ObjectRef(A)]
    assert not runtime.escaped


MANY = [oid(str(number)) for number in range(100)]


@pytest.mark.parametrize("extra", [None, np.arange(1000.0), lambda: 7, Point(3)])
@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_many_references_are_counted_together_ahead_of_their_value(runtime, extra, kind):
    refs = [ObjectRef(i, OTHER if n % 3 else None) for n, i in enumerate(MANY)]
    serialized = serialize([refs, extra, refs[5]])
    blob = serialized.to_bytes()
    assert serialized.size == len(blob)
    written = bytearray(serialized.size)
    for offset, part in serialized.parts():
        written[offset : offset + len(part)] = part
    assert bytes(written) == blob
    result, came, again = deserialize(kind(blob))
    assert not runtime.added
    assert sorted(runtime.added_together) == sorted((i, OTHER if n % 3 else ME) for n, i in enumerate(MANY))
    assert result == refs
    assert [r._owner for r in result] == [r._owner for r in refs]
    assert again is result[5]
    if type(extra) is np.ndarray:
        np.testing.assert_array_equal(came, extra)
    elif callable(extra):
        assert came() == 7
    else:
        assert came == extra


def test_buffers_beside_many_references_stay_aligned_and_are_not_copied(runtime):
    blob = serialize([[ObjectRef(i) for i in MANY], np.arange(1000.0)]).to_bytes()
    array = deserialize(blob)[1]
    start = np.frombuffer(blob, dtype="u1").ctypes.data
    assert 0 < array.ctypes.data - start < len(blob)
    assert (array.ctypes.data - start) % 64 == 0


def test_reference_that_a_value_does_not_take_is_let_go_of(runtime):
    class Forgetful:
        def __init__(self, refs: list[ObjectRef[Any]]) -> None:
            self.refs = refs

        def __setstate__(self, state: Any) -> None:
            self.refs = state["refs"][:90]

    value = Forgetful([ObjectRef(i) for i in MANY])
    blob = serialize(value).to_bytes()
    references.dropped.clear()
    loaded = deserialize(blob)
    assert sorted(references.dropped) == sorted(MANY[90:])
    assert len(loaded.refs) == 90


def test_failed_load_lets_go_of_the_references_that_were_counted(runtime):
    value = [[ObjectRef(i) for i in MANY], Unloadable()]
    blob = serialize(value).to_bytes()
    references.dropped.clear()
    with pytest.raises(ZeroDivisionError):
        deserialize(blob)
    assert sorted(references.dropped) == sorted(MANY)


def test_references_inside_a_pickle_of_the_values_own_are_counted_when_that_is_loaded(runtime):
    """A value that pickles its parts by itself, inside our pickling, may load them at any later time."""
    refs = [ObjectRef(i, OTHER) for i in MANY]
    outer = deserialize(serialize([Packed(refs), *refs]).to_bytes())
    assert len(runtime.added_together) == len(MANY)
    assert pickle.loads(outer[0]) == refs
    assert runtime.added == [(i, OTHER) for i in MANY]


def test_an_error_with_many_references_brings_them(runtime):
    error = ValueError([ObjectRef(i) for i in MANY])
    blob, found = serialize_error_found(error)
    assert len(found) == len(MANY)
    assert deserialize(blob).args[0] == [ObjectRef(i) for i in MANY]


class Packed:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return bytes, (pickle.dumps(self.value),)


class Unloadable:
    def __reduce__(self) -> Any:
        return divmod, (1, 0)


def test_references_beside_what_only_cloudpickle_can_are_found_once(runtime):
    class Local:
        ref: Any = None

    value = Local()
    value.ref = ObjectRef(A)
    assert serialize([ObjectRef(B), value, lambda: 0]).found == [(B, None), (A, None)]


def test_references_captured_by_a_definition_are_found(runtime):
    ref = ObjectRef(A, OTHER)
    _, found = dump_definition(lambda: ref)
    assert found == [(A, OTHER)]


def test_two_references_to_one_object_count_twice_and_one_reference_twice_counts_once(runtime):
    ref = ObjectRef(A)
    assert serialize([ref, ref]).found == [(A, None)]
    assert serialize([ref, ObjectRef(A)]).found == [(A, None), (A, None)]


def test_serializing_inside_a_serializer_collects_apart(runtime):
    inner_found = []

    class Outer:
        def __reduce__(self) -> Any:
            inner_found.extend(serialize([ObjectRef(B)]).found)
            return list, ()

    assert serialize([Outer(), ObjectRef(A)]).found == [(A, None)]
    assert inner_found[:1] == [(B, None)]


def test_reference_made_while_pickling_lives_until_it_is_counted(runtime):
    class Stored:
        def __reduce__(self) -> Any:
            return list, ([ObjectRef(A)],)

    references.dropped.clear()
    serialized = serialize([Stored()])
    assert A not in references.dropped
    del serialized
    assert A in references.dropped


def test_failed_serialization_leaves_no_collector_behind(runtime):
    with pytest.raises(TypeError):
        serialize([ObjectRef(A), threading.Lock()])
    assert collector.found is None
    assert collector.kept is None


def test_reference_pickled_by_hand_escapes(runtime):
    assert pickle.loads(pickle.dumps(ObjectRef(A))) == ObjectRef(A)
    assert runtime.escaped == [A]


def test_copies_of_a_reference_are_counted_by_the_runtime(runtime):
    import copy

    ref = ObjectRef(A, OTHER)
    assert copy.copy(ref) == copy.deepcopy([ref])[0] == ref
    assert runtime.added == [(A, OTHER), (A, OTHER)]


def test_reference_cannot_travel_without_a_cluster():
    before = references._runtime
    references.bind(None)
    try:
        with pytest.raises(RuntimeError, match="init"):
            serialize([ObjectRef(A)])
    finally:
        references.bind(before)
        references.dropped.clear()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3000), max_size=5))
def test_out_of_band_buffers_of_any_size_come_back(sizes):
    arrays = [np.full(size, i, dtype="u1") for i, size in enumerate(sizes)]
    for result, array in zip(again(arrays), arrays, strict=True):
        np.testing.assert_array_equal(result, array)
