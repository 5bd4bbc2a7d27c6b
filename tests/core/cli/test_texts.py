import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from retinue.core.cli.output import cell, to_json, to_yaml
from retinue.core.cli.texts import parse_bytes, parse_labels, parse_resources

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1024", 1024),
        ("1k", 1000),
        ("1KiB", 1024),
        ("2 GiB", 2 * 2**30),
        ("1.5G", 1_500_000_000),
        ("1e9", 10**9),
        ("3Ti", 3 * 2**40),
    ],
)
def test_amounts_of_memory_have_units(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 gigabyte", "1GiB2", "1e-9x"])
def test_other_amounts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 500MB"):
        parse_bytes(text)


def test_resources_are_a_json_object_of_amounts() -> None:
    assert parse_resources('{"a": 2, "b": 0.5}') == {"a": 2.0, "b": 0.5}


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": -1}', '{"a": "1"}', '{"a": true}'])
def test_other_resources_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="resource"):
        parse_resources(text)


def test_labels_are_pairs_or_a_json_object() -> None:
    assert parse_labels("zone=a, disk=ssd,") == {"zone": "a", "disk": "ssd"}
    assert parse_labels('{"zone": "a"}') == {"zone": "a"}
    assert parse_labels("url=a=b") == {"url": "a=b"}


@pytest.mark.parametrize("text", ["zone", "=a", '{"zone": 1}'])
def test_other_labels_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="labels"):
        parse_labels(text)


@given(PLAIN)
def test_what_goes_out_as_yaml_comes_back_as_it_was(value: object) -> None:
    assert yaml.safe_load(to_yaml(value)) == value


@given(PLAIN)
def test_what_goes_out_as_json_comes_back_as_it_was(value: object) -> None:
    assert json.loads(to_json(value)) == value


def test_yaml_is_laid_out_for_people() -> None:
    document = {
        "name": "bob",
        "pids": [1, 2],
        "nested": {"a": None},
        "text": "yes",
        "rows": [{"x": 1, "y": 2}],
    }
    assert to_yaml(document).splitlines() == [
        "name: bob",
        "pids:",
        "  - 1",
        "  - 2",
        "nested:",
        "  a: null",
        'text: "yes"',
        "rows:",
        "  - x: 1",
        '    "y": 2',
    ]


def test_cells_are_short() -> None:
    assert cell({"CPU": 2.0, "GPU": 0.5}) == "CPU: 2, GPU: 0.5"
    assert cell([1, None, "a"]) == "1, , a"
    assert cell(None) == ""
