from hypothesis import given
from hypothesis import strategies as st

from retinue.core.head.kv import Changed, KeyValueTable


def test_a_value_comes_back_until_it_is_deleted() -> None:
    kv = KeyValueTable()
    assert kv.put("ns", b"k", b"1", overwrite=True) is not None
    assert kv.get("ns", b"k") == b"1"
    assert kv.get("other", b"k") is None
    assert [c.key for c in kv.delete("ns", b"k", by_prefix=False)] == [b"k"]
    assert kv.get("ns", b"k") is None
    assert kv.delete("ns", b"k", by_prefix=False) == []
    assert kv.size() == 0


def test_without_overwrite_the_first_value_stays() -> None:
    kv = KeyValueTable()
    kv.put("ns", b"k", b"1", overwrite=False)
    assert kv.put("ns", b"k", b"2", overwrite=False) is None
    assert kv.get("ns", b"k") == b"1"


def test_a_watcher_hears_what_is_there_and_each_change_once() -> None:
    kv = KeyValueTable()
    kv.put("ns", b"a1", b"x", overwrite=True)
    kv.put("ns", b"b1", b"x", overwrite=True)
    assert kv.watch("w", "ns", b"a") == [Changed("ns", b"a1", b"x", ("w",))]
    kv.watch("w", "ns", b"")
    assert kv.put("ns", b"a2", b"y", overwrite=True) == Changed("ns", b"a2", b"y", ("w",))
    assert kv.delete("ns", b"a", by_prefix=True) == [
        Changed("ns", b"a1", None, ("w",)),
        Changed("ns", b"a2", None, ("w",)),
    ]
    kv.watcher_gone("w")
    assert kv.put("ns", b"a2", b"z", overwrite=True) == Changed("ns", b"a2", b"z", ())


def test_who_watches_a_prefix_no_more_hears_no_more_of_it() -> None:
    kv = KeyValueTable()
    kv.watch("w", "ns", b"a")
    kv.watch("w", "ns", b"ab")
    kv.watch("other", "ns", b"a")
    kv.unwatch("w", "ns", b"a")
    kv.unwatch("w", "ns", b"never")
    kv.unwatch("w", "nowhere", b"a")
    assert kv.put("ns", b"a", b"1", overwrite=True) == Changed("ns", b"a", b"1", ("other",))
    assert kv.put("ns", b"ab", b"1", overwrite=True) == Changed("ns", b"ab", b"1", ("w", "other"))


@given(st.lists(st.tuples(st.binary(max_size=2), st.booleans(), st.binary(max_size=2))))
def test_it_is_a_dictionary_with_prefixes(steps: list[tuple[bytes, bool, bytes]]) -> None:
    kv, model = KeyValueTable(), dict[bytes, bytes]()
    for key, is_put, value in steps:
        if is_put:
            kv.put("ns", key, value, overwrite=True)
            model[key] = value
        else:
            deleted = {change.key for change in kv.delete("ns", key, by_prefix=True)}
            assert deleted == {k for k in model if k.startswith(key)}
            model = {k: v for k, v in model.items() if k not in deleted}
        assert set(kv.keys("ns", b"")) == set(model)
    assert {key: kv.get("ns", key) for key in kv.keys("ns", b"")} == model
