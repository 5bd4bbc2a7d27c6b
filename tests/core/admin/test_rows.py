from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from retinue.core.admin import rows
from retinue.core.admin.rows import NodeAnswer
from retinue.core.wire.messages import (
    ActorInfo,
    ActorSpec,
    Address,
    DeathInfo,
    JobInfo,
    NodeInfo,
    Shape,
    WorkerEnv,
)

HERE = Address(b"w" * 16, b"n" * 16, "/s/agent.sock")
JOB = b"\1\0\0\0"


def actor_info(state: str, **more: Any) -> ActorInfo:
    spec = ActorSpec(
        b"a" * 12 + JOB, JOB, HERE, "Counter", b"k", Shape({"CPU": 1.0}, WorkerEnv(JOB)), {}, "bob", "space"
    )
    return ActorInfo(spec.actor_id, state, spec=spec, **more)


def answer(document: Any, node: str = "n1") -> NodeAnswer:
    return NodeAnswer(node, "10.0.0.1", document)


def tasks(live: list[dict[str, Any]], finished: list[dict[str, Any]]) -> NodeAnswer:
    return answer({"live": live, "finished": finished, "dropped": 0, "omitted": 0, "silent": []})


def finished(task_id: str, end: float, **more: Any) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "name": "f",
        "state": "FINISHED",
        "start_time": end - 1,
        "end_time": end,
        "error_message": "",
        "worker_id": "w1",
        "pid": 5,
        "actor_id": "",
        "type": "NORMAL_TASK",
        **more,
    }


def live(task_id: str, state: str, **more: Any) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "name": "f",
        "state": state,
        "attempt_number": 0,
        "type": "NORMAL_TASK",
        **more,
    }


def test_actors_have_rays_words_and_living_ones_come_first() -> None:
    death = DeathInfo(pid=4, exit_code=3)
    found = rows.actor_rows(
        [
            actor_info("DEAD", death=death, death_cause="it crashed"),
            actor_info("PENDING"),
            actor_info("ALIVE", pid=9),
        ]
    )
    assert [row["state"] for row in found] == ["PENDING_CREATION", "ALIVE", "DEAD"]
    assert found[1]["pid"] == 9
    assert (found[1]["name"], found[1]["ray_namespace"], found[1]["class_name"]) == (
        "bob",
        "space",
        "Counter",
    )
    assert found[2]["death_cause"]["error_message"] == "it crashed"
    assert found[2]["death_cause"]["exit_code"] == 3
    assert "death_cause" not in found[1]


def test_nodes_say_why_they_are_dead() -> None:
    alive = NodeInfo(b"1" * 16, HERE, {"CPU": 2.0}, {}, is_head=True, start_time=2.0)
    dead = NodeInfo(
        b"2" * 16,
        Address(b"", b"", "", "10.0.0.2", 1),
        {},
        {},
        alive=False,
        death_reason="removed",
        end_time=3.0,
    )
    found = rows.node_rows([dead, alive])
    assert [row["state"] for row in found] == ["ALIVE", "DEAD"]
    assert found[0]["node_ip"] == "127.0.0.1"
    assert (found[1]["node_ip"], found[1]["state_message"]) == ("10.0.0.2", "removed")
    assert (found[0]["start_time_ms"], found[0]["end_time_ms"], found[1]["end_time_ms"]) == (2000, None, 3000)


def test_running_jobs_come_first_then_the_latest() -> None:
    jobs = [
        JobInfo(b"1" * 4, HERE, 1, "a.py", "ns", 10.0, 12.0, "SUCCEEDED"),
        JobInfo(b"2" * 4, HERE, 2, "b.py", "ns", 11.0, 12.0, "FAILED", message="no"),
        JobInfo(b"3" * 4, HERE, 3, "c.py", "ns", 9.0),
    ]
    found = rows.job_rows(jobs)
    assert [row["entrypoint"] for row in found] == ["c.py", "b.py", "a.py"]
    assert found[0]["driver_info"].pid == "3"
    assert found[0]["end_time"] is None
    assert found[1]["message"] == "no"


def test_the_worker_knows_more_of_a_running_task_than_its_caller() -> None:
    caller = live("t1", "SUBMITTED_TO_WORKER", parent_task_id="p")
    worker = live("t1", "RUNNING", worker_id="w1", pid=5, start_time=100.5)
    for order in ([caller, worker], [worker, caller]):
        (row,) = rows.task_rows([tasks(order, [])])
        assert row["state"] == "RUNNING"
        assert (row["worker_id"], row["node_id"], row["start_time_ms"]) == ("w1", "n1", 100_500)
        assert row["parent_task_id"] == "p"


def test_a_finished_task_is_not_pending_as_well() -> None:
    found = rows.task_rows([tasks([live("t1", "SUBMITTED_TO_WORKER")], [finished("t1", 5.0)])])
    assert [row["state"] for row in found] == ["FINISHED"]


