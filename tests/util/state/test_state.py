"""`retinue.util.state` against a running cluster of one node."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import retinue
from retinue.core.errors import UnsupportedError
from retinue.util import state
from retinue.util.state.common import ActorState, GetApiOptions, ListApiOptions, StateResource, TaskState
from retinue.util.state.exception import RetinueStateApiException

pytestmark = pytest.mark.usefixtures("cluster")

WAIT_S = 20.0
HERE = "127.0.0.1"


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETINUE_TEMP_DIR", str(tmp_path_factory.mktemp("s")))
        patch.delenv("RETINUE_ADDRESS", raising=False)
        retinue.init("local", num_cpus=2, namespace="state-tests", object_store_memory=128 << 20)
        eventually(state.list_nodes)
        yield
        retinue.shutdown()


def named(name: str, task_state: str, *, detail: bool = False) -> list[TaskState]:
    filters = [("name", "=", name), ("state", "=", task_state)]
    return state.list_tasks(filters=filters, detail=detail)


def eventually(ask: Callable[[], Any]) -> Any:
    """Ask until the answer is something: events are told once a second."""
    deadline = time.monotonic() + WAIT_S
    while not (found := ask()):
        assert time.monotonic() < deadline, "it did not become so"
    return found


@retinue.remote
class Talker:
    def __init__(self) -> None:
        self._is_held = True

    def say(self, text: str) -> int:
        print(text)
        return os.getpid()

    def node_id(self) -> str:
        return retinue.get_runtime_context().get_node_id()


@retinue.remote
class Gate:
    """Tasks wait here until it is opened."""

    def __init__(self) -> None:
        import asyncio

        self._opened = asyncio.Event()

    async def wait(self) -> None:
        await self._opened.wait()

    async def open(self) -> None:
        self._opened.set()


def test_nodes_jobs_and_the_driver_are_listed() -> None:
    (node,) = state.list_nodes()
    assert (node.state, node.is_head_node, node["resources_total"]["CPU"]) == ("ALIVE", True, 2.0)
    found = state.get_node(node.node_id)
    assert (found.node_id, found.end_time_ms) == (node.node_id, None)
    assert time.time() - 600 < found.start_time_ms / 1000 < time.time()
    (job,) = state.list_jobs(filters=[("status", "=", "RUNNING")])
    assert job.driver_info.pid == str(os.getpid())
    assert state.get_job(job.job_id).entrypoint == job.entrypoint
    (driver,) = state.list_workers(filters=[("worker_type", "=", "DRIVER")])
    assert driver.pid == os.getpid()
    assert state.get_worker(driver.worker_id).start_time_ms > 0
    assert state.list_placement_groups() == []
    assert state.get_placement_group("00") is None


def test_actors_are_listed_filtered_and_found() -> None:
    talker = Talker.options(name="listed", num_cpus=0).remote()
    pid = retinue.get(talker.say.remote("hello"))
    (actor,) = state.list_actors(filters=[("name", "=", "listed"), ("state", "=", "alive")])
    assert isinstance(actor, ActorState)
    assert (actor.pid, actor.class_name, actor.ray_namespace) == (pid, "Talker", "state-tests")
    assert actor.num_restarts is None
    found = state.get_actor(actor.actor_id)
    assert (found.num_restarts, found.is_detached) == (0, False)
    assert state.get_actor("00" * 16) is None
    assert state.list_actors(filters=[("pid", "=", str(pid)), ("state", "!=", "ALIVE")]) == []
    assert state.summarize_actors()["cluster"]["summary"]["Talker"]["state_counts"]["ALIVE"] >= 1


def test_tasks_are_seen_waiting_running_finished_and_failed() -> None:
    gate = Gate.options(num_cpus=0).remote()

    @retinue.remote
    def waiter() -> None:
        retinue.get(gate.wait.remote())

    @retinue.remote(max_retries=0)
    def failing() -> None:
        raise ValueError("no")

    @retinue.remote(resources={"nowhere": 1})
    def stuck() -> None: ...

    running = waiter.options(name="my waiter").remote()
    waiting = stuck.remote()
    failed = failing.remote()
    with pytest.raises(ValueError, match="no"):
        retinue.get(failed)
    (task,) = eventually(lambda: named("my waiter", "RUNNING"))
    assert isinstance(task, TaskState)
    assert task.task_id == running.task_id().hex()
    assert task.worker_pid not in (None, os.getpid())
    (call,) = eventually(lambda: named("Gate.wait", "RUNNING"))
    assert call.type == "ACTOR_TASK"
    assert state.get_task(waiting.task_id().hex()).state.startswith("PENDING")
    found = eventually(lambda: state.list_tasks(filters=[("state", "=", "FAILED")], detail=True))
    assert found[0].error_type == "ValueError"
    assert found[0].func_or_class_name.endswith("failing")
    retinue.get(gate.open.remote())
    retinue.get(running)
    retinue.cancel(waiting)
    done = eventually(lambda: named("my waiter", "FINISHED", detail=True))
    assert 0 < done[0].start_time_ms <= done[0].end_time_ms
    assert abs(done[0].end_time_ms / 1000 - time.time()) < 60
    counts = state.summarize_tasks()["cluster"]
    assert counts["summary"]["my waiter"]["state_counts"]["FINISHED"] == 1


def constructors(class_name: str, task_state: str) -> list[TaskState]:
    filters = [("type", "=", "ACTOR_CREATION_TASK"), ("name", "=", f"{class_name}.__init__")]
    return state.list_tasks(filters=[*filters, ("state", "=", task_state)], detail=True)


def test_constructors_are_tasks_from_their_call_to_their_end() -> None:
    gate = Gate.options(num_cpus=0).remote()

    @retinue.remote(num_cpus=0)
    class Slow:
        def __init__(self, opened: retinue.ObjectRef | None, fails: bool) -> None:
            retinue.get(gate.wait.remote())
            if fails:
                raise ValueError("not made")

        def task_id(self) -> str:
            return retinue.get_runtime_context().get_task_id()

    @retinue.remote(num_cpus=0)
    def opened() -> None:
        retinue.get(gate.wait.remote())

    good, bad = Slow.remote(None, False), Slow.remote(None, True)
    stuck = Slow.options(resources={"nowhere": 1}).remote(None, False)
    waiting = Slow.options(resources={"nowhere": 1}).remote(opened.remote(), False)
    assert {t.actor_id for t in eventually(lambda: constructors("Slow", "PENDING_ARGS_AVAIL"))} == {
        waiting._actor_id.hex()
    }
    pending = {stuck._actor_id.hex()}
    eventually(
        lambda: (
            {t.actor_id for t in constructors("Slow", "PENDING_NODE_ASSIGNMENT")} == pending
            and len(constructors("Slow", "RUNNING")) == 2
        )
    )
    retinue.get(gate.open.remote())
    (done,) = eventually(lambda: constructors("Slow", "FINISHED"))
    assert (done.actor_id, done.attempt_number) == (good._actor_id.hex(), 0)
    assert done.job_id == retinue.get_runtime_context().get_job_id()
    assert done.start_time_ms <= done.end_time_ms
    assert retinue.get(good.task_id.remote()) != done.task_id
    (failed,) = eventually(lambda: constructors("Slow", "FAILED"))
    assert (failed.actor_id, failed.error_type) == (bad._actor_id.hex(), "ValueError")
    assert state.get_task(done.task_id).state == "FINISHED"
    assert state.summarize_tasks()["cluster"]["total_actor_scheduled"] >= 4
    for actor in (stuck, waiting):
        retinue.kill(actor)


def test_objects_tell_who_holds_them() -> None:
    ref = retinue.put(b"x" * 1_000_000)
    (held,) = state.get_objects(ref.hex())
    assert (held.pid, held.reference_type, held.call_site) == (os.getpid(), "LOCAL_REFERENCE", "put")
    assert held.object_size >= 1_000_000
    assert state.list_objects(filters=[("object_id", "=", ref.hex()), ("type", "=", "worker")]) == []
    assert state.summarize_objects()["cluster"]["summary"]["put"]["total_size_mb"] > 0.9
    assert state.get_objects("00") == []


def test_runtime_envs_of_workers_are_listed() -> None:
    @retinue.remote(runtime_env={"env_vars": {"COLOUR": "blue"}})
    def colour() -> str:
        return os.environ["COLOUR"]

    assert retinue.get(colour.remote()) == "blue"
    (env,) = state.list_runtime_envs(detail=True)
    assert env.runtime_env["env_vars"] == {"COLOUR": "blue"}
    assert env.ref_cnt == 1


def test_deaths_are_told_by_workers_actors_and_events() -> None:
    talker = Talker.options(name="victim", num_cpus=0).remote()
    pid = retinue.get(talker.say.remote("last words"))
    (alive,) = state.list_actors(filters=[("name", "=", "victim")])
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(retinue.exceptions.ActorDiedError):
        retinue.get(talker.say.remote("again"))
    dead = state.get_actor(alive.actor_id)
    assert (dead.state, dead.death_cause["signal"]) == ("DEAD", signal.SIGKILL)
    (worker,) = state.list_workers(filters=[("pid", "=", pid)], detail=True)
    assert (worker.is_alive, worker.exit_type) == (False, "SYSTEM_ERROR")
    assert "signal 9" in worker.exit_detail
    events = state.list_cluster_events(filters=[("source_type", "=", "ACTOR")], detail=True)
    assert any(event.custom_fields["actor_id"] == alive.actor_id for event in events)
    assert "last words\n" in "".join(state.get_log(actor_id=alive.actor_id))


def test_logs_are_found_by_actor_task_pid_and_name() -> None:
    talker = Talker.options(num_cpus=0).remote()
    pid = retinue.get(talker.say.remote("one\ntwo"))
    third = talker.say.remote("three")
    retinue.get(third)
    node_id = retinue.nodes()[0]["NodeID"]
    (actor,) = state.list_actors(filters=[("pid", "=", pid)])
    assert "".join(state.get_log(actor_id=actor.actor_id)) == "one\ntwo\nthree\n"
    assert "".join(state.get_log(pid=pid, node_id=node_id, tail=2)) == "two\nthree\n"
    assert b"".join(state.get_log(actor_id=actor.actor_id, encoding=None, tail=1)) == b"three\n"
    assert "".join(state.get_log(actor_id=actor.actor_id, suffix="err")) == ""
    task_id = third.task_id().hex()
    eventually(lambda: state.get_task(task_id))
    assert "three\n" in "".join(state.get_log(task_id=task_id))
    files = state.list_logs(node_id=node_id)
    assert "head.log" in files["head"]
    (name,) = state.list_logs(node_id=node_id, glob_filter=f"*-{pid}.out")["worker_out"]
    assert "".join(state.get_log(filename=name, node_ip=HERE, tail=1)) == "three\n"


def test_a_log_is_followed_until_the_reader_leaves() -> None:
    talker = Talker.options(num_cpus=0).remote()
    pid = retinue.get(talker.say.remote("before"))
    (actor,) = state.list_actors(filters=[("pid", "=", pid)])
    lines = state.get_log(actor_id=actor.actor_id, follow=True, _interval=0.01)
    assert next(lines) == "before\n"
    retinue.get(talker.say.remote("after"))
    assert next(lines) == "after\n"
    lines.close()


@pytest.mark.parametrize(
    ("ask", "error", "text"),
    [
        (lambda: state.get_log(), ValueError, "name the log by"),
        (lambda: state.get_log(pid=1), ValueError, "node_id or node_ip"),
        (lambda: state.get_log(node_id="a", node_ip="b", pid=1), ValueError, "not by both"),
        (lambda: state.get_log(actor_id="00", suffix="log"), ValueError, "suffix"),
        (lambda: state.get_log(submission_id="x"), UnsupportedError, "submission_id"),
        (lambda: state.get_log(actor_id="00" * 16), RetinueStateApiException, "no actor"),
        (lambda: state.get_log(actor_id="zz"), RetinueStateApiException, "hex"),
        (lambda: state.get_log(task_id="00"), RetinueStateApiException, "not known to have run"),
        (lambda: state.get_log(node_ip=HERE, pid=1), RetinueStateApiException, "pid 1"),
        (
            lambda: list(state.get_log(node_ip=HERE, filename="../token")),
            RetinueStateApiException,
            "no log",
        ),
        (lambda: state.list_logs(), ValueError, "node_id or node_ip"),
        (lambda: state.list_logs(node_id="zz"), RetinueStateApiException, "no living node"),
        (lambda: state.list_nodes(filters=[("state", ">", 1)]), RetinueStateApiException, "compares by"),
        (lambda: state.list_nodes(filters=[("labels", "=", 1)]), RetinueStateApiException, "to filter by"),
        (lambda: state.list_nodes(limit=1_000_000), RetinueStateApiException, "limit"),
        (lambda: state.list_nodes(address="nonsense"), ConnectionError, "host:port"),
    ],
)
def test_wrong_questions_are_refused(ask: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ask()


def test_one_client_asks_often() -> None:
    client = state.StateApiClient()
    assert len(client.list(StateResource.NODES, ListApiOptions())) == 1
    node = client.list(StateResource.NODES, ListApiOptions(limit=1))[0]
    assert client.get(StateResource.NODES, node.node_id, GetApiOptions(timeout=5)).node_id == node.node_id


def test_the_limit_is_told_when_asked_to_explain() -> None:
    with pytest.warns(UserWarning, match="0 of 1 nodes are shown"):
        assert state.list_nodes(limit=0, _explain=True) == []


def test_state_is_told_inside_a_task_as_well() -> None:
    @retinue.remote
    def count_nodes() -> int:
        return len(state.list_nodes())

    assert retinue.get(count_nodes.remote()) == 1


def test_the_timeline_holds_finished_calls(tmp_path: Path) -> None:
    @retinue.remote
    def traced() -> None: ...

    ref = traced.options(name="traced call").remote()
    retinue.get(ref)
    eventually(lambda: [e for e in retinue.timeline() if e["name"] == "traced call"])
    path = tmp_path / "trace.json"
    assert retinue.timeline(str(path)) is None
    (event,) = [e for e in json.loads(path.read_text()) if e["name"] == "traced call"]
    assert (event["ph"], event["args"]["task_id"]) == ("X", ref.task_id().hex())
