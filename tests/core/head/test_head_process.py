"""The real head: started, killed, supervised. Nothing that it has acknowledged is ever lost."""

import os
import random
import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from retinue.core import session as sessions
from retinue.core.errors import AuthenticationError
from retinue.core.launch import HeadProcess, HeadSupervisor, Listeners, head_config
from retinue.core.session import Session
from retinue.core.transport.blocking import BlockingClient
from retinue.core.wire import messages as m

JOB = b"\x01\0\0\0"


class RunningHead:
    def __init__(self, session: Session) -> None:
        self.session = session
        listeners = Listeners.open(
            session.path("head.sock"), worker_id=b"h" * 16, node_id=b"n" * 16, tcp_host="127.0.0.1"
        )
        self.process = HeadProcess(head_config(session, listeners), listeners)
        self.process.start(time.monotonic())
        self.supervisor = HeadSupervisor(self.process)
        self.supervisor.start()

    def client(self) -> BlockingClient:
        return BlockingClient(self.process.address, self.session.token)

    def summary(self) -> dict[str, Any]:
        with self.client() as client:
            found: dict[str, Any] = msgspec.msgpack.decode(client.request(m.Query(0, "summary"))[1])
            return found

    def stop(self) -> int | None:
        self.supervisor.stop()
        self.process.stop()
        code = self.process.wait(10)
        self.process.close()
        return code


@pytest.fixture
def head(tmp_path: Path) -> Iterator[RunningHead]:
    session = sessions.new_session(str(tmp_path / "r"))
    head = RunningHead(session)
    yield head
    assert head.stop() == 0
    session.close()
    assert os.listdir(tmp_path / "r") == []


class StubbornClient:
    """Asks again, on a new connection, until somebody answers: what every client of the head does."""

    def __init__(self, head: RunningHead) -> None:
        self._head = head
        self._client = head.client()

    def ask(self, message: Any, payload: bytes = b"") -> tuple[Any, bytes]:
        while True:
            try:
                return self._client.request(message, payload)
            except ConnectionError:
                self._client.close()
                self._client = self._head.client()

    def close(self) -> None:
        self._client.close()


def named_actor(number: int) -> m.ActorSpec:
    return m.ActorSpec(
        number.to_bytes(12, "big") + JOB,
        JOB,
        m.Address(b"owner".ljust(16), b"n" * 16, "/owner"),
        "C",
        b"key",
        m.Shape({}, m.WorkerEnv(JOB)),
        {},
        name=f"actor-{number}",
        detached=True,
    )


def test_nothing_acknowledged_is_lost_over_20_kills(head: RunningHead) -> None:
    rng = random.Random(7)
    head.process._backoff.max_s = 0.0  # kills in a row are what this is about
    values: list[int] = []
    actors: list[int] = []
    is_over = threading.Event()
    progressed = threading.Semaphore(0)

    def put_values() -> None:
        client = StubbornClient(head)
        while not is_over.is_set():
            number = len(values)
            client.ask(m.KvPut(0, "ns", b"%d" % number), b"value-%d" % number)
            values.append(number)
            progressed.release()
        client.close()

    def create_actors() -> None:
        client = StubbornClient(head)
        while not is_over.is_set():
            number = len(actors)
            client.ask(m.CreateActor(0, named_actor(number), 3), b"def" + b"args-%d" % number)
            actors.append(number)
            progressed.release()
        client.close()

    threads = [threading.Thread(target=target) for target in (put_values, create_actors)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            for _ in range(rng.randrange(1, 200)):
                assert progressed.acquire(timeout=30)
            head.process.kill()
        # The last kill is over, too, once both have got on.
        for _ in range(50):
            assert progressed.acquire(timeout=30)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    client = StubbornClient(head)
    for number in values:
        assert client.ask(m.KvGet(0, "ns", b"%d" % number))[1] == b"value-%d" % number
    for number in actors:
        answer, _ = client.ask(m.FindActor(0, name=f"actor-{number}"))
        assert answer.info.spec == named_actor(number)
    client.close()
    # A kill may hit a head that had not yet begun to serve: that one has no epoch.
    assert 2 <= head.summary()["epoch"] <= 21
    assert min(len(values), len(actors)) > 20


def test_a_killed_head_is_back_within_a_second_on_the_same_address(head: RunningHead) -> None:
    before = head.summary()
    started = time.monotonic()
    head.process.kill()
    with head.client() as client:
        client.request(m.KvPut(0, "ns", b"k"), b"v")
    assert time.monotonic() - started < 1.0
    after = head.summary()
    assert after["pid"] != before["pid"]
    assert after["epoch"] == before["epoch"] + 1


def test_tcp_asks_for_the_token(head: RunningHead) -> None:
    address = head.process.address
    remote = m.Address(address.worker_id, address.node_id, "", address.host, address.port)
    with BlockingClient(remote, head.session.token) as client:
        client.request(m.Ping(0))
    with pytest.raises(AuthenticationError):
        BlockingClient(remote, b"another token")


@pytest.mark.parametrize("has_forked", [False, True])
def test_a_head_ends_with_its_parent_and_cleans_up(tmp_path: Path, has_forked: bool) -> None:
    """The parent here is a child of ours that starts a head and is killed.

    A process that it has forked lives on, and must not keep the head alive.
    """
    read_end, write_end = os.pipe()
    stay_r, stay_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            session = sessions.new_session(str(tmp_path / "r"))
            head = RunningHead(session)
            head.summary()
            if has_forked and os.fork() == 0:
                os.close(stay_w)
                os.close(write_end)
                os.read(stay_r, 1)
                os._exit(0)
            os.write(write_end, b"%d" % head.process.pid)
            threading.Event().wait()
        finally:
            os._exit(1)
    os.close(write_end)
    head_pid = int(os.read(read_end, 32))
    os.close(read_end)
    pidfd = os.pidfd_open(head_pid)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)
    assert os.listdir(tmp_path / "r") == []
    os.close(stay_r)
    os.close(stay_w)