def test_a_retry_is_a_second_attempt() -> None:
    failed = finished("t1", 5.0, state="FAILED", error_message="ValueError")
    retry = live("t1", "RUNNING", attempt_number=1, worker_id="w2", pid=6)
    found = rows.task_rows([tasks([retry], [failed])])
    assert [(row["attempt_number"], row["state"]) for row in found] == [(1, "RUNNING"), (0, "FAILED")]
    assert found[1]["error_type"] == "ValueError"


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["RUNNING", "PENDING_NODE_ASSIGNMENT"]))), st.data()
)
def test_every_attempt_is_told_once(unfinished: list[tuple[int, str]], data: st.DataObject) -> None:
    ends = data.draw(st.lists(st.tuples(st.integers(0, 5), st.floats(1, 100)), max_size=8))
    told = [live(f"t{i}", state, worker_id="w", pid=1) for i, state in unfinished]
    done = [finished(f"t{i}", end) for i, end in ends]
    cut = data.draw(st.integers(0, len(told)))
    found = rows.task_rows([tasks(told[:cut], done), tasks(told[cut:], [])])
    keys = [(row["task_id"], row["attempt_number"]) for row in found]
    assert len(keys) == len(set(keys))
    assert {task_id for task_id, _ in keys} == {t["task_id"] for t in told + done}
    assert sum("end_time" in row for row in found) == len(done)
    order = [(row["state"] != "RUNNING") + 2 * ("end_time" in row) for row in found]
    assert order == sorted(order)


def test_an_actors_calls_are_actor_tasks() -> None:
    call = finished("t1" + JOB.hex(), 5.0, actor_id="a1", type="ACTOR_TASK")
    (row,) = rows.task_rows([tasks([], [call])])
    assert (row["type"], row["actor_id"], row["job_id"]) == ("ACTOR_TASK", "a1", JOB.hex())


def worker(**more: Any) -> dict[str, Any]:
    return {"worker_id": "w", "is_alive": True, "worker_type": "WORKER", "pid": 1, **more}


def test_dead_workers_say_how_they_ended() -> None:
    dead = worker(is_alive=False, exit_code=None, signal=9, exit_detail="killed by signal 9")
    idle = worker(is_alive=False, is_intended=True)
    left = worker(is_alive=False, exit_code=0, signal=None)
    found = rows.worker_rows([answer([dead, idle, left, worker(started_at=2.0)])])
    assert [row["exit_type"] for row in found] == [
        None,
        "SYSTEM_ERROR",
        "INTENDED_SYSTEM_EXIT",
        "INTENDED_USER_EXIT",
    ]
    assert found[0]["start_time_ms"] == 2000
    assert found[1]["exit_detail"] == "killed by signal 9"


def test_runtime_envs_are_counted_by_node() -> None:
    env = '{"env_vars": {"A": "1"}}'
    document = [
        worker(runtime_env=env),
        worker(runtime_env=env),
        worker(runtime_env="{}"),
        worker(is_alive=False),
    ]
    (row,) = rows.runtime_env_rows([answer(document)])
    assert row == {"runtime_env": {"env_vars": {"A": "1"}}, "success": True, "node_id": "n1", "ref_cnt": 2}


def held(state: str, **more: Any) -> dict[str, Any]:
    return {"object_id": "o", "state": state, "size": 10, "owned": True, **more}


def test_objects_say_who_holds_them_and_why() -> None:
    process = {
        "kind": "driver",
        "pid": 3,
        "answer": {
            "objects": [
                held("STORED", local_references=1, call_site="put"),
                held("INLINE", uses=1, size=99),
                held("STORED", borrowers=2, owned=False),
                held("ACTOR"),
                held("PENDING"),
                held("ERROR"),
            ]
        },
    }
    silent = {"kind": "worker", "pid": 4, "answer": None}
    found = rows.object_rows([answer([process, silent])])
    assert [row["object_size"] for row in found] == [99, 10, 10, 10, -1, -1]
    assert found[0]["reference_type"] == "USED_BY_PENDING_TASK"
    assert (found[1]["reference_type"], found[1]["call_site"]) == ("LOCAL_REFERENCE", "put")
    assert found[2]["reference_type"] == "CAPTURED_IN_OBJECT"
    assert {row["type"] for row in found} == {"DRIVER"}
    assert found[3]["task_status"] == "FAILED"
    assert found[4]["reference_type"] == "ACTOR_HANDLE"


def test_events_come_latest_first_with_ids_of_their_own() -> None:
    events = [
        {"at": 1.0, "severity": "INFO", "source": "NODE", "message": "one", "fields": {"node_id": "n"}},
        {"at": 2.0, "severity": "ERROR", "source": "NODE", "message": "two"},
    ]
    found = rows.event_rows(events)
    assert [row["message"] for row in found] == ["two", "one"]
    assert found[0]["event_id"] != found[1]["event_id"]
    assert found[1]["custom_fields"] == {"node_id": "n"}
