from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest

import retinue
from retinue.exceptions import GetTimeoutError, RetinueTaskError, TaskCancelledError


@retinue.remote
def add(a: int, b: int = 1) -> int:
    return a + b


@retinue.remote
def fail(message: str) -> None:
    raise KeyError(message)


@retinue.remote
def nested(depth: int) -> int:
    if depth == 0:
        return os.getpid()
    return retinue.get(nested.remote(depth - 1))


@retinue.remote
def echo(value: Any) -> Any:
    return value


@retinue.remote
class Barrier:
    def __init__(self, size: int) -> None:
        self.size = size
        self.count = 0
        self.full = asyncio.Event()

    async def wait(self) -> int:
        self.count += 1
        if self.count == self.size:
            self.full.set()
        await self.full.wait()
        return self.count


@retinue.remote
def meet(barrier: Any) -> int:
    return retinue.get(barrier.wait.remote())


def test_a_task_returns_its_value() -> None:
    assert retinue.get(add.remote(2, b=3)) == 5
    assert retinue.get([add.remote(i) for i in range(200)]) == list(range(1, 201))


def test_references_as_arguments_arrive_as_values_and_inside_values_as_references() -> None:
    first = add.remote(1)
    assert retinue.get(add.remote(first, first)) == 4
    inner = retinue.get(echo.remote([first]))[0]
    assert isinstance(inner, retinue.ObjectRef)
    assert inner == first
    assert retinue.get(inner) == 2


def test_several_none_and_no_returns() -> None:
    @retinue.remote(num_returns=3)
    def three() -> tuple[int, int, int]:
        return 1, 2, 3

    @retinue.remote(num_returns=0)
    def none() -> None:
        return None

    refs = three.remote()
    assert retinue.get(refs) == [1, 2, 3]
    assert none.remote() is None
    with pytest.raises(ValueError, match="num_returns=2"):
        retinue.get(three.options(num_returns=2).remote()[0])


def test_an_error_is_an_instance_of_the_users_type_with_the_remote_traceback() -> None:
    with pytest.raises(KeyError) as caught:
        retinue.get(fail.remote("lost"))
    assert isinstance(caught.value, RetinueTaskError)
    assert "in fail" in str(caught.value)
    with pytest.raises(KeyError):
        retinue.get(add.remote(fail.remote("passed on")))


def test_a_wrong_call_fails_where_it_is_made() -> None:
    with pytest.raises(TypeError, match="unexpected"):
        add.remote(1, c=2)
    with pytest.raises(TypeError, match=r"\.remote"):
        add(1)


