"""The pool over real actors."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import retinue
from retinue.util.multiprocessing import Pool, PoolTerminatedError

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("cluster")]


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool
    pool.join()


def double(x: int) -> int:
    return x * 2


def odd_fails(x: int) -> int:
    if x % 2:
        raise KeyError(x)
    return x


def add(a: int, b: int = 0) -> int:
    return a + b


def pid_of(_: Any) -> int:
    return os.getpid()


def block(gate: Any) -> None:
    retinue.get(gate.wait.remote())


class Gate:
    """Lets those who wait go on when it is opened, and knows how many wait."""

    def __init__(self) -> None:
        import asyncio

        self._open = asyncio.Event()
        self._num_waiting = 0
        self._changed = asyncio.Condition()

    async def wait(self) -> None:
        async with self._changed:
            self._num_waiting += 1
            self._changed.notify_all()
        await self._open.wait()

    async def opened_by(self, num_waiting: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._num_waiting >= num_waiting)
        self._open.set()

    async def waited_for_by(self, num_waiting: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._num_waiting >= num_waiting)


def test_map_and_its_relatives(pool: Pool) -> None:
    assert pool.map(double, range(50)) == [2 * i for i in range(50)]
    assert pool.map(double, range(5), chunksize=2) == [0, 2, 4, 6, 8]
    assert pool.map(double, []) == []
    assert pool.starmap(add, [(1, 2), (3, 4)]) == [3, 7]
    assert pool.map_async(double, iter(range(3))).get(timeout=60) == [0, 2, 4]
    assert pool.starmap_async(add, [(1, 2)]).get(timeout=60) == [3]
    with pytest.raises(ValueError, match="chunksize"):
        pool.map(double, [1], chunksize=0)


def test_apply(pool: Pool) -> None:
    assert pool.apply(add, (1,), {"b": 2}) == 3
    assert pool.apply(add, [1]) == 1
    result = pool.apply_async(add, (1, 2))
    result.wait(60)
    assert (result.ready(), result.successful(), result.get()) == (True, True, 3)


def test_imap(pool: Pool) -> None:
    assert list(pool.imap(double, range(20), chunksize=3)) == [2 * i for i in range(20)]
    assert list(pool.imap(double, range(20), chunksize=None)) == [2 * i for i in range(20)]
    assert list(pool.imap(double, (i for i in range(5)))) == [0, 2, 4, 6, 8]
    assert sorted(pool.imap_unordered(double, range(20), chunksize=3)) == [2 * i for i in range(20)]


def test_errors_are_the_users_own(pool: Pool) -> None:
    heard: list[Any] = []
    done = threading.Event()
    with pytest.raises(KeyError, match="1") as caught:
        pool.map(odd_fails, range(6))
    assert type(caught.value) is KeyError
    assert "odd_fails" in str(caught.value.__cause__)

    def error_callback(error: Exception) -> None:
        heard.append(error)
        done.set()

    result = pool.apply_async(odd_fails, (3,), callback=pytest.fail, error_callback=error_callback)
    with pytest.raises(KeyError):
        result.get(timeout=60)
    assert done.wait(60)
    assert repr(heard) == "[KeyError(3)]"
    assert not result.successful()

    results = pool.imap(odd_fails, range(4))
    assert next(results) == 0
    with pytest.raises(KeyError):
        next(results)
    assert next(results) == 2


def test_callbacks_may_submit(pool: Pool) -> None:
    results: list[Any] = []
    done = threading.Event()

    def callback(value: int) -> None:
        results.append(value)
        if len(results) < 5:
            pool.apply_async(add, (value, 1), callback=callback)
        else:
            done.set()

    pool.apply_async(add, (0, 1), callback=callback)
    assert done.wait(60)
    assert results == [1, 2, 3, 4, 5]


def test_chunks_run_side_by_side_and_time_out(pool: Pool) -> None:
    gate = retinue.remote(Gate).options(num_cpus=0).remote()
    result = pool.map_async(block, [gate, gate], chunksize=1)
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(timeout=0.01)
    retinue.get(gate.opened_by.remote(2), timeout=60)
    assert result.get(timeout=60) == [None, None]


def test_the_initializer_runs_in_each_process() -> None:
    def initialize(value: str) -> None:
        os.environ["RETINUE_TEST_POOL"] = value

    with Pool(2, initialize, ("set",)) as pool:
        assert set(pool.map(lambda _: os.environ["RETINUE_TEST_POOL"], range(8))) == {"set"}


def test_a_failing_initializer_is_an_error_of_the_constructor() -> None:
    def initialize() -> None:
        raise RuntimeError("no disk")

    with pytest.raises(retinue.exceptions.RetinueActorError, match="no disk"):
        Pool(1, initialize)


def test_processes_are_replaced_after_their_share() -> None:
    with Pool(1, maxtasksperchild=2) as pool:
        pids = pool.map(pid_of, range(6), chunksize=1)
    assert pids[0] == pids[1]
    assert len(set(pids)) == 3


def test_a_process_that_dies_is_replaced(pool: Pool) -> None:
    with pytest.raises(retinue.exceptions.RetinueActorError):
        pool.apply(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert pool.map(double, range(10)) == [2 * i for i in range(10)]


def test_close_finishes_what_was_submitted() -> None:
    pool = Pool(2)
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    results = [pool.apply_async(double, (i,)) for i in range(10)]
    pool.close()
    pool.close()
    for submit in (pool.apply, pool.map, pool.imap, pool.starmap, pool.imap_unordered):
        with pytest.raises(ValueError, match="not running"):
            submit(double, [1])
    pool.join()
    pool.join()
    assert [result.get(timeout=0) for result in results] == [2 * i for i in range(10)]


def test_terminate_does_not_wait() -> None:
    gate = retinue.remote(Gate).options(num_cpus=0).remote()
    pool = Pool(1)
    heard: list[Any] = []
    results = [pool.apply_async(block, (gate,), error_callback=heard.append) for _ in range(3)]
    retinue.get(gate.waited_for_by.remote(1), timeout=60)
    pool.terminate()
    pool.join()
    for result in results:
        with pytest.raises(PoolTerminatedError):
            result.get(timeout=60)
    assert len(heard) == 3


def test_the_with_block_terminates() -> None:
    with Pool(1) as pool:
        assert pool.apply(double, (2,)) == 4
    with pytest.raises(ValueError, match="not running"):
        pool.apply(double, (2,))
    pool.join()
    with pytest.raises(ValueError, match="not running"), pool:
        pass


def test_a_forgotten_pool_warns_and_ends() -> None:
    pool = Pool(1)
    thread = pool._crew._thread
    with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031
        del pool
        gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_a_result_keeps_its_pool() -> None:
    with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031
        result = Pool(1).apply_async(add, (1, 2))
        thread = result.pool._crew._thread
        assert result.get(timeout=60) == 3
        del result
        gc.collect()
        thread.join(60)


def test_the_number_of_processes_is_checked() -> None:
    with pytest.raises(ValueError, match="at least one process"):
        Pool(0)
    with pytest.raises(ValueError, match="has 2 CPUs"):
        Pool(3)
    with Pool() as pool:
        assert len(set(pool.map(pid_of, range(40), chunksize=1))) == 2


def test_actor_options_and_context(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retinue.util.debug._seen", set())
    with Pool(1, context=multiprocessing, ray_remote_args={"num_cpus": 1}) as pool:
        assert pool.apply(_assigned_cpus) == 1
    assert "ignores context" in caplog.text


def _assigned_cpus() -> float:
    return float(retinue.get_runtime_context().get_assigned_resources()["CPU"])


def test_a_pool_cannot_be_sent_away(pool: Pool) -> None:
    import pickle

    with pytest.raises(NotImplementedError):
        pickle.dumps(pool)


def test_small_calls_are_quick(pool: Pool) -> None:
    start = time.perf_counter()
    for result in [pool.apply_async(double, (i,)) for i in range(200)]:
        result.get(timeout=60)
    assert time.perf_counter() - start < 20
