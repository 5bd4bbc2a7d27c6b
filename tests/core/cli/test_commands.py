"""The commands against a scripted cluster: what they ask, what they print, how they fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from retinue.core.admin import ask
from retinue.core.admin.ask import ServerUnavailable, Target
from retinue.core.admin.schemas import ActorState
from retinue.core.cli import options
from retinue.core.cli.main import COMMANDS, main
from retinue.core.wire import messages as m

HERE = m.Address(b"w" * 16, b"n" * 16, "/nowhere/agent.sock")
NODE = m.NodeInfo(b"n" * 16, HERE, {"CPU": 4.0}, {"CPU": 1.0}, hostname="here", is_head=True)
JOB = b"\1\0\0\0"
ACTOR_ID = b"a" * 12 + JOB
SPEC = m.ActorSpec(
    ACTOR_ID, JOB, HERE, "Counter", b"k", m.Shape({"CPU": 1.0}, m.WorkerEnv(JOB)), {}, "bob", "space"
)
STORE = {"used_bytes": 2**20, "budget_bytes": 2**30, "pinned_bytes": 0, "on_disk_bytes": 0, "objects": 3}


class FakeAsker:
    """Answers as head and agents would; remembers what was asked to be done."""

    def __init__(self) -> None:
        self.target = Target(HERE, b"token")
        self.missing: list[str] = []
        self.done: list[Any] = []
        self.actors = [m.ActorInfo(ACTOR_ID, "ALIVE", spec=SPEC, pid=7, address=HERE, node_id=b"n" * 16)]
        self.documents: dict[str, Any] = {
            "workers": [],
            "tasks": {"live": [], "finished": [], "dropped": 0, "omitted": 0, "silent": []},
            "references": [],
            "stack": [],
            "node": {"store": STORE, "workers": 2},
            "list_logs": [{"file": "head.log", "size": 1}, {"file": "worker-ab-7.out", "size": 1}],
        }

    def nodes(self) -> list[m.NodeInfo]:
        return [NODE]

    def ask_head(self, message: Any) -> Any:
        match message:
            case m.ListActors():
                return m.ActorList(1, self.actors)
            case m.ListJobs():
                return m.JobList(1, [m.JobInfo(JOB, HERE, 5, "train.py", "space", 1.0)])
            case m.FindActor():
                return m.ActorAnswer(1, self.actors[0])
            case m.Query(what="summary"):
                return {"cluster_id": "c" * 32, "epoch": 1, "actors": 1, "jobs": 1}
            case m.Query(what="demand"):
                return [{"node_id": "n", "shapes": [[{"GPU": 1.0}, 3]]}]
            case m.Query(what="events"):
                return []
            case _:
                self.done.append(message)
                return m.Ok(1)

    def ask_node(self, node: m.NodeInfo, what: str, arguments: Any = None) -> Any:
        return self.documents[what]

    def ask_nodes(self, what: str, arguments: Any = None, *, nodes: Any = None) -> ask.Answers:
        answers = ask.Answers(missing=list(self.missing))
        answers.answers.append(ask.NodeAnswer(NODE.node_id.hex(), "127.0.0.1", self.documents[what]))
        return answers


@pytest.fixture
def asker(monkeypatch: pytest.MonkeyPatch) -> FakeAsker:
    asker = FakeAsker()
    monkeypatch.setattr(options, "find_target", lambda address: asker.target)
    monkeypatch.setattr(options, "Asker", lambda target, timeout_s: asker)
    return asker


@pytest.fixture
def run() -> Callable[..., Result]:
    return lambda *words: CliRunner().invoke(main, words)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command: str, run: Callable[..., Result]) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output
    assert command in run("--help").output


def test_lists_are_tables_by_default(asker: FakeAsker, run: Callable[..., Result]) -> None:
    lines = run("list", "actors").output.splitlines()
    assert lines[0].split() == [name.upper() for name in ActorState.list_columns(detail=False)]
    assert lines[1].split()[1:3] == ["Counter", "ALIVE"]


def test_lists_are_json_or_yaml_on_demand(asker: FakeAsker, run: Callable[..., Result]) -> None:
    for read, format_ in ((json.loads, "json"), (yaml.safe_load, "yaml")):
        (row,) = read(run("list", "actors", "--format", format_).output)
        assert (row["name"], row["pid"]) == ("bob", 7)
        assert "death_cause" not in row


def test_details_are_yaml_unless_said_otherwise(asker: FakeAsker, run: Callable[..., Result]) -> None:
    (row,) = yaml.safe_load(run("list", "actors", "--detail").output)
    assert row["required_resources"] == {"CPU": 1.0}
    assert run("list", "actors", "--detail", "--format", "table").output.startswith("ACTOR_ID")


def test_filters_and_limits_choose_rows(asker: FakeAsker, run: Callable[..., Result]) -> None:
    asker.actors *= 3
    assert run("list", "actors", "--filter", "state=DEAD").output == "There are no actors.\n"
    result = run("list", "actors", "--filter", "name=BOB", "--limit", "2", "--format", "json")
    assert len(json.loads(result.stdout)) == 2
    assert "2 of 3 actors are shown" in result.stderr


@pytest.mark.parametrize(
    "words", [("--filter", "pid"), ("--filter", "pid=x"), ("--filter", "x=1"), ("--limit", "-1")]
)
def test_a_wrong_question_is_one_line_and_exit_code_1(
    words: tuple[str, ...], asker: FakeAsker, run: Callable[..., Result]
) -> None:
    result = run("list", "actors", *words)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1


def test_what_could_not_be_asked_is_said(asker: FakeAsker, run: Callable[..., Result]) -> None:
    asker.missing = ["node 123: timed out"]
    result = run("list", "workers")
    assert result.exit_code == 0
    assert "not all workers are known: node 123: timed out" in result.stderr


def test_get_gives_everything_about_one(asker: FakeAsker, run: Callable[..., Result]) -> None:
    row = yaml.safe_load(run("get", "actor", ACTOR_ID.hex()).output)
    assert row["class_name"] == "Counter"
    assert json.loads(run("get", "actors", ACTOR_ID.hex(), "--format", "json").output) == row
    result = run("get", "actor", "00")
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: there is no actor 00; `retinue list actors` shows which there are\n",
    )


def test_summary_counts(asker: FakeAsker, run: Callable[..., Result]) -> None:
    assert "total actors: 1" in run("summary", "actors").output
    assert json.loads(run("summary", "actors", "--format", "json").output)["total_actors"] == 1
    assert "total tasks: 0" in run("summary", "tasks").output


def test_status_shows_nodes_resources_and_demand(asker: FakeAsker, run: Callable[..., Result]) -> None:
    output = run("status").output
    assert "1 nodes alive, 1 actors, 1 jobs" in output
    assert "3 of 4" in output
    assert "GPU: 1" in output
    document = json.loads(run("status", "--format", "json").output)
    assert document["resources"]["CPU"] == {"used": 3.0, "total": 4.0}
    assert document["demand"] == [{"resources": {"GPU": 1.0}, "count": 3}]


def test_memory_shows_holders_and_stores(asker: FakeAsker, run: Callable[..., Result]) -> None:
    held = {"object_id": "o", "state": "STORED", "size": 2**20, "owned": True, "local_references": 1}
    process = {"kind": "driver", "pid": 5, "answer": {"objects": [held], "omitted": 0}}
    asker.documents["references"] = [process]
    output = run("memory").output
    assert "1 objects, 1.000 MiB" in output
    assert "driver 5" in output
    document = json.loads(run("memory", "--format", "json").output)
    assert document["holders"][0]["size_bytes"] == 2**20
    assert document["stores"][0]["budget_bytes"] == 2**30


def test_stacks_are_shown_by_process(asker: FakeAsker, run: Callable[..., Result]) -> None:
    assert run("stack").exit_code == 1
    asker.documents["stack"] = [
        {"kind": "worker", "pid": 7, "name": "bob", "answer": "Thread 1 ..."},
        {"kind": "worker", "pid": 8, "name": "", "answer": None},
    ]
    output = run("stack").output
    assert "worker 7 (bob)" in output
    assert "Thread 1 ..." in output
    assert "does not answer" in output


def test_timeline_writes_a_file(asker: FakeAsker, run: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    assert "Wrote 0 calls" in run("timeline", "--output", str(path)).output
    assert json.loads(path.read_text()) == []


@pytest.mark.parametrize("words", [(ACTOR_ID.hex(),), ("--name", "bob")])
def test_actors_are_killed_by_id_or_name(
    words: tuple[str, ...], asker: FakeAsker, run: Callable[..., Result]
) -> None:
    result = run("kill-actor", *words)
    assert result.exit_code == 0, result.output
    assert [(message.actor_id, message.no_restart) for message in asker.done] == [(ACTOR_ID, True)]


def test_kill_actor_refuses_what_it_cannot_mean(asker: FakeAsker, run: Callable[..., Result]) -> None:
    assert run("kill-actor").exit_code == 2
    assert run("kill-actor", "xyz").stderr == "Error: an actor's id is hexadecimal, got 'xyz'\n"
    assert "no living actor named 'eve'" in run("kill-actor", "--name", "eve").stderr
    asker.actors *= 2
    assert "several namespaces" in run("kill-actor", "--name", "bob").stderr
    asker.actors = [m.ActorInfo(ACTOR_ID, "DEAD", death_cause="it crashed")]
    assert "is dead already: it crashed" in run("kill-actor", ACTOR_ID.hex()).stderr
    assert asker.done == []


def test_logs_lists_files_where_no_single_one_fits(asker: FakeAsker, run: Callable[..., Result]) -> None:
    for words in ((), ("cluster",), ("*",)):
        output = run("logs", *words).output
        assert "  head.log" in output
        assert "worker_out:" in output
    assert "no log file that fits" in run("logs", "x*").stderr


def test_a_head_that_is_silent_is_one_line(
    asker: FakeAsker, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(message: Any) -> Any:
        raise ServerUnavailable("the head at h does not answer: timed out\nand more")

    monkeypatch.setattr(asker, "ask_head", fail)
    result = run("list", "actors")
    assert (result.exit_code, result.stderr) == (1, "Error: the head at h does not answer: timed out\n")


def test_without_a_cluster_the_command_to_start_one_is_named(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETINUE_TEMP_DIR", str(tmp_path))
    monkeypatch.delenv("RETINUE_ADDRESS", raising=False)
    for words in (("status",), ("list", "nodes"), ("logs",), ("stack",), ("timeline",), ("memory",)):
        result = run(*words)
        assert result.exit_code == 1
        assert "`retinue start --head`" in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert "not known here: set RETINUE_TOKEN" in run("status", "--address", "10.1.2.3:4").stderr
    assert "host:port" in run("status", "--address", "nonsense").stderr
    assert run("stop").output == "No node of yours was running.\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "--head for a new cluster"),
        (("--head", "--address", "h:1"), "--head for a new cluster"),
        (("--address", "h:1", "--port", "5"), "--port is the head's"),
        (("--head", "--object-store-memory", "lots"), "such as 500MB"),
        (("--head", "--resources", "[]"), "JSON object"),
        (("--head", "--labels", "x"), "key=value"),
        (("--head", "--num-cpus", "-1"), "num-cpus"),
    ],
)
def test_start_refuses_what_makes_no_sense(
    words: tuple[str, ...], text: str, run: Callable[..., Result]
) -> None:
    result = run("start", *words)
    assert result.exit_code == 2
    assert text in result.stderr