def test_waiting_splits_into_ready_and_not_ready() -> None:
    @retinue.remote
    def sleep(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    quick, slow = sleep.remote(0), sleep.remote(20)
    ready, rest = retinue.wait([slow, quick], num_returns=1, timeout=10)
    assert ready == [quick]
    assert rest == [slow]
    with pytest.raises(GetTimeoutError):
        retinue.get(slow, timeout=0.05)
    retinue.cancel(slow)
    with pytest.raises(TaskCancelledError):
        retinue.get(slow, timeout=10)


def test_a_task_that_waits_lends_its_cpu_so_that_nesting_never_deadlocks() -> None:
    assert retinue.get(nested.remote(10), timeout=60)


def test_more_tasks_than_cpus_meet_at_a_barrier() -> None:
    barrier = Barrier.options(num_cpus=0).remote(8)
    assert len(retinue.get([meet.remote(barrier) for _ in range(8)], timeout=60)) == 8


def test_thousands_of_arguments_and_references() -> None:
    @retinue.remote
    def total(*values: int) -> int:
        return sum(values)

    @retinue.remote
    def total_of_references(refs: list[Any]) -> int:
        return sum(retinue.get(refs))

    refs = [retinue.put(i) for i in range(20_000)]
    assert retinue.get(total.remote(*refs), timeout=60) == sum(range(20_000))
    assert retinue.get(total_of_references.remote(refs), timeout=60) == sum(range(20_000))


def test_a_streaming_generator_gives_items_as_they_come() -> None:
    @retinue.remote
    def count(n: int) -> Any:
        yield from range(n)

    @retinue.remote
    def break_after(n: int) -> Any:
        yield from range(n)
        raise RuntimeError("broken")

    assert [retinue.get(ref) for ref in count.remote(100)] == list(range(100))
    generator = break_after.remote(2)
    assert retinue.get(next(generator)) == 0
    assert retinue.get(next(generator)) == 1
    with pytest.raises(RuntimeError, match="broken"):
        retinue.get(next(generator))
    with pytest.raises(StopIteration):
        next(generator)
    with pytest.raises(RuntimeError):
        retinue.get(generator.completed())


def test_a_generator_with_back_pressure_does_not_run_ahead() -> None:
    @retinue.remote
    class Log:
        def __init__(self) -> None:
            self.produced = 0

        def note(self) -> None:
            self.produced += 1

        def get(self) -> int:
            return self.produced

    @retinue.remote(_generator_backpressure_num_objects=2)
    def produce(log: Any) -> Any:
        for i in range(20):
            retinue.get(log.note.remote())
            yield i

    log = Log.options(num_cpus=0).remote()
    generator = produce.remote(log)
    assert retinue.get(next(generator)) == 0
    assert retinue.get(log.get.remote()) <= 4
    assert [retinue.get(r) for r in generator] == list(range(1, 20))


def test_references_can_be_awaited_and_turned_into_futures() -> None:
    async def main() -> list[int]:
        assert await add.remote(1) == 2
        ref = add.remote(5)
        assert await ref == 6
        assert await ref == 6
        with pytest.raises(KeyError):
            await fail.remote("x")
        return await asyncio.gather(*(_value(add.remote(i)) for i in range(50)))

    async def _value(ref: Any) -> int:
        return await ref

    assert asyncio.run(main()) == list(range(1, 51))
    assert add.remote(1).future().result(timeout=10) == 2


def test_retries_after_exceptions_are_counted(tmp_path: Any) -> None:
    @retinue.remote(max_retries=3, retry_exceptions=[ValueError])
    def flaky(path: str) -> int:
        with open(path, "a") as file:
            file.write("x")
        with open(path) as file:
            tries = len(file.read())
        if tries < 3:
            raise ValueError(tries)
        return tries

    assert retinue.get(flaky.remote(str(tmp_path / "tries"))) == 3


def test_an_exception_that_uses_the_runtime_as_it_is_unpickled_is_retried_after(tmp_path: Any) -> None:
    def revive(text: str) -> Exception:
        return Reviving(retinue.get(retinue.put(text)))

    class Reviving(ValueError):
        def __reduce__(self) -> Any:
            return revive, (str(self),)

    def flaky(path: str) -> int:
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) < 3:
            raise Reviving("again")
        return os.path.getsize(path)

    class Flaky:
        @retinue.method(max_task_retries=3, retry_exceptions=[ValueError])
        def call(self, path: str) -> int:
            return flaky(path)

    task = retinue.remote(max_retries=3, retry_exceptions=[ValueError])(flaky)
    assert retinue.get(task.remote(str(tmp_path / "task"))) == 3
    actor = retinue.remote(Flaky).remote()
    assert retinue.get(actor.call.remote(str(tmp_path / "actor"))) == 3


def test_env_vars_and_the_runtime_context() -> None:
    @retinue.remote(runtime_env={"env_vars": {"FLAVOUR": "salty"}}, name="taster")
    def taste() -> tuple[str, Any, Any]:
        context = retinue.get_runtime_context()
        return os.environ["FLAVOUR"], context.get_task_name(), context.get_assigned_resources()

    assert retinue.get(taste.remote()) == ("salty", "taster", {"CPU": 1.0})


def test_max_calls_ends_the_worker_after_each_call() -> None:
    @retinue.remote(max_calls=1)
    def pid() -> int:
        return os.getpid()

    pids = retinue.get([pid.remote() for _ in range(5)])
    assert len(set(pids)) == 5


def test_cancelling_a_running_task_raises_keyboard_interrupt_in_it(tmp_path: Any) -> None:
    marker = str(tmp_path / "interrupted")
    started = str(tmp_path / "started")

    @retinue.remote
    def spin() -> None:
        try:
            open(started, "w").close()
            while True:
                time.sleep(0.01)
        except KeyboardInterrupt:
            open(marker, "w").close()
            raise

    ref = spin.remote()
    _until(lambda: os.path.exists(started))
    retinue.cancel(ref)
    with pytest.raises(TaskCancelledError):
        retinue.get(ref, timeout=10)
    _until(lambda: os.path.exists(marker))
    assert retinue.get(add.remote(1)) == 2


def _until(is_so: Any, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it never came to be so"
        time.sleep(0.005)


def test_calls_without_events_are_not_listed() -> None:
    @retinue.remote
    def seen_or_not() -> None: ...

    from retinue.util.state import list_tasks

    retinue.get([seen_or_not.options(enable_task_events=False, name="unseen").remote() for _ in range(3)])
    retinue.get(seen_or_not.options(name="seen").remote())
    _until(lambda: list_tasks(filters=[("name", "=", "seen")]))
    assert not list_tasks(filters=[("name", "=", "unseen")])
