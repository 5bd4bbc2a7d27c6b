import asyncio
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from retinue.core.errors import ActorAlreadyExistsError, RetinueSystemError
from retinue.core.head.storage import Change
from retinue.core.transport.loop import ConnectionLostError
from retinue.core.wire import messages as m
from tests.core.head.conftest import ScriptedHead, ScriptedPeer

Run = Callable[[Callable[[ScriptedHead], Any]], None]
JOB = b"\x01\0\0\0"


def spec(number: int, owner: ScriptedPeer, **more: Any) -> m.ActorSpec:
    shape = m.Shape({}, m.WorkerEnv(JOB))
    actor_id = number.to_bytes(12, "big") + JOB
    return m.ActorSpec(actor_id, JOB, owner.address, "C", b"key", shape, {"CPU": 1.0}, **more)


def progress(start: m.StartActor, agent: ScriptedPeer, state: str, **more: Any) -> m.ActorProgress:
    return m.ActorProgress(start.spec.actor_id, start.incarnation, state, agent.address, 7, **more)


def is_state(state: str) -> Callable[[m.ActorUpdate], bool]:
    return lambda update: update.info.state == state


async def living_actor(driver: ScriptedPeer, agent: ScriptedPeer, actor_spec: m.ActorSpec) -> m.StartActor:
    await driver.ask(m.CreateActor(0, actor_spec, 3), b"defargs")
    start, _ = await agent.expect(m.StartActor)
    agent.tell(progress(start, agent, "ALIVE"))
    await driver.expect(m.ActorUpdate, is_state("ALIVE"))
    return start


def test_an_actor_goes_from_its_creator_to_an_agent_and_back(run_with_head: Run) -> None:
    async def test(head: ScriptedHead) -> None:
        agent, driver = await head.agent("a"), await head.driver()
        answer = await driver.ask(m.CreateActor(0, spec(1, driver, name="n"), 3), b"defargs")
        assert answer.info.state == "PENDING"
        start, payload = await agent.expect(m.StartActor)
        assert (payload, start.class_size) == (b"defargs", 3)
        agent.tell(progress(start, agent, "ALIVE"))
        update, _ = await driver.expect(m.ActorUpdate)
        assert (update.info.state, update.info.address) == ("ALIVE", agent.address)
        other = await head.peer("other")
        found = await other.ask(m.FindActor(0, name="n"))
        assert found.info.spec == start.spec
        with pytest.raises(ValueError, match="no actor named 'm'"):
            await other.ask(m.FindActor(0, name="m"))
        with pytest.raises(ActorAlreadyExistsError):
            await other.ask(m.CreateActor(0, spec(2, other, name="n"), 0))
        listed = await other.ask(m.ListActors(0, named_only=True))
        assert [info.actor_id for info in listed.actors] == [start.spec.actor_id]

    run_with_head(test)


def test_nobody_hears_of_a_state_before_it_is_durable(run_with_head: Run) -> None:
    async def test(head: ScriptedHead) -> None:
        agent, driver = await head.agent("a"), await head.driver()
        await driver.ask(m.CreateActor(0, spec(1, driver), 0))
        start, _ = await agent.expect(m.StartActor)
        disk = threading.Event()
        commit = head.storage.commit

        def slow_commit(changes: list[Change]) -> None:
            assert disk.wait(10)
            commit(changes)

        head.storage.commit = slow_commit  # type: ignore[method-assign]
        try:
            agent.tell(progress(start, agent, "ALIVE"))
            await agent.ask(m.WatchNodes(0))  # this is answered without the disk
            await driver.ask(m.WatchNodes(0))
            while not driver.inbox.empty():
                assert not isinstance(driver.inbox.get_nowait()[0], m.ActorUpdate)
        finally:
            disk.set()
        await driver.expect(m.ActorUpdate, is_state("ALIVE"))

    run_with_head(test)


def test_a_raising_constructor_reaches_everyone_who_asks(run_with_head: Run) -> None:
    async def test(head: ScriptedHead) -> None:
        agent, driver = await head.agent("a"), await head.driver()
        await driver.ask(m.CreateActor(0, spec(1, driver), 0))
        start, _ = await agent.expect(m.StartActor)
        agent.tell(progress(start, agent, "FAILED"), b"the error")
        update, payload = await driver.expect(m.ActorUpdate)
        assert (update.info.state, update.info.has_error, payload) == ("DEAD", True, b"the error")
        answer, payload = await driver.connection.request(m.FindActor(0, start.spec.actor_id))
        assert (answer.info.has_error, payload) == (True, b"the error")

    run_with_head(test)


def test_a_lost_node_restarts_its_actors_elsewhere_after_the_grace(run_with_head: Run) -> None:
    async def test(head: ScriptedHead) -> None:
        head.server.nodes._grace_s = 0.02
        first, driver = await head.agent("a"), await head.driver()
        start = await living_actor(driver, first, spec(1, driver, max_restarts=1))
        second = await head.agent("b")
        first.close()
        again, payload = await second.expect(m.StartActor)
        assert (again.spec.actor_id, again.incarnation) == (start.spec.actor_id, 1)
        assert payload == b"defargs"
        await driver.expect(m.ActorUpdate, is_state("RESTARTING"))

    run_with_head(test)


