from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from retinue.core.admin.status import add_demand, node_line, used_resources
from retinue.core.admin.summaries import (
    distinct_bytes,
    holdings,
    summarize_actors,
    summarize_objects,
    summarize_tasks,
)
from retinue.core.wire.messages import Address, NodeInfo

HERE = Address(b"w" * 16, b"n" * 16, "/s/agent.sock")


def held(object_id: str, size: int, pid: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "object_id": object_id,
        "object_size": size,
        "task_status": "FINISHED",
        "attempt_number": 1,
        "reference_type": "LOCAL_REFERENCE",
        "call_site": "put",
        "type": "DRIVER",
        "pid": pid,
        "ip": "127.0.0.1",
        **more,
    }


def test_tasks_are_counted_by_name_and_state() -> None:
    tasks = [
        {"name": "f", "func_or_class_name": "f", "type": "NORMAL_TASK", "state": "RUNNING"},
        {"name": "f", "func_or_class_name": "f", "type": "NORMAL_TASK", "state": "FINISHED"},
        {"name": "", "func_or_class_name": "A.m", "type": "ACTOR_TASK", "state": "FINISHED"},
        {"name": "A.__init__", "type": "ACTOR_CREATION_TASK", "state": "FINISHED"},
    ]
    cluster = summarize_tasks(tasks)["cluster"]
    assert cluster["summary"]["f"]["state_counts"] == {"RUNNING": 1, "FINISHED": 1}
    assert cluster["summary"]["A.m"]["type"] == "ACTOR_TASK"
    totals = cluster["total_tasks"], cluster["total_actor_tasks"], cluster["total_actor_scheduled"]
    assert totals == (2, 1, 1)


def test_actors_are_counted_by_class_and_state() -> None:
    actors = [{"class_name": "A", "state": "ALIVE"}, {"class_name": "A", "state": "DEAD"}]
    cluster = summarize_actors(actors)["cluster"]
    assert cluster["total_actors"] == 2
    assert cluster["summary"]["A"]["state_counts"] == {"ALIVE": 1, "DEAD": 1}


def test_objects_are_counted_by_call_site() -> None:
    objects = [held("a", 2**20), held("b", -1, pid=2, call_site="call of f", task_status="NIL")]
    cluster = summarize_objects(objects)["cluster"]
    assert (cluster["total_objects"], cluster["total_size_mb"]) == (2, 1.0)
    assert cluster["callsite_enabled"]
    assert cluster["summary"]["call of f"]["task_state_counts"] == {"NIL": 1}
    assert cluster["summary"]["put"]["total_num_workers"] == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 9), st.integers(1, 3))))
def test_holdings_account_for_every_reference(references: list[tuple[str, int, int]]) -> None:
    objects = [held(object_id, size, pid) for object_id, size, pid in references]
    found = holdings(objects)
    assert sum(holding.objects for holding in found) == len(objects)
    assert [h.size_bytes for h in found] == sorted((h.size_bytes for h in found), reverse=True)
    count, size_bytes = distinct_bytes(objects)
    assert count == len({object_id for object_id, _, _ in references})
    assert size_bytes <= sum(holding.size_bytes for holding in found)


def test_used_resources_leave_dead_nodes_out() -> None:
    nodes = [
        NodeInfo(b"1" * 16, HERE, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 1.5, "GPU": 1.0}),
        NodeInfo(b"2" * 16, HERE, {"CPU": 4.0}, {"CPU": 4.0}, alive=False),
    ]
    assert used_resources(nodes) == {"CPU": (2.5, 4.0), "GPU": (0.0, 1.0)}


def test_demand_of_equal_shapes_adds_up_over_nodes() -> None:
    documents = [
        {"shapes": [[{"CPU": 1.0}, 2], [{"GPU": 1.0}, 1]]},
        {"shapes": [[{"CPU": 1.0}, 3]]},
    ]
    assert add_demand(documents) == [({"CPU": 1.0}, 5), ({"GPU": 1.0}, 1)]


def test_a_silent_node_still_has_a_line() -> None:
    line = node_line(NodeInfo(b"1" * 16, HERE, {"CPU": 4.0}, {"CPU": 1.0}, draining=True, is_head=True), None)
    assert (line["CPU used"], line["state"]) == ("3 of 4", "DRAINING")
    assert "store used" not in line
