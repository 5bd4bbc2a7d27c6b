"""The actors' life cycle: first by example, then against random agents that hold what the table believes."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from retinue.core.errors import ActorAlreadyExistsError, InvalidTransitionError
from retinue.core.head import actors as actors_module
from retinue.core.head.actors import (
    ALIVE,
    DEAD,
    DIED,
    FAILED,
    PENDING,
    REJECTED,
    RESTARTING,
    Actor,
    ActorTable,
    Decision,
    Forgotten,
    Start,
    Stop,
    Updated,
)
from retinue.core.head.nodes import NodeTable
from retinue.core.wire.messages import ActorInfo, ActorSpec, Address, DeathInfo, NodeInfo, Shape, WorkerEnv

A, B = b"a" * 16, b"b" * 16
JOB = b"\x01\0\0\0"
DRIVER = Address(b"driver".ljust(16), b"elsewhere".ljust(16), "/driver")
WORKER = Address(b"worker".ljust(16), A, "/worker")


def spec(number: int = 1, *, cpus: float = 0.0, owner: Address = DRIVER, **more: Any) -> ActorSpec:
    return ActorSpec(
        actor_id=number.to_bytes(12, "big") + JOB,
        job_id=JOB,
        owner=owner,
        class_name="C",
        class_key=b"key",
        shape=Shape({"CPU": cpus} if cpus else {}, WorkerEnv(JOB), more.pop("strategy", "")),
        placement={"CPU": 1.0},
        **more,
    )


def node(node_id: bytes, cpus: float = 2.0) -> NodeInfo:
    return NodeInfo(node_id, Address(node_id, node_id, "/agent"), {"CPU": cpus}, {"CPU": cpus})


class Head:
    """The two tables, and agents that do as the test says."""

    def __init__(self) -> None:
        self.nodes = NodeTable(grace_s=1.0)
        self.table = ActorTable(self.nodes, rng=random.Random(0))
        self.now = 0.0

    def add_node(self, node_id: bytes, cpus: float = 2.0, **more: Any) -> list[Decision]:
        self.nodes.registered(node(node_id, cpus))
        return self.table.node_registered(
            node_id, more.get("actors", []), live_processes=more.get("processes"), now=self.now
        )

    def create(self, actor_spec: ActorSpec, *, get_if_exists: bool = False) -> list[Decision]:
        return self.table.create(actor_spec, get_if_exists=get_if_exists, now=self.now)[1]

    def say(self, start: Start, state: str, death: DeathInfo | None = None) -> list[Decision]:
        return self.table.progress(
            start.node_id,
            start.actor_id,
            start.incarnation,
            state,
            address=WORKER if state == ALIVE else None,
            pid=7,
            death=death,
            now=self.now,
        )

    def alive(self, actor_spec: ActorSpec) -> Start:
        start = only_start(self.create(actor_spec))
        self.say(start, ALIVE)
        return start

    def lose_node(self, node_id: bytes) -> list[Decision]:
        [died] = self.nodes.died(node_id, "killed", wall_time=9.0)
        return self.table.node_died(node_id, died.reason, now=self.now)

    def actor(self, number: int = 1) -> Actor:
        actor = self.table.get(spec(number).actor_id)
        assert actor is not None
        return actor


@pytest.fixture
def head() -> Iterator[Head]:
    head = Head()
    yield head
    head.table.check_invariants()
    head.nodes.check_invariants()


def starts(decisions: list[Decision]) -> list[Start]:
    return [d for d in decisions if isinstance(d, Start)]


def stops(decisions: list[Decision]) -> list[Stop]:
    return [d for d in decisions if isinstance(d, Stop)]


def only_start(decisions: list[Decision]) -> Start:
    [start] = starts(decisions)
    return start


# creating


def test_an_actor_is_placed_and_lives(head: Head) -> None:
    head.add_node(A)
    start = only_start(head.create(spec()))
    assert (start.node_id, start.incarnation, head.actor().state) == (A, 0, PENDING)
    assert head.say(start, ALIVE) == [Updated(start.actor_id)]
    info = head.actor().info()
    assert (info.state, info.address, info.pid, info.node_id) == (ALIVE, WORKER, 7, A)


def test_it_waits_for_a_node_that_can_take_it(head: Head) -> None:
    assert starts(head.create(spec(cpus=4))) == []
    assert starts(head.add_node(A, 2.0)) == []
    assert "CPU" in head.actor().cause
    assert only_start(head.add_node(B, 4.0)).node_id == B


def test_the_same_request_twice_makes_one_actor(head: Head) -> None:
    head.add_node(A)
    head.alive(spec(name="n"))
    assert head.create(spec(name="n")) == []


def test_a_name_is_taken_once_per_namespace_until_its_actor_is_dead(head: Head) -> None:
    head.add_node(A)
    head.alive(spec(1, name="n", namespace="x"))
    with pytest.raises(ActorAlreadyExistsError):
        head.create(spec(2, name="n", namespace="x"))
    head.alive(spec(3, name="n", namespace="y"))
    found, decisions = head.table.create(spec(4, name="n", namespace="x"), get_if_exists=True, now=0.0)
    assert (found.actor_id, decisions) == (spec(1).actor_id, [])
    head.table.kill(spec(1).actor_id, no_restart=True)
    assert head.table.by_name("x", "n") is None
    head.alive(spec(5, name="n", namespace="x"))


def test_a_refused_actor_is_tried_elsewhere_then_waits_for_a_report(head: Head) -> None:
    head.add_node(A)
    head.add_node(B)
    first = only_start(head.create(spec(cpus=1)))
    second = only_start(head.say(first, REJECTED))
    assert {first.node_id, second.node_id} == {A, B}
    assert starts(head.say(second, REJECTED)) == []
    again = only_start(head.table.node_reported(first.node_id, now=0.0))
    assert (again.node_id, again.incarnation) == (first.node_id, 0)


def test_an_actor_does_not_queue_behind_tasks_that_give_way_to_it(head: Head) -> None:
    def report(recallable: float) -> None:
        shares = {"CPU": recallable}
        head.nodes.reported(A, {"CPU": 0.0}, waiting=9, demand=[], recallable=shares)

    head.add_node(A, 2.0)
    report(0.0)
    assert starts(head.create(spec(1, cpus=1))) == []
    report(2.0)
    first = only_start(head.table.node_reported(A, now=0.0))
    second = only_start(head.create(spec(2, cpus=1)))
    assert {first.node_id, second.node_id} == {A}
    assert starts(head.create(spec(3, cpus=1))) == []  # two CPUs were all that tasks had


def test_an_actor_goes_where_there_is_room_rather_than_where_tasks_give_way(head: Head) -> None:
    head.add_node(A, 2.0)
    head.add_node(B, 2.0)
    head.nodes.reported(A, {"CPU": 0.0}, waiting=9, demand=[], recallable={"CPU": 2.0})
    assert only_start(head.create(spec(1, cpus=1))).node_id == B


def test_an_actor_that_no_task_gave_way_to_is_offered_again_with_the_nodes_next_report(head: Head) -> None:
    head.add_node(A, 1.0)
    head.nodes.reported(A, {"CPU": 0.0}, waiting=9, demand=[], recallable={"CPU": 1.0})
    start = only_start(head.create(spec(1, cpus=1)))
    assert starts(head.say(start, REJECTED)) == []
    assert only_start(head.table.node_reported(A, now=2.0)).node_id == A


def test_actors_with_cpus_do_not_overfill_a_node_between_its_reports(head: Head) -> None:
    head.add_node(A, 2.0)
    placed = [starts(head.create(spec(i, cpus=1))) for i in range(3)]
    assert [len(p) for p in placed] == [1, 1, 0]


def test_an_impossible_placement_ends_it_with_the_reason(head: Head) -> None:
    head.add_node(A)
    head.create(spec(strategy=f"node:{B.hex()}"))
    info = head.actor().info()
    assert (info.state, info.error_kind) == (DEAD, "ActorUnschedulableError")
    assert B.hex() in info.death_cause


# dying


def test_without_restarts_a_crash_is_the_end_and_says_how(head: Head) -> None:
    head.add_node(A)
    start = head.alive(spec())
    decisions = head.say(start, DIED, DeathInfo(pid=7, signal=9))
    assert decisions == [Updated(start.actor_id)]
    info = head.actor().info()
    assert info.state == DEAD
    assert "killed by signal 9" in info.death_cause


def test_restarts_are_new_incarnations_and_are_used_up(head: Head) -> None:
    head.add_node(A)
    start = head.alive(spec(max_restarts=2))
    for incarnation in (1, 2):
        head.now += 60
        start = only_start(head.say(start, DIED, DeathInfo(signal=9)))
        assert (start.incarnation, head.actor().state) == (incarnation, RESTARTING)
        head.say(start, ALIVE)
        assert head.actor().num_restarts == incarnation
    head.say(start, DIED, DeathInfo(signal=9))
    assert head.actor().state == DEAD
    assert "restarted 2 times" in head.actor().cause


def test_quick_deaths_wait_before_the_next_start(head: Head) -> None:
    head.add_node(A)
    start = head.alive(spec(max_restarts=-1))
    start = only_start(head.say(start, DIED, DeathInfo(signal=11)))
    assert starts(head.say(start, DIED, DeathInfo(signal=11))) == []
    deadline = head.table.next_deadline()
    assert deadline is not None
    assert starts(head.table.tick(now=deadline - 0.01)) == []
    assert only_start(head.table.tick(now=deadline)).incarnation == 2


def test_an_intended_exit_is_not_repaired(head: Head) -> None:
    head.add_node(A)
    start = head.alive(spec(max_restarts=-1))
    head.say(start, DIED, DeathInfo(intended=True, reason="exit_actor()"))
    assert head.actor().state == DEAD


def test_a_raising_constructor_is_the_end(head: Head) -> None:
    head.add_node(A)
    start = only_start(head.create(spec(max_restarts=-1)))
    decisions = head.say(start, FAILED)
    assert stops(decisions) == []
    assert head.actor().info().has_error
    assert head.actor().state == DEAD


def test_a_dead_node_restarts_its_actors_elsewhere(head: Head) -> None:
    head.add_node(A)
    start = head.alive(spec(1, max_restarts=1))
    head.alive(spec(2))
    head.add_node(B)
    again = only_start(head.lose_node(A))
    assert (again.actor_id, again.node_id, again.incarnation) == (start.actor_id, B, 1)
    assert head.actor(2).state == DEAD
    assert "node" in head.actor(2).cause


def test_a_late_answer_of_an_older_incarnation_only_stops_it(head: Head) -> None:
    head.add_node(A)
    head.add_node(B)
    start = only_start(head.create(spec(max_restarts=-1)))
    again = only_start(head.say(start, DIED, DeathInfo(signal=9)))
    assert [s.incarnation for s in stops(head.say(start, ALIVE))] == [0]
    assert head.say(start, DIED) == []
    head.say(again, ALIVE)
    assert head.actor().incarnation == 1


# ending


def test_kill_ends_it_at_once_and_frees_the_node(head: Head) -> None:
    head.add_node(A)
    start = head.alive(spec(name="n", max_restarts=-1))
    [stop] = stops(head.table.kill(start.actor_id, no_restart=True))
    assert (stop.force, stop.node_id) == (True, A)
    assert head.table.kill(start.actor_id, no_restart=True) == []
    assert head.say(start, DIED, DeathInfo(intended=True)) == []


def test_kill_with_restart_starts_the_next_incarnation(head: Head) -> None:
    head.add_node(A)
    start = head.alive(spec(max_restarts=1))
    [stop] = stops(head.table.kill(start.actor_id, no_restart=False))
    assert stop.force
    again = only_start(head.say(start, DIED, DeathInfo(intended=True)))
    assert again.incarnation == 1


def test_a_released_actor_ends_in_order_and_a_detached_one_stays(head: Head) -> None:
    head.add_node(A)
    start = head.alive(spec(1))
    head.alive(spec(2, name="n", detached=True))
    [stop] = stops(head.table.release(start.actor_id))
    assert not stop.force
    assert head.table.release(spec(2).actor_id) == []
    assert head.actor(2).state == ALIVE


def test_actors_end_with_their_owner_unless_detached(head: Head) -> None:
    head.add_node(A)
    head.alive(spec(1, owner=WORKER))
    head.alive(spec(2, owner=WORKER, name="n", detached=True))
    head.alive(spec(3))
    head.table.owner_gone(WORKER.worker_id)
    assert [head.actor(i).state for i in (1, 2, 3)] == [DEAD, ALIVE, ALIVE]


def test_actors_end_with_their_owners_node(head: Head) -> None:
    head.add_node(A)
    head.add_node(B)
    head.create(spec(1, owner=WORKER, strategy=f"node:{B.hex()}"))
    head.lose_node(A)
    assert head.actor(1).state == DEAD


def test_actors_end_with_their_job_unless_detached(head: Head) -> None:
    head.add_node(A)
    head.alive(spec(1))
    head.alive(spec(2, name="n", detached=True))
    assert len(stops(head.table.job_ended(JOB))) == 1
    assert [head.actor(i).state for i in (1, 2)] == [DEAD, ALIVE]


def test_the_dead_are_forgotten_in_time(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors_module, "MAX_DEAD_ACTORS", 1)
    head.create(spec(1))
    head.create(spec(2))
    head.table.kill(spec(1).actor_id, no_restart=True)
    decisions = head.table.kill(spec(2).actor_id, no_restart=True)
    assert Forgotten(spec(1).actor_id) in decisions
    assert head.table.get(spec(1).actor_id) is None


def test_a_step_that_is_not_in_the_table_names_the_past() -> None:
    actor = Actor(spec())
    actor.move("END")
    with pytest.raises(InvalidTransitionError, match=r"PENDING -END-> DEAD"):
        actor.move("STARTED")


# a new head


def recovering(*loaded: Actor) -> Head:
    head = Head()
    head.table.is_recovering = True
    for actor in loaded:
        head.table.load(actor)
    return head


def known_alive(number: int = 1, node_id: bytes = A, **more: Any) -> Actor:
    return Actor(spec(number, **more), state=ALIVE, node_id=node_id, is_sent=True, address=WORKER)


def listed(actor_spec: ActorSpec, state: str = ALIVE, incarnation: int = 0) -> ActorInfo:
    return ActorInfo(actor_spec.actor_id, state, incarnation, WORKER, A, 7, spec=actor_spec)


def test_actors_that_their_nodes_still_have_go_on() -> None:
    head = recovering(known_alive(1), known_alive(2, max_restarts=1))
    decisions = head.add_node(A, actors=[listed(spec(1)), listed(spec(2, max_restarts=1))])
    decisions += head.table.recovery_over(now=0.0)
    assert starts(decisions) == stops(decisions) == []
    assert head.actor(1).state == head.actor(2).state == ALIVE
    head.table.check_invariants()


def test_nothing_is_started_before_recovery_is_over() -> None:
    head = recovering(known_alive(1, B, max_restarts=1))
    assert starts(head.add_node(A)) == []
    assert starts(head.create(spec(2))) == []
    placed = starts(head.table.recovery_over(now=5.0))
    assert {s.actor_id for s in placed} == {spec(1).actor_id, spec(2).actor_id}
    head.table.check_invariants()


def test_a_start_that_never_arrived_is_sent_again_without_using_up_a_restart() -> None:
    head = recovering(Actor(spec(), node_id=A, is_sent=True))
    head.add_node(A, actors=[])
    assert starts(head.table.recovery_over(now=0.0)) == []
    start = only_start(head.table.node_reported(A, now=0.0))
    assert (start.incarnation, head.actor().num_restarts, head.actor().state) == (1, 0, PENDING)
    head.table.check_invariants()


def test_an_actor_that_started_while_the_head_was_away_lives() -> None:
    head = recovering(Actor(spec()))
    assert Updated(spec().actor_id) in head.add_node(A, actors=[listed(spec())])
    head.table.recovery_over(now=0.0)
    assert head.actor().state == ALIVE
    head.table.check_invariants()


def test_an_actor_that_died_while_the_head_was_away_is_restarted() -> None:
    head = recovering(known_alive(max_restarts=1))
    head.add_node(A, actors=[listed(spec(max_restarts=1), DEAD)])
    assert head.actor().state == RESTARTING
    assert only_start(head.table.recovery_over(now=0.0)).incarnation == 1
    head.table.check_invariants()


def test_what_an_agent_has_kept_for_the_new_head_is_believed_before_its_list_is() -> None:
    head = recovering(known_alive())
    head.add_node(A, actors=[])
    head.say(Start(spec().actor_id, A, 0), DIED, DeathInfo(pid=7, signal=9))
    head.table.node_reported(A, now=0.0)
    assert "killed by signal 9" in head.actor().cause
    head.table.check_invariants()


def test_an_actor_that_nobody_speaks_of_is_gone() -> None:
    head = recovering(known_alive())
    head.add_node(A, actors=[])
    head.table.node_reported(A, now=0.0)
    assert head.actor().state == DEAD
    head.table.check_invariants()


def test_an_actor_that_only_its_node_knows_is_adopted() -> None:
    head = recovering()
    head.add_node(A, actors=[listed(spec(name="n", namespace="x"))])
    found = head.table.by_name("x", "n")
    assert found is not None
    assert found.state == ALIVE
    head.table.check_invariants()


def test_a_node_that_comes_back_too_late_stops_what_was_replaced() -> None:
    head = Head()
    head.add_node(A)
    head.alive(spec(max_restarts=1))
    head.add_node(B)
    head.say(only_start(head.lose_node(A)), ALIVE)
    [stop] = stops(head.add_node(A, actors=[listed(spec(max_restarts=1))]))
    assert (stop.node_id, stop.incarnation, stop.force) == (A, 0, True)
    assert head.actor().node_id == B
    head.table.check_invariants()


def test_owners_that_died_while_the_head_was_away_take_their_actors_along() -> None:
    head = recovering(known_alive(1, owner=WORKER), known_alive(2))
    head.add_node(A, actors=[listed(spec(1, owner=WORKER)), listed(spec(2))], processes=[b"other"])
    assert [head.actor(i).state for i in (1, 2)] == [DEAD, ALIVE]
    head.table.check_invariants()


# random agents


@dataclass
class FakeAgent:
    """Hosts what it is told to; its messages to the head may be on their way for a while."""

    actors: dict[bytes, tuple[int, str]] = field(default_factory=dict)  # id -> (incarnation, state)
    outbox: list[tuple[bytes, int, str, DeathInfo | None]] = field(default_factory=list)


class ActorsMachine(RuleBasedStateMachine):
    """Whatever agents, owners and callers do: the table's beliefs come true once messages have arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Head()
        self.agents: dict[bytes, FakeAgent] = {}
        self.away: dict[bytes, FakeAgent] = {}
        self.count = 0

    def carry_out(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            agent = self.agents.get(getattr(decision, "node_id", b""))
            if isinstance(decision, Start):
                assert agent is not None
                agent.actors[decision.actor_id] = (decision.incarnation, PENDING)
            elif isinstance(decision, Stop) and agent is not None:
                held = agent.actors.get(decision.actor_id)
                if held is not None and held[0] == decision.incarnation:
                    self.end(agent, decision.actor_id, intended=True)

    def end(self, agent: FakeAgent, actor_id: bytes, *, intended: bool) -> None:
        incarnation, _ = agent.actors.pop(actor_id)
        agent.outbox.append((actor_id, incarnation, DIED, DeathInfo(intended=intended, signal=9)))

    def deliver(self, node_id: bytes) -> None:
        outbox, self.agents[node_id].outbox = self.agents[node_id].outbox, []
        for actor_id, incarnation, state, death in outbox:
            self.carry_out(self.head.say(Start(actor_id, node_id, incarnation), state, death))

    def register(self, node_id: bytes, agent: FakeAgent) -> None:
        self.agents[node_id] = agent
        agent.outbox.clear()
        infos = [
            ActorInfo(actor_id, state, incarnation, WORKER if state == ALIVE else None, node_id)
            for actor_id, (incarnation, state) in agent.actors.items()
        ]
        self.carry_out(self.head.add_node(node_id, 4.0, actors=infos))
        self.carry_out(self.head.table.node_reported(node_id, now=self.head.now))

    @rule(number=st.integers(0, 3))
    def add_node(self, number: int) -> None:
        node_id = bytes([number]) * 16
        if node_id not in self.agents and node_id not in self.away:
            self.register(node_id, FakeAgent())

    @rule(
        restarts=st.sampled_from([0, 1, -1]),
        cpus=st.sampled_from([0.0, 1.0]),
        name=st.sampled_from(["", "n", "m"]),
        detached=st.booleans(),
    )
    def create(self, restarts: int, cpus: float, name: str, detached: bool) -> None:
        self.count += 1
        new = spec(self.count, cpus=cpus, max_restarts=restarts, name=name, detached=detached and bool(name))
        try:
            self.carry_out(self.head.create(new))
        except ActorAlreadyExistsError:
            assert name

    @precondition(lambda self: any(a.actors for a in self.agents.values()))
    @rule(data=st.data(), what=st.sampled_from([ALIVE, ALIVE, ALIVE, REJECTED, FAILED, "crash", "exit"]))
    def agent_acts(self, data: st.DataObject, what: str) -> None:
        node_id = data.draw(st.sampled_from([n for n, a in self.agents.items() if a.actors]))
        agent = self.agents[node_id]
        actor_id = data.draw(st.sampled_from(sorted(agent.actors)))
        incarnation, state = agent.actors[actor_id]
        if what in ("crash", "exit"):
            self.end(agent, actor_id, intended=what == "exit")
        elif state == PENDING:
            if what == ALIVE:
                agent.actors[actor_id] = (incarnation, ALIVE)
            else:
                del agent.actors[actor_id]
            agent.outbox.append((actor_id, incarnation, what, None))

    @precondition(lambda self: self.agents)
    @rule(data=st.data())
    def messages_arrive(self, data: st.DataObject) -> None:
        self.deliver(data.draw(st.sampled_from(sorted(self.agents))))

    @precondition(lambda self: self.agents)
    @rule(data=st.data(), how=st.sampled_from(["dies", "is cut off", "reconnects"]))
    def node_leaves(self, data: st.DataObject, how: str) -> None:
        node_id = data.draw(st.sampled_from(sorted(self.agents)))
        agent = self.agents.pop(node_id)
        if how == "reconnects":
            self.head.nodes.connection_lost(node_id, now=self.head.now)
            self.register(node_id, agent)
            return
        if how == "is cut off":
            self.away[node_id] = agent
        self.carry_out(self.head.lose_node(node_id))

    @precondition(lambda self: self.away)
    @rule(data=st.data())
    def node_returns(self, data: st.DataObject) -> None:
        node_id = data.draw(st.sampled_from(sorted(self.away)))
        self.register(node_id, self.away.pop(node_id))

    @precondition(lambda self: self.count)
    @rule(data=st.data(), how=st.sampled_from(["kill", "restart", "release"]))
    def caller_acts(self, data: st.DataObject, how: str) -> None:
        actor_id = spec(data.draw(st.integers(1, self.count))).actor_id
        if how == "release":
            self.carry_out(self.head.table.release(actor_id))
        else:
            self.carry_out(self.head.table.kill(actor_id, no_restart=how == "kill"))

    @rule(seconds=st.sampled_from([0.1, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.head.now += seconds
        self.carry_out(self.head.table.tick(now=self.head.now))

    @invariant()
    def tables_are_consistent(self) -> None:
        self.head.table.check_invariants()
        self.head.nodes.check_invariants()

    def teardown(self) -> None:
        """Give it a big quiet node and time: every actor is where the table says, once, or dead."""
        self.register(b"\xee" * 16, FakeAgent())
        self.head.nodes.reported(b"\xee" * 16, {"CPU": 1000.0}, waiting=0, demand=[])
        for _ in range(40):
            for node_id, agent in self.agents.items():
                for actor_id, (incarnation, state) in list(agent.actors.items()):
                    if state == PENDING:
                        agent.actors[actor_id] = (incarnation, ALIVE)
                        agent.outbox.append((actor_id, incarnation, ALIVE, None))
                self.deliver(node_id)
            self.head.now += 20.0
            self.head.nodes.reported(b"\xee" * 16, {"CPU": 1000.0}, waiting=0, demand=[])
            self.carry_out(self.head.table.node_reported(b"\xee" * 16, now=self.head.now))
        hosted = [
            (actor_id, node_id, incarnation)
            for node_id, agent in self.agents.items()
            for actor_id, (incarnation, _) in agent.actors.items()
        ]
        believed = [(a.actor_id, a.node_id, a.incarnation) for a in self.head.table if a.state != DEAD]
        assert sorted(hosted) == sorted(believed)
        assert all(a.state in (ALIVE, DEAD) for a in self.head.table)


ActorsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_actors_against_random_agents = ActorsMachine.TestCase
