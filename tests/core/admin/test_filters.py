import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.core.admin.filters import (
    MAX_LIMIT,
    checked_filters,
    matches,
    parse_filter,
    select,
    without_details,
)
from retinue.core.admin.schemas import SCHEMAS, ActorState, WorkerState

ROWS = [
    {"state": "ALIVE", "pid": 7, "is_alive": True, "name": None},
    {"state": "DEAD", "pid": 8, "is_alive": False, "name": "Bob"},
]


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("state=ALIVE", ("state", "=", "ALIVE")),
        ("state!=DEAD", ("state", "!=", "DEAD")),
        ("name=a=b", ("name", "=", "a=b")),
    ],
)
def test_filters_are_read_from_text(text: str, parsed: tuple[str, str, str]) -> None:
    assert parse_filter(text) == parsed


@pytest.mark.parametrize("text", ["state", "=x", "state=", "!=x", ""])
def test_half_a_filter_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="key=value"):
        parse_filter(text)


@pytest.mark.parametrize(
    ("condition", "is_match"),
    [
        (("state", "=", "alive"), True),
        (("state", "!=", "alive"), False),
        (("pid", "=", 7), True),
        (("pid", "=", "7"), True),
        (("pid", "!=", "7"), False),
        (("is_alive", "=", "true"), True),
        (("is_alive", "=", "0"), False),
        (("is_alive", "!=", False), True),
        (("name", "=", "bob"), False),
        (("name", "=", None), True),
        (("nothing", "=", "x"), False),
    ],
)
def test_values_are_compared_by_the_type_of_the_column(
    condition: tuple[str, str, object], is_match: bool
) -> None:
    assert matches(ROWS[0], condition) is is_match


@pytest.mark.parametrize("condition", [("pid", "=", "seven"), ("is_alive", "=", "maybe")])
def test_a_value_that_the_column_cannot_have_is_refused(condition: tuple[str, str, str]) -> None:
    with pytest.raises(ValueError, match=r"is a number|true or false"):
        select(ROWS, [condition], limit=10)


def test_all_filters_must_match_and_the_limit_comes_last() -> None:
    selection = select(ROWS * 3, [("state", "=", "DEAD"), ("pid", "!=", 7)], limit=2)
    assert selection.found == 3
    assert [row["pid"] for row in selection.rows] == [8, 8]


@pytest.mark.parametrize("limit", [-1, MAX_LIMIT + 1])
def test_a_limit_out_of_range_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match="limit"):
        select(ROWS, [], limit=limit)


def test_only_filterable_columns_are_taken_in_any_case() -> None:
    assert checked_filters([("STATE", "=", "x")], ActorState) == [("state", "=", "x")]
    with pytest.raises(ValueError, match="to filter by"):
        checked_filters([("death_cause", "=", "x")], ActorState)
    with pytest.raises(ValueError, match="compares by"):
        checked_filters([("state", ">", "x")], ActorState)
    with pytest.raises(ValueError, match="a filter is"):
        checked_filters([("state", "x")], ActorState)  # type: ignore[list-item]


@given(
    st.lists(st.fixed_dictionaries({"state": st.sampled_from("AB"), "pid": st.integers(0, 3)})),
    st.sampled_from("ABab"),
    st.integers(0, 5),
)
def test_a_filter_and_its_opposite_share_the_rows_out(
    rows: list[dict[str, object]], state: str, limit: int
) -> None:
    equal = select(rows, [("state", "=", state)], limit=limit)
    other = select(rows, [("state", "!=", state)], limit=limit)
    assert equal.found + other.found == len(rows)
    assert len(equal.rows) == min(limit, equal.found)


def test_details_are_none_unless_asked_for() -> None:
    row = {"worker_id": "w", "is_alive": True, "exit_detail": "killed", "unknown": 1}
    assert without_details(row, WorkerState, detail=False)["exit_detail"] is None
    state = without_details(row, WorkerState, detail=True)
    assert state["exit_detail"] == state.exit_detail == state.get("exit_detail") == "killed"
    assert state.get("absent", 5) == 5
    with pytest.raises(KeyError):
        state["absent"]


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_schema_can_be_made_from_an_empty_row_and_read_by_people(name: str) -> None:
    schema = SCHEMAS[name]
    state = without_details({}, schema, detail=True)
    assert set(schema.humanify(state.asdict())) == schema.columns() == schema.detail_columns()
    assert schema.base_columns() <= schema.columns()
    assert schema.filterable_columns() <= schema.columns()


def test_people_get_times_and_sizes_with_their_units() -> None:
    shown = SCHEMAS["nodes"].humanify({"resources_total": {"CPU": 2.0, "memory": 3.0 * 2**30}})
    assert shown == {"resources_total": {"CPU": 2.0, "memory": "3.000 GiB"}}
    assert SCHEMAS["objects"].humanify({"object_size": 512})["object_size"] == "512 B"
    assert SCHEMAS["workers"].humanify({"start_time_ms": 0, "end_time_ms": None}) == {
        "start_time_ms": "",
        "end_time_ms": None,
    }
    assert (
        SCHEMAS["workers"]
        .humanify({"start_time_ms": 1_700_000_000_000})["start_time_ms"]
        .startswith("2023-11-1")
    )