def test_an_agent_that_says_goodbye_is_dead_at_once(run_with_head: Run) -> None:
    async def test(head: ScriptedHead) -> None:
        agent, watcher = await head.agent("a"), await head.peer("watcher")
        await watcher.ask(m.WatchNodes(0))
        agent.tell(m.OwnerGone(agent.address.worker_id))
        view, _ = await watcher.expect(m.ClusterView, lambda v: not all(n.alive for n in v.nodes))
        assert view.nodes[-1].death_reason == "it was shut down"

    run_with_head(test)


def test_watchers_get_the_full_view_and_then_what_changes(run_with_head: Run) -> None:
    async def test(head: ScriptedHead) -> None:
        first = await head.agent("a")
        view, _ = await first.expect(m.ClusterView, lambda v: v.full)
        assert [node.node_id for node in view.nodes] == [first.address.node_id]
        second = await head.agent("b")
        second.tell(m.NodeReport({"CPU": 1.0}, waiting=3))
        view, _ = await first.expect(m.ClusterView, lambda v: any(n.waiting == 3 for n in v.nodes))
        assert not view.full
        with pytest.raises(ValueError, match="no node"):
            await first.ask(m.DrainNode(0, b"x" * 16))
        await first.ask(m.DrainNode(0, second.address.node_id))
        await first.expect(m.ClusterView, lambda v: any(n.draining for n in v.nodes))

    run_with_head(test)


def test_a_finished_job_ends_its_actors_and_tells_the_agents(run_with_head: Run) -> None:
    async def test(head: ScriptedHead) -> None:
        agent, driver = await head.agent("a"), await head.driver()
        start = await living_actor(driver, agent, spec(1, driver))
        await living_actor(driver, agent, spec(2, driver, name="n", detached=True))
        driver.tell(m.FinishJob(JOB))
        stop, _ = await agent.expect(m.StopActor)
        assert (stop.actor_id, stop.force) == (start.spec.actor_id, True)
        assert (await agent.expect(m.JobFinished))[0].job_id == JOB
        jobs = (await driver.ask(m.ListJobs(0))).jobs
        assert [(job.job_id, job.status) for job in jobs] == [(JOB, "SUCCEEDED")]
        with pytest.raises(RetinueSystemError, match="has ended"):
            await driver.ask(m.CreateActor(0, spec(3, driver), 0))
        assert (await driver.ask(m.FindActor(0, name="n"))).info.state == "ALIVE"

    run_with_head(test)


def test_a_driver_that_is_gone_ends_its_job_after_the_grace_or_at_its_agents_word(run_with_head: Run) -> None:
    async def test(head: ScriptedHead) -> None:
        head.server.jobs._grace_s = 0.02
        agent, driver = await head.agent("a"), await head.driver()
        driver.close()
        assert (await agent.expect(m.JobFinished))[0].job_id == JOB
        other = await head.driver("other")
        agent.tell(m.OwnerGone(other.address.worker_id))
        assert (await agent.expect(m.JobFinished))[0].job_id == b"\x02\0\0\0"

    run_with_head(test)


def test_released_and_killed_actors_are_stopped(run_with_head: Run) -> None:
    async def test(head: ScriptedHead) -> None:
        agent, driver = await head.agent("a"), await head.driver()
        first = await living_actor(driver, agent, spec(1, driver))
        second = await living_actor(driver, agent, spec(2, driver))
        driver.tell(m.ReleaseActor(first.spec.actor_id))
        assert (await agent.expect(m.StopActor))[0].force is False
        await driver.ask(m.KillActor(0, second.spec.actor_id))
        assert (await agent.expect(m.StopActor))[0].force is True
        assert {key[0] for key in head.storage.records} == {"meta", "nodes", "jobs"}

    run_with_head(test)


def test_values_can_be_kept_watched_and_listed(run_with_head: Run) -> None:
    async def test(head: ScriptedHead) -> None:
        client, watcher = await head.peer("client"), await head.peer("watcher")
        assert (await client.ask(m.KvPut(0, "ns", b"a1"), b"1")).value == 1
        assert (await client.ask(m.KvPut(0, "ns", b"a1", overwrite=False), b"2")).value == 0
        await watcher.ask(m.KvWatch(0, "ns", b"a"))
        assert (await watcher.expect(m.KvChanged))[1] == b"1"
        await client.ask(m.KvPut(0, "ns", b"a2"), b"3")
        changed, payload = await watcher.expect(m.KvChanged)
        assert (changed.key, payload) == (b"a2", b"3")
        assert sorted((await client.ask(m.KvKeys(0, "ns"))).keys) == [b"a1", b"a2"]
        assert (await client.ask(m.KvDelete(0, "ns", b"a", by_prefix=True))).value == 2
        assert (await watcher.expect(m.KvChanged))[0].deleted
        assert not (await client.ask(m.KvGet(0, "ns", b"a1"))).found

    run_with_head(test)


