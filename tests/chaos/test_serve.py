"""Serve under constant load while parts of it change, and die."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from retinue import serve
from retinue.serve.api import RunTarget
from retinue.serve.exceptions import RetinueServeException
from retinue.serve.messages import CONTROLLER_NAME
from tests.chaos.load import Load
from tests.chaos.serve_apps import SEAT, Slow, Worker
from tests.chaos.support import DriverProcess, Pids, children_of, kill_and_wait, leaves_nothing, wait_until
from tests.e2e import serving
from tests.e2e.serving import deployment, pid_of_actor, pids, proxy_pids, until

APP = "app"


class Place:
    def __init__(self, client: httpx.Client) -> None:
        self.port = client.base_url.port or 0

    def head_pid(self) -> int:
        """0: it is about to be started again. We are the driver that does that."""
        for pid in children_of(os.getpid()):
            if b"retinue.core.head.main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = str(tmp_path_factory.mktemp("r"))
    with serving.running(folder, num_cpus=4, resources={"seat": 1}) as client:
        yield Place(client)


@pytest.fixture(autouse=True)
def _clean(place: Place) -> Iterator[None]:
    yield
    for name in serve.status().applications:
        serve.delete(name)


def run(*args: Any, app: str = APP, prefix: str | None = "/", kind: Any = Worker, **options: Any) -> None:
    chosen = kind.options(**{"health_check_period_s": 0.2, **options})
    serve.run(chosen.bind(*args), name=app, route_prefix=prefix)


def status(app: str = APP) -> Any:
    return serve.status().applications[app]


def replica_count(app: str = APP, name: str = "Worker") -> int:
    return len(pids(name, app))


# --- changes


def test_a_rolling_update_and_scaling_fail_no_request(place: Place) -> None:
    run("1", num_replicas=2)
    with Load(place.port) as load:
        before = load.versions()
        assert set(before) == {"1"}
        run("2", num_replicas=2)
        load.more(50)
        assert load.outcomes[-1].answer["version"] == "2"
        old = pids("Worker", APP)
        run("2", num_replicas=4)
        until(lambda: replica_count() == 4)
        load.more(200)
        run("2", num_replicas=1)
        until(lambda: len(deployment("Worker", APP).replicas) == 1)
        load.more(50)
        run("3", num_replicas=3, max_surge_percent=0)
        load.more(50)
    load.check()
    assert set(load.versions()) == {"1", "2", "3"}
    assert len(old) == 2


def test_settings_and_numbers_restart_nothing_and_others_are_left_alone(place: Place) -> None:
    run("1", num_replicas=2, user_config={"a": 1})
    run("other", app="other", prefix="/other")
    mine, others = pids("Worker", APP), pids("Worker", "other")
    with Load(place.port) as load:
        run("1", num_replicas=3, user_config={"a": 2}, max_ongoing_requests=7)
        until(lambda: replica_count() == 3)
        assert mine.items() <= pids("Worker", APP).items()
        load.more(100)
        assert load.outcomes[-1].answer["config"] == {"a": 2}
        run("2", num_replicas=2)
        assert pids("Worker", "other") == others
    load.check()


def test_where_there_is_no_room_for_a_second_requests_wait(place: Place) -> None:
    run("1", ray_actor_options=SEAT)
    with Load(place.port) as load:
        run("2", ray_actor_options=SEAT)
        load.more(50)
    load.check()
    assert set(load.versions()) == {"1", "2"}
    assert load.longest_gap() < 2


def test_an_update_that_fails_keeps_the_old_version_serving(place: Place) -> None:
    run("1", num_replicas=2)
    before = pids("Worker", APP)
    with Load(place.port) as load:
        with pytest.raises(RetinueServeException, match="no weights for version 2"):
            run("2", True, num_replicas=2, max_constructor_retry_count=2)
        load.more(50)
        assert pids("Worker", APP) == before
        assert status().status == "DEPLOY_FAILED"
        assert "no weights for version 2" in status().message
        assert status().deployments["Worker"].status == "DEPLOY_FAILED"
        run("3", num_replicas=2)
        assert status().status == "RUNNING"
    load.check()
    assert set(load.versions()) == {"1", "3"}


def test_constructors_that_fail_are_tried_less_and_less_often(place: Place) -> None:
    with pytest.raises(RetinueServeException, match="after 3 attempts"):
        run("1", True, max_constructor_retry_count=3)
    dead = deployment("Worker", APP).recent_dead_replicas
    starts = sorted(d.start_time_s for d in dead)
    assert len(starts) == 3
    first, second = starts[1] - starts[0], starts[2] - starts[1]
    assert 0.2 < first < second


def test_who_cannot_be_placed_is_told_at_once(place: Place) -> None:
    run("1", ray_actor_options=SEAT)
    holder = next(iter(pids("Worker", APP)))
    began = time.monotonic()
    target = RunTarget(Worker.options(ray_actor_options=SEAT).bind("2"), "second", None)
    serve.run_many([target], wait_for_applications_running=False)
    message = until(lambda: status("second").deployments["Worker"].message)
    assert time.monotonic() - began < 1.0
    assert "it needs 0.1 CPU, 1 seat; free: " in message
    assert holder in message


# --- deaths


def test_kill_9_of_the_controller_fails_no_request(place: Place) -> None:
    run("1", num_replicas=2)
    before = pids("Worker", APP)
    with Load(place.port) as load:
        for _ in range(2):
            pid = pid_of_actor(CONTROLLER_NAME)
            kill_and_wait(pid)
            load.more(200)
            wait_until(lambda pid=pid: pid_of_actor(CONTROLLER_NAME) not in (0, pid))  # type: ignore[misc]
            until(lambda: status().status == "RUNNING" and pids("Worker", APP) == before)
        run("2", num_replicas=2)
        load.more(50)
        assert load.outcomes[-1].answer["version"] == "2"
    load.check()


def test_kill_9_of_the_head_fails_no_request(place: Place) -> None:
    run("1", num_replicas=2)
    before = pids("Worker", APP)
    with Load(place.port) as load:
        for _ in range(2):
            pid = place.head_pid()
            kill_and_wait(pid)
            load.more(200)
            wait_until(lambda pid=pid: place.head_pid() not in (0, pid))  # type: ignore[misc]
            until(lambda: status().status == "RUNNING")
        assert pids("Worker", APP) == before
        run("2", num_replicas=2)
        load.more(50)
    load.check()


def test_kill_9_of_a_replica_fails_only_what_it_was_executing(place: Place) -> None:
    run("1", num_replicas=2, health_check_period_s=60)
    with Load(place.port, method="POST", connections=8) as posts, Load(place.port, connections=8) as gets:
        posts.more(300)
        before = (posts.outcomes[-200].ended, posts.outcomes[-1].ended)
        rate = posts.rate(*before)
        victim = next(iter(pids("Worker", APP).values()))
        killed = time.monotonic()
        kill_and_wait(victim)
        until(lambda: victim not in pids("Worker", APP).values() and replica_count() == 2)
        assert time.monotonic() - killed < 2.0
        recovered = time.monotonic()
        posts.more(300)
        after = posts.rate(recovered, posts.outcomes[-1].ended)
        assert after > 0.6 * rate
    gets.check()
    assert all(o.status == 502 for o in posts.failed), posts.explain()
    assert len(posts.failed) <= 8
    assert all(o.began <= killed + 0.5 for o in posts.failed)


def test_kill_9_of_a_proxy_refuses_no_connection(place: Place) -> None:
    run("1", num_replicas=2)
    (proxy,) = proxy_pids()
    with Load(place.port, connections=4) as load:
        killed = time.monotonic()
        kill_and_wait(proxy)
        # One who comes while no proxy is there waits for its successor.
        with socket.create_connection(("127.0.0.1", place.port), timeout=serving.TIMEOUT_S) as late:
            late.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert late.recv(4096).startswith(b"HTTP/1.1 200 ")
        assert time.monotonic() - killed < 5
        load.more(100)
    assert not load.refused
    assert len(load.failed) <= 4, load.explain()
    assert all(o.began <= killed + 0.1 for o in load.failed)
    until(lambda: [p for p in proxy_pids() if p != proxy])


def test_a_replica_whose_health_checks_fail_is_replaced(place: Place, tmp_path: Path) -> None:
    run("1", False, str(tmp_path), num_replicas=2)
    before = pids("Worker", APP)
    victim, pid = next(iter(before.items()))
    with Load(place.port) as load:
        (tmp_path / f"ill-{pid}").touch()
        until(lambda: victim not in pids("Worker", APP) and replica_count() == 2)
        load.more(50)
    load.check()
    (dead,) = deployment("Worker", APP).recent_dead_replicas
    assert dead.replica_id == victim
    assert "the model is ill" in dead.message


def test_what_is_accepted_is_finished(place: Place, tmp_path: Path) -> None:
    run(str(tmp_path), kind=Slow)
    (pid,) = pids("Slow", APP).values()
    with Load(place.port, connections=5, reconnects=False, is_slow=True) as load:
        wait_until(lambda: len(list(tmp_path.glob(f"began-{pid}-*"))) == 5)
        serve.delete(APP, _blocking=False)
        load.stop()
        until(lambda: APP not in serve.status().applications or status().status == "DELETING")
        assert not load.outcomes
        (tmp_path / "open").touch()
    assert [o.answer["pid"] for o in load.outcomes] == [pid] * 5
    until(lambda: APP not in serve.status().applications)
    assert httpx.get(f"http://127.0.0.1:{place.port}/").status_code == 404


# --- autoscaling


def test_autoscaling_follows_the_load_and_holds_requests_at_zero(place: Place) -> None:
    scaling = {
        "min_replicas": 0,
        "initial_replicas": 0,
        "max_replicas": 3,
        "target_ongoing_requests": 2,
        "upscale_delay_s": 0,
        "downscale_delay_s": 0,
        "look_back_period_s": 0.2,
        "metrics_interval_s": 0.1,
    }
    run("1", autoscaling_config=scaling, max_ongoing_requests=2)
    assert replica_count() == 0
    began = time.monotonic()
    answer = httpx.get(f"http://127.0.0.1:{place.port}/", timeout=30)
    assert answer.status_code == 200
    assert time.monotonic() - began < 1.5
    with Load(place.port, connections=8) as load:
        until(lambda: replica_count() == 3)
        load.more(50)
    load.check()
    until(lambda: not deployment("Worker", APP).replicas)
    detail = deployment("Worker", APP).autoscaling_detail
    assert detail is not None
    assert "wanted per replica" in detail.decisions[-1].reason
    with Load(place.port, connections=8) as load:
        load.more(20)
    load.check()


def test_the_first_extra_replica_is_there_within_a_second(place: Place) -> None:
    scaling = {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": 1,
        "upscale_delay_s": 0,
        "downscale_delay_s": 600,
    }
    run("1", False, "", 0.05, autoscaling_config=scaling, max_ongoing_requests=2)
    began = time.monotonic()
    with Load(place.port, connections=4) as load:
        until(lambda: deployment("Worker", APP).target_num_replicas == 2)
        reacted = time.monotonic() - began
        until(lambda: replica_count() == 2)
    load.check()
    assert reacted < 1.0, reacted


# --- the end


def test_after_shutdown_and_the_drivers_end_nothing_is_left(tmp_path: Path) -> None:
    base = str(tmp_path / "s")
    script = """
    from retinue import serve
    from tests.chaos.serve_apps import Worker
    from tests.e2e import serving

    retinue.init(address="local", num_cpus=2)
    serve.start(http_options={"port": 0})
    serve.run(Worker.options(num_replicas=2).bind())
    print("port", serving.address()[1])
    serve.shutdown()
    print("status", serve.status())
    """
    with leaves_nothing(base), DriverProcess(tmp_path, base, script) as driver:
        port = int(driver.line("port "))
        assert driver.line("status ") == "ServeStatus(proxies={}, applications={}, target_capacity=None)"
        assert driver.wait() == 0, driver.stderr()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_driver_that_is_killed_leaves_nothing_either(tmp_path: Path) -> None:
    base = str(tmp_path / "s")
    script = """
    from retinue import serve
    from tests.chaos.serve_apps import Worker
    from tests.e2e import serving

    retinue.init(address="local", num_cpus=2)
    serve.start(http_options={"port": 0})
    serve.run(Worker.bind())
    print("port", serving.address()[1])
    signal.pause()
    """
    with leaves_nothing(base), DriverProcess(tmp_path, base, script) as driver:
        port = int(driver.line("port "))
        with Load(port, connections=2) as load:
            load.more(10)
            processes = Pids([driver.pid])
            os.kill(driver.pid, signal.SIGKILL)
            processes.wait()
            load.stop()
