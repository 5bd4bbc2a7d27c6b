"""An agent as the head's hand: actors start, fail, die and outlive heads."""

from __future__ import annotations

import os
import signal
from typing import Any

import cloudpickle
import pytest

from retinue.core.transport.blocking import BlockingClient
from retinue.core.wire.messages import (
    ActorSpec,
    ActorUpdate,
    CreateActor,
    FindActor,
    JobInfo,
    KillActor,
    LeaseGrant,
    LeaseReturn,
    RegisterJob,
    Shape,
    WorkerEnv,
)
from tests.core.node.conftest import DriverClient, Nodes, wait_gone, wait_until


class Owner:
    """A driver's connection to the head, creating actors."""

    def __init__(self, nodes: Nodes, driver: DriverClient) -> None:
        self.driver = driver
        self.client = BlockingClient(
            nodes.cluster.head_address, nodes.cluster.token, sender=driver.address, timeout_s=20.0
        )
        nodes.to_close.append(self.client)
        job = JobInfo(driver.job_id, driver.address, os.getpid(), "test", "ns", 0.0)
        self.client.request(RegisterJob(0, job))

    def create(self, cls: type, *, cpus: float = 0.0, **options: Any) -> bytes:
        """Ask for an actor; its id."""
        actor_id = os.urandom(12) + self.driver.job_id
        definition = cloudpickle.dumps(cls)
        resources = {"CPU": cpus} if cpus else {}
        shape = Shape(resources, WorkerEnv(self.driver.job_id))
        spec = ActorSpec(
            actor_id,
            self.driver.job_id,
            self.driver.address,
            cls.__name__,
            b"k" * 16,
            shape,
            {"CPU": 1.0},
            **options,
        )
        self.client.request(CreateActor(0, spec, len(definition)), definition)
        return actor_id

    def until(self, actor_id: bytes, state: str) -> Any:
        """The actor's info once it is in that state."""
        answer, _ = self.client.request(FindActor(0, actor_id))
        info = answer.info
        while info.state != state:
            message, _ = self.client.receive()
            if isinstance(message, ActorUpdate) and message.info.actor_id == actor_id:
                info = message.info
        return info


class Plain:
    pass


class Raises:
    def __init__(self) -> None:
        raise RuntimeError("not today")


@pytest.fixture
def owner(nodes: Nodes, driver: DriverClient) -> Owner:
    return Owner(nodes, driver)


def test_an_actor_starts_and_holds_only_its_resources(owner: Owner) -> None:
    info = owner.until(owner.create(Plain), "ALIVE")
    assert os.path.exists(info.address.path)
    assert owner.driver.ask("node")["available"]["CPU"] == 2.0
    (actor,) = owner.driver.ask("actors")
    assert (actor["pid"], actor["state"], actor["class_name"]) == (info.pid, "ALIVE", "Plain")


def test_a_constructor_that_raises_ends_the_actor_and_its_worker(owner: Owner) -> None:
    info = owner.until(owner.create(Raises, cpus=1), "DEAD")
    assert info.has_error
    wait_until(lambda: owner.driver.ask("node")["available"]["CPU"] == 2.0)


def test_a_killed_actor_says_how_it_died_and_restarts_if_it_may(owner: Owner) -> None:
    actor_id = owner.create(Plain, max_restarts=1)
    first = owner.until(actor_id, "ALIVE")
    os.kill(first.pid, signal.SIGKILL)
    assert owner.until(actor_id, "RESTARTING").death.signal == signal.SIGKILL
    second = owner.until(actor_id, "ALIVE")
    assert second.pid != first.pid
    os.kill(second.pid, signal.SIGKILL)
    assert owner.until(actor_id, "DEAD").death.pid == second.pid


def test_killing_by_its_id_ends_the_worker(owner: Owner) -> None:
    actor_id = owner.create(Plain)
    info = owner.until(actor_id, "ALIVE")
    owner.client.request(KillActor(0, actor_id))
    wait_gone(info.pid)
    assert owner.until(actor_id, "DEAD").state == "DEAD"


def test_an_actor_takes_the_room_of_leases_that_others_can_spare(nodes: Nodes, owner: Owner) -> None:
    driver = owner.driver
    driver.demand(2)
    leases = [driver.expect(LeaseGrant), driver.expect(LeaseGrant)]
    actor_id = owner.create(Plain, cpus=1)
    for lease in leases:
        driver.client.send(LeaseReturn(lease.lease_id))
    assert owner.until(actor_id, "ALIVE").pid


def test_a_detached_actor_outlives_its_job_and_others_do_not(nodes: Nodes, owner: Owner) -> None:
    plain = owner.until(owner.create(Plain), "ALIVE")
    detached = owner.until(owner.create(Plain, detached=True, name="d", namespace="ns"), "ALIVE")
    owner.client.close()
    owner.driver.close()
    wait_gone(plain.pid)
    os.kill(detached.pid, 0)


def test_actors_do_not_notice_that_the_head_dies(nodes: Nodes, owner: Owner) -> None:
    actor_id = owner.create(Plain, name="n", namespace="ns")
    before = owner.until(actor_id, "ALIVE")
    assert nodes.cluster.head is not None
    nodes.cluster.head.kill()
    again = Owner(nodes, owner.driver)
    after = again.until(actor_id, "ALIVE")
    assert (after.pid, after.incarnation) == (before.pid, before.incarnation)


def test_an_actor_that_dies_while_the_head_is_away_is_reported_to_the_next(
    nodes: Nodes, owner: Owner
) -> None:
    actor_id = owner.create(Plain)
    info = owner.until(actor_id, "ALIVE")
    assert nodes.cluster.head is not None
    nodes.cluster.head.kill()
    os.kill(info.pid, signal.SIGKILL)
    wait_gone(info.pid)
    assert Owner(nodes, owner.driver).until(actor_id, "DEAD").death_cause


class HasAChild:
    def __init__(self) -> None:
        import subprocess

        self.child = subprocess.Popen(["sleep", "1000"])


def _children(pid: int) -> list[int]:
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as file:
            found += [int(child) for child in file.read().split()]
    return found


def test_what_a_worker_has_started_ends_with_it(owner: Owner) -> None:
    info = owner.until(owner.create(HasAChild), "ALIVE")
    (child,) = _children(info.pid)
    os.kill(info.pid, signal.SIGKILL)
    wait_gone(child)


def test_what_workers_have_started_ends_with_a_killed_agent(nodes: Nodes, owner: Owner) -> None:
    info = owner.until(owner.create(HasAChild), "ALIVE")
    (child,) = _children(info.pid)
    zygotes = owner.driver.ask("node")["zygotes"]
    nodes.cluster.agents[0].kill()
    for pid in (info.pid, child, *zygotes):
        wait_gone(pid)


class LeaksASession:
    def __init__(self) -> None:
        import subprocess

        self.child = subprocess.Popen(["sleep", "1000"], start_new_session=True)


def test_an_orphan_in_a_session_of_its_own_ends_with_the_node(nodes: Nodes, owner: Owner) -> None:
    info = owner.until(owner.create(LeaksASession), "ALIVE")
    (child,) = _children(info.pid)
    os.kill(info.pid, signal.SIGKILL)
    wait_gone(info.pid)
    os.kill(child, 0)
    nodes.cluster.stop_agent(nodes.cluster.agents[0])
    wait_gone(child)
