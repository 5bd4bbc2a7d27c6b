from __future__ import annotations

import pytest

from retinue.core.client.actors import ALIVE, CONNECTING, DEAD, RESTARTING, ActorQueue
from retinue.core.client.tasks import TaskRecord
from retinue.core.wire.messages import ActorInfo, Address, DeathInfo

ACTOR = b"a" * 16
HOME = Address(b"w" * 16, b"n" * 16, "/socket")


def call(name: str, *, retries: int = 0, unready: int = 0) -> TaskRecord:
    return TaskRecord(name.encode(), None, "method", retries_left=retries, unready=unready)


def names(tasks: list[TaskRecord]) -> str:
    return "".join(t.task_id.decode() for t in tasks)


def alive(incarnation: int = 0) -> ActorInfo:
    return ActorInfo(ACTOR, ALIVE, incarnation, HOME)


def restarting(incarnation: int = 1) -> ActorInfo:
    return ActorInfo(ACTOR, RESTARTING, incarnation, death=DeathInfo(pid=7, signal=9))


def dead(cause: str = "") -> ActorInfo:
    return ActorInfo(ACTOR, DEAD, 0, death=DeathInfo(pid=7, exit_code=1), death_cause=cause)


@pytest.fixture
def queue():
    queue = ActorQueue(ACTOR, class_name="Counter")
    yield queue
    queue.check_invariants()


@pytest.fixture
def connected(queue):
    queue.update(alive(), b"")
    queue.connected("connection 0", 0)
    return queue


def test_calls_wait_until_there_is_a_connection_then_go_in_order(queue):
    for name in "abc":
        assert not queue.submit(call(name))
    assert queue.update(alive(), b"") == (True, [])
    assert queue.sendable() == []
    queue.connected("connection", 0)
    tasks = queue.sendable()
    assert names(tasks) == "abc"
    assert [t.seq for t in tasks] == [0, 1, 2]
    assert all(t.conn == "connection" for t in tasks)


def test_call_to_a_connected_actor_goes_at_once(connected):
    task = call("a")
    assert connected.submit(task)
    assert connected.answered(b"a") is task
    assert connected.answered(b"a") is None
    assert not connected.is_busy()


def test_call_whose_arguments_are_not_there_holds_back_those_behind_it(connected):
    first = call("a", unready=1)
    assert not connected.submit(first)
    assert not connected.submit(call("b"))
    assert connected.sendable() == []
    first.unready = 0
    assert names(connected.sendable()) == "ab"


def test_out_of_order_actor_lets_ready_calls_pass():
    queue = ActorQueue(ACTOR, out_of_order=True)
    queue.submit(call("a", unready=1))
    queue.submit(call("b"))
    queue.connected("connection", 0)
    assert names(queue.sendable()) == "b"
    assert queue.submit(call("c")), "a call behind an unready one waits although order does not matter"
    assert names(list(queue.waiting)) == "a"


def test_max_pending_calls_counts_all_that_are_unanswered():
    queue = ActorQueue(ACTOR, max_pending_calls=3)
    queue.connected("connection", 0)
    queue.submit(call("a"))
    queue.submit(call("b"))
    queue.submit(call("c", unready=1))
    assert queue.is_full()
    queue.disconnected()
    assert queue.is_full(), "what became of two calls is not known yet"
    assert names(queue.connected("connection", 1)) == "ab", "nobody else will say what became of them"
    assert not queue.is_full()


def test_there_is_no_limit_of_calls_by_default(connected):
    for i in range(1000):
        connected.submit(call(str(i)))
    assert not connected.is_full()


def test_call_that_was_in_flight_fails_when_the_actor_restarts(connected):
    connected.submit(call("a"))
    connected.disconnected()
    connected.submit(call("b"))
    must_connect, failed = connected.update(restarting(), b"")
    assert (must_connect, names(failed)) == (False, "a")
    assert connected.state == RESTARTING
    assert connected.update(alive(1), b"") == (True, [])
    connected.connected("connection 1", 1)
    assert names(connected.sendable()) == "b"


def test_call_with_retries_left_is_repeated_before_all_others(connected):
    for name in "ab":
        connected.submit(call(name, retries=1))
    connected.disconnected()
    connected.submit(call("c"))
    assert connected.update(restarting(), b"")[1] == []
    connected.update(alive(1), b"")
    connected.connected("connection 1", 1)
    tasks = connected.sendable()
    assert names(tasks) == "abc"
    assert [t.seq for t in tasks] == [0, 1, 2]
    assert [t.retries_left for t in tasks] == [0, 0, 0]
    assert [t.attempt for t in tasks] == [1, 1, 0]
    assert tasks[0].options.attempt == 1


