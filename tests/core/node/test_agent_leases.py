"""An agent with real workers: leases, ends, and what is left after each kind of death."""

from __future__ import annotations

import os
import signal

import pytest

from retinue.core.wire.messages import (
    LeaseGrant,
    LeaseLost,
    LeaseRecall,
    LeaseRedirect,
    LeaseRefused,
    LeaseReturn,
    ListNodes,
    Shape,
    WorkerEnv,
)
from tests.core.node.conftest import DriverClient, Nodes, wait_gone, wait_until


def test_a_driver_leases_a_worker_and_gets_the_same_one_again(driver: DriverClient) -> None:
    first = driver.lease()
    assert os.path.exists(first.worker.path)
    driver.client.send(LeaseReturn(first.lease_id))
    assert driver.lease().worker == first.worker


def test_demand_waits_for_room(driver: DriverClient) -> None:
    driver.demand(3)
    first, _ = driver.expect(LeaseGrant), driver.expect(LeaseGrant)
    assert driver.ask("node")["waiting"] == [{"resources": {"CPU": 1.0}, "count": 1}]
    driver.client.send(LeaseReturn(first.lease_id))
    assert driver.expect(LeaseGrant).worker == first.worker


def test_a_killed_worker_is_reported_with_its_signal_and_its_socket_removed(driver: DriverClient) -> None:
    grant = driver.lease()
    pid = driver.pid_of(grant.worker)
    os.kill(pid, signal.SIGKILL)
    lost = driver.expect(LeaseLost)
    assert lost.lease_id == grant.lease_id
    assert (lost.death.pid, lost.death.signal, lost.death.intended) == (pid, signal.SIGKILL, False)
    assert not os.path.exists(grant.worker.path)
    assert driver.ask("node")["available"]["CPU"] == 2.0


def test_a_killed_zygote_costs_nothing_but_a_new_one(driver: DriverClient) -> None:
    first = driver.lease()
    (zygote,) = driver.ask("node")["zygotes"]
    os.kill(zygote, signal.SIGKILL)
    second = driver.lease(driver.shape(env_vars={"A": "1"}), shape_id=2)
    assert {driver.pid_of(first.worker), driver.pid_of(second.worker)}
    assert driver.ask("node")["zygotes"] != [zygote]


def test_the_workers_of_a_driver_that_leaves_end(nodes: Nodes) -> None:
    nodes.add()
    leaving, staying = nodes.driver(), nodes.driver()
    pid = leaving.pid_of(leaving.lease().worker)
    leaving.close()
    wait_gone(pid)
    wait_until(lambda: staying.ask("node")["available"]["CPU"] == 2.0)


def test_a_second_driver_gets_its_share(nodes: Nodes) -> None:
    nodes.add()
    rich, poor = nodes.driver(), nodes.driver(job_id=b"job2")
    rich.demand(1000)
    rich.expect(LeaseGrant)
    rich.expect(LeaseGrant)
    poor.demand(1000)
    recalled = rich.expect(LeaseRecall)
    rich.client.send(LeaseReturn(recalled.lease_id))
    assert poor.expect(LeaseGrant).worker.node_id == poor.node_id


def test_workers_are_not_shared_between_jobs(nodes: Nodes) -> None:
    nodes.add()
    one, two = nodes.driver(), nodes.driver(job_id=b"job2")
    first = one.lease()
    one.client.send(LeaseReturn(first.lease_id))
    assert two.lease().worker != first.worker


@pytest.mark.parametrize("variable", ["PYTHONHASHSEED", "PLAIN_VARIABLE"])
def test_env_vars_reach_the_worker_by_exec_or_fork(driver: DriverClient, variable: str) -> None:
    grant = driver.lease(driver.shape(env_vars={variable: "17"}))
    pid = driver.pid_of(grant.worker)
    is_execed = variable == "PYTHONHASHSEED"
    with open(f"/proc/{pid}/environ") as file:
        assert (f"{variable}=17" in file.read()) == is_execed
    with open(f"/proc/{pid}/stat") as file:
        parent = int(file.read().rpartition(")")[2].split()[1])
    assert parent == driver.ask("node")["pid"]


def test_a_worker_leads_its_session_and_holds_no_foreign_sockets(driver: DriverClient) -> None:
    pid = driver.pid_of(driver.lease().worker)
    assert os.getsid(pid) == pid
    agent = driver.ask("node")["pid"]
    inodes = [os.readlink(f"/proc/{agent}/fd/{fd}") for fd in os.listdir(f"/proc/{agent}/fd")]
    sockets = {name for name in inodes if name.startswith("socket:")}
    held = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    assert not sockets & held


def test_a_working_dir_that_is_not_there_refuses_the_demand(driver: DriverClient) -> None:
    driver.demand(1, driver.shape(working_dir="/no/such/folder"))
    refused = driver.expect(LeaseRefused)
    assert refused.kind == "RuntimeEnvSetupError"
    assert "/no/such/folder" in refused.message


def test_a_negative_amount_is_refused_at_once(driver: DriverClient) -> None:
    driver.demand(1, Shape({"CPU": -1.0}, WorkerEnv(driver.job_id)))
    assert driver.expect(LeaseRefused).kind == "TaskUnschedulableError"


def test_packages_are_preloaded_and_one_that_is_not_there_does_no_harm(driver: DriverClient) -> None:
    grant = driver.lease(driver.shape(preload=["colorsys", "no_such_package_at_all"]))
    assert driver.pid_of(grant.worker)
    assert len(driver.ask("node")["zygotes"]) == 2


def test_killing_the_agent_leaves_no_process(nodes: Nodes) -> None:
    agent = nodes.add()
    driver = nodes.driver()
    workers = [driver.pid_of(driver.lease().worker), driver.pid_of(driver.lease(shape_id=2).worker)]
    zygotes = driver.ask("node")["zygotes"]
    agent.kill()
    for pid in [*workers, *zygotes]:
        wait_gone(pid)


def test_stopping_the_agent_removes_its_folder(nodes: Nodes) -> None:
    agent = nodes.add()
    driver = nodes.driver()
    pid = driver.pid_of(driver.lease().worker)
    folder = agent.config.node_dir
    assert os.path.isdir(folder)
    nodes.cluster.stop_agent(agent)
    assert not os.path.exists(folder)
    wait_gone(pid)


def test_demand_spills_over_to_another_node_and_its_agents_death_is_seen(nodes: Nodes) -> None:
    nodes.add(cpus=1)
    nodes.add(cpus=1)
    driver = nodes.driver()
    wait_until(lambda: _alive_nodes(nodes) == 2)
    driver.demand(2)
    kinds = {type(driver.client.receive()[0]) for _ in range(2)}
    assert kinds == {LeaseGrant, LeaseRedirect}


def _alive_nodes(nodes: Nodes) -> int:
    with nodes.head_client() as head:
        found, _ = head.request(ListNodes(0))
    return sum(node.alive for node in found.nodes)


def test_a_package_that_starts_a_thread_is_left_out(
    nodes: Nodes, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("packages")
    (folder / "starts_a_thread.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    agent = nodes.add()
    driver = nodes.driver()
    grant = driver.lease(driver.shape(preload=["starts_a_thread", "colorsys"]))
    assert driver.pid_of(grant.worker)
    with open(agent.config.log_path) as log:
        assert "starts_a_thread cannot be preloaded: importing it started 1 thread(s)" in log.read()
