"""Watches of keys and nodes, and listeners, through deaths of the head and of drivers."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from retinue.cluster_utils import Cluster
from retinue.core import doors
from retinue.core import session as sessions
from retinue.core.current import get_runtime
from retinue.core.wire.messages import DrainNode
from tests.chaos.support import DriverProcess, wait_until

TIMEOUT_S = 30.0


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    path = str(tmp_path / "r")
    monkeypatch.setenv(sessions.TEMP_DIR_VARIABLE, path)
    monkeypatch.delenv("RETINUE_ADDRESS", raising=False)
    cluster = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 1})
    yield cluster
    cluster.shutdown()
    assert os.listdir(path) == []


def kill_head(cluster: Cluster) -> None:
    head = cluster._started().head
    assert head is not None
    pidfd = os.pidfd_open(head.pid)
    cluster.kill_head()
    assert select.select([pidfd], [], [], TIMEOUT_S)[0]
    os.close(pidfd)


def until(watch: doors.Watch[doors.KvEvent], key: bytes, value: bytes | None) -> None:
    while watch.next(TIMEOUT_S) != doors.KvEvent(key, value):
        pass


def test_a_watch_goes_on_with_the_next_head(cluster: Cluster) -> None:
    kv = doors.KeyValue("test")
    kv.put(b"kept", b"1")
    kv.put(b"changed", b"1")
    with kv.watch() as watch:
        until(watch, b"changed", b"1")
        for round_ in range(3):
            kill_head(cluster)
            # Puts that were answered are durable; this one waits for the new head.
            kv.put(b"changed", b"%d" % (round_ + 2))
            until(watch, b"changed", b"%d" % (round_ + 2))
        assert kv.get(b"kept") == b"1"
        kv.delete(b"kept")
        until(watch, b"kept", None)


def test_a_head_that_comes_back_makes_no_node_leave(cluster: Cluster) -> None:
    with doors.watch_nodes() as watch:
        first = watch.next(TIMEOUT_S)
        assert (first.kind, first.node.is_head) == ("joined", True)
        node = cluster.add_node(num_cpus=1)
        assert (watch.next(TIMEOUT_S).kind) == "joined"
        kill_head(cluster)
        wait_until(lambda: drain(node.node_id), "the new head knows the node")
        event = watch.next(TIMEOUT_S)
        assert (event.kind, event.node.node_id) == ("draining", node.node_id)
        cluster.remove_node(node, allow_graceful=False)
        event = watch.next(TIMEOUT_S)
        assert (event.kind, event.node.node_id) == ("left", node.node_id)
        with pytest.raises(TimeoutError):
            watch.next(0)


def test_a_listener_ends_with_its_job_unless_it_is_detached(cluster: Cluster, tmp_path: Path) -> None:
    script = f"""
        retinue.init(address={cluster.address!r})
        from retinue.core import doors
        for name in ("mine", "everyones"):
            sock = doors.open_listener(name, is_detached=name == "everyones")
            print(name, sock.getsockname()[1], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with DriverProcess(tmp_path, os.environ[sessions.TEMP_DIR_VARIABLE], script) as driver:
        ports = {name: int(driver.line(name)) for name in ("mine", "everyones")}
        driver.wait()
    wait_until(lambda: is_refused(ports["mine"]), "the listener ends with its job")
    assert not is_refused(ports["everyones"])
    with doors.open_listener("everyones") as listener:
        assert listener.getsockname()[1] == ports["everyones"]
    assert doors.release_listener("everyones")
    assert is_refused(ports["everyones"])


def test_watches_end_when_the_process_leaves_its_cluster(cluster: Cluster, tmp_path: Path) -> None:
    script = f"""
        import threading
        from retinue.core import doors

        kv = doors.KeyValue("end")
        retinue.init(address={cluster.address!r})
        watches = [kv.watch(), doors.watch_nodes()]
        readers = [threading.Thread(target=list, args=(watch,)) for watch in watches]
        for reader in readers:
            reader.start()
        kv.put(b"k", b"v")
        retinue.shutdown()
        for reader in readers:
            reader.join(20)
        print("alive", [reader.is_alive() for reader in readers])
        del watches
        retinue.init(address={cluster.address!r})
        with kv.watch() as watch:
            print("event", watch.next(20).value)
        retinue.shutdown()
        print("ended")
    """
    with DriverProcess(tmp_path, os.environ[sessions.TEMP_DIR_VARIABLE], script) as driver:
        assert driver.line("alive") == "[False, False]"
        assert driver.line("event") == "b'v'"
        driver.line("ended")
        assert driver.wait() == 0
        assert "Exception" not in driver.stderr()


def drain(node_id: str) -> bool:
    try:
        get_runtime().head.call(DrainNode(0, bytes.fromhex(node_id)))
    except ValueError:  # no such node yet
        return False
    return True


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S).close()
    except ConnectionError:  # refused, or closed while it waited to be accepted
        return True
    return False