def test_endless_retries_stay_endless(connected):
    connected.submit(call("a", retries=-1))
    for incarnation in range(1, 4):
        connected.disconnected()
        assert connected.update(restarting(incarnation), b"")[1] == []
        connected.update(alive(incarnation), b"")
        connected.connected("connection", incarnation)
        assert names(connected.sendable()) == "a"
    assert connected.in_flight[b"a"].retries_left == -1


def test_cancelled_call_is_not_repeated(connected):
    task = call("a", retries=5)
    connected.submit(task)
    connected.disconnected()
    task.is_cancelled = True
    assert names(connected.update(restarting(), b"")[1]) == "a"


def test_restart_is_noticed_even_if_the_news_between_were_lost(connected):
    connected.submit(call("a"))
    connected.submit(call("b", retries=1))
    must_connect, failed = connected.update(alive(1), b"")
    assert must_connect
    assert names(failed) == "a"
    assert connected.conn is None
    connected.connected("connection 1", 1)
    assert names(connected.sendable()) == "b"


def test_calls_refused_by_a_newer_incarnation_are_settled_with_those_in_flight(connected):
    refused = call("a")
    connected.orphans.append(refused)
    connected.submit(call("b"))
    assert names(connected.update(alive(1), b"")[1]) == "ab"


def test_calls_whose_connection_broke_are_settled_when_the_same_incarnation_is_found_alive(connected):
    connected.submit(call("a"))
    connected.submit(call("b", retries=1))
    connected.disconnected()
    must_connect, failed = connected.update(alive(0), b"")
    assert must_connect
    assert names(failed) == "a", "nobody would ever answer it"
    assert "connection to it broke" in connected.describe_death()
    connected.connected("connection", 0)
    assert names(connected.sendable()) == "b"


def test_known_incarnation_that_is_connected_is_no_news(connected):
    connected.submit(call("a"))
    assert connected.update(alive(0), b"") == (False, [])
    assert connected.is_busy()


def test_news_of_an_older_incarnation_are_ignored(connected):
    connected.update(alive(1), b"")
    connected.connected("connection 1", 1)
    for old in (alive(0), restarting(0)):
        assert connected.update(old, b"") == (False, [])
    assert connected.state == ALIVE


def test_dead_actor_fails_everything(connected):
    connected.submit(call("a", retries=9))
    connected.submit(call("b", unready=1))
    _, failed = connected.update(dead("killed by retinue.kill()"), b"blob")
    assert names(failed) == "ab"
    assert connected.state == DEAD
    assert connected.error_blob == b"blob"
    assert connected.describe_death() == "killed by retinue.kill()"


def test_death_is_final(connected):
    connected.update(dead(), b"")
    assert connected.update(alive(5), b"") == (False, [])
    assert connected.state == DEAD


def test_death_before_it_ever_lived_fails_what_waits(queue):
    queue.submit(call("a"))
    assert names(queue.update(dead(), b"")[1]) == "a"


def test_cause_of_an_earlier_death_is_forgotten_with_the_restart(connected):
    connected.disconnected()
    connected.update(restarting(), b"")
    assert "signal 9" in connected.describe_death()
    connected.update(alive(1), b"")
    connected.connected("connection 1", 1)
    assert "signal 9" not in connected.describe_death()


def test_call_to_be_repeated_after_its_exception_goes_behind_those_that_wait(connected):
    task = call("a", retries=1)
    connected.submit(task)
    connected.submit(call("b", unready=1))
    connected.retry(connected.answered(b"a"))
    assert task.conn is None
    assert names(list(connected.waiting)) == "ba"


def test_waiting_call_can_be_taken_back(queue):
    for name in "abc":
        queue.submit(call(name))
    assert queue.cancel_waiting(b"b").task_id == b"b"
    assert queue.cancel_waiting(b"b") is None
    assert names(list(queue.waiting)) == "ac"


def test_call_in_flight_cannot_be_taken_back(connected):
    connected.submit(call("a"))
    assert connected.cancel_waiting(b"a") is None


def test_pending_actor_has_no_news(queue):
    assert queue.update(ActorInfo(ACTOR, "PENDING"), b"") == (False, [])
    assert queue.state == CONNECTING