def test_a_new_head_knows_names_jobs_and_values_and_waits_for_its_nodes(run_with_head: Run) -> None:
    async def test(head: ScriptedHead) -> None:
        agent, driver = await head.agent("a"), await head.driver()
        start = await living_actor(driver, agent, spec(1, driver, name="n", max_restarts=1))
        await driver.ask(m.KvPut(0, "ns", b"k"), b"v")
        await head.stop()
        await head.start()
        assert head.server.epoch == 2
        driver = await head.peer("driver")
        job = m.JobInfo(JOB, driver.address, 1, "main.py", "", 0.0)
        assert (await driver.ask(m.RegisterJob(0, job))).job_id == JOB
        assert (await driver.ask(m.FindActor(0, name="n"))).info.state == "ALIVE"
        _, value = await driver.connection.request(m.KvGet(0, "ns", b"k"))
        assert value == b"v"
        # Another node is here and has room, but the known one may still come back: nothing is placed.
        other = await head.agent("b")
        await driver.ask(m.CreateActor(0, spec(2, driver), 0))
        summary = msgspec.msgpack.decode((await other.connection.request(m.Query(0, "summary")))[1])
        assert summary["is_recovering"]
        assert other.inbox.qsize() == 1  # its ClusterView
        listed = m.ActorInfo(start.spec.actor_id, "ALIVE", 0, agent.address, spec=start.spec)
        agent = await head.agent("a", actors=[listed])
        got, _ = await asyncio.wait_for(_first_start(agent, other), 10)
        assert got.spec.actor_id == spec(2, driver).actor_id
        assert (await driver.ask(m.FindActor(0, name="n"))).info.incarnation == 0

    run_with_head(test)


async def _first_start(*agents: ScriptedPeer) -> Any:
    tasks = [asyncio.create_task(agent.expect(m.StartActor)) for agent in agents]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return next(iter(done)).result()


def test_a_node_that_does_not_come_back_loses_its_actors_when_recovery_ends(run_with_head: Run) -> None:
    async def test(head: ScriptedHead) -> None:
        agent, driver = await head.agent("a"), await head.driver()
        start = await living_actor(driver, agent, spec(1, driver, name="n", max_restarts=1))
        await head.stop()
        await head.start(register_grace_s=0.05)
        other = await head.agent("b")
        again, payload = await other.expect(m.StartActor)
        assert (again.spec.actor_id, again.incarnation, payload) == (start.spec.actor_id, 1, b"defargs")

    run_with_head(test)


def test_views_say_whether_known_nodes_are_still_awaited(run_with_head: Run) -> None:
    async def test(head: ScriptedHead) -> None:
        await head.agent("a")
        await head.stop()
        await head.start(register_grace_s=0.05)
        watcher = await head.peer("watcher")
        await watcher.ask(m.WatchNodes(0))
        view, _ = await watcher.expect(m.ClusterView)
        assert (view.nodes, view.full, view.awaits_nodes) == ([], True, True)
        view, _ = await watcher.expect(m.ClusterView)
        assert (view.nodes, view.full, view.awaits_nodes) == ([], True, False)

    run_with_head(test)


def test_answers_wait_until_what_they_say_is_durable(run_with_head: Run) -> None:
    async def test(head: ScriptedHead) -> None:
        client = await head.peer("client")
        puts = [client.ask(m.KvPut(0, "ns", b"%d" % i), b"v") for i in range(200)]
        commits = head.storage.commits
        await asyncio.gather(*puts)
        assert sum(table == "kv/ns" for table, _ in head.storage.records) == 200
        assert head.storage.commits - commits < 200  # written in groups

    run_with_head(test)


def test_what_the_head_does_not_understand_costs_only_that_connection(run_with_head: Run) -> None:
    async def test(head: ScriptedHead) -> None:
        bad, good = await head.peer("bad"), await head.peer("good")
        with pytest.raises(ConnectionLostError):
            await bad.ask(m.PinObject(0, b"", 0, bad.address, []))
        assert type(await good.ask(m.Ping(0))) is m.Ok
        with pytest.raises(ValueError, match="demand"):
            await good.ask(m.Query(0, "nonsense"))

    run_with_head(test)


def test_a_head_that_is_shut_down_with_a_grace_ends_with_its_last_agent(run_with_head: Run) -> None:
    async def test(head: ScriptedHead) -> None:
        first, second = await head.agent("a"), await head.agent("b")
        client = await head.peer("client")
        await client.ask(m.Shutdown(0, 600.0))
        for agent in (first, second):
            assert (await agent.expect(m.Shutdown))[0].grace_period_s == 600.0
        first.connection.close()
        await client.ask(m.Ping(0))
        assert not head.server.stopped.is_set()
        second.connection.close()
        await asyncio.wait_for(head.server.stopped.wait(), 10)

    run_with_head(test)


def test_shutdown_ends_the_agents_and_then_the_head(run_with_head: Run) -> None:
    async def test(head: ScriptedHead) -> None:
        agent, client = await head.agent("a"), await head.peer("client")
        await client.ask(m.Shutdown(0))
        await agent.expect(m.Shutdown)
        await asyncio.wait_for(head.server.stopped.wait(), 10)

    run_with_head(test)
