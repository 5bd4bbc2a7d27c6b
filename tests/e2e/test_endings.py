"""How calls end: cancelled, failed, repeated, with references kept, in a process that goes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

import retinue
from retinue.core.current import get_runtime
from retinue.exceptions import TaskCancelledError


@retinue.remote(num_cpus=0)
class Gate:
    """Holds callers until it is opened."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.arrived = 0

    async def wait(self) -> None:
        self.arrived += 1
        await self.event.wait()

    async def open(self) -> None:
        self.event.set()

    async def count(self) -> int:
        return self.arrived


@retinue.remote(num_cpus=0)
class Keeper:
    def keep(self, refs: list[Any], fail: bool = False) -> None:
        self.ref = refs[0]
        if fail:
            raise ValueError("kept, then failed")

    def unpack(self, refs: list[Any]) -> None:
        self.ref = retinue.get(refs[0])[0]

    def value(self) -> Any:
        return retinue.get(self.ref)


@retinue.remote
def echo(value: Any) -> Any:
    return value


# --- cancelled


def test_a_task_that_waits_in_get_is_cancelled_and_its_worker_lives_on() -> None:
    gate = Gate.remote()

    @retinue.remote
    def wait(gate: Any) -> None:
        retinue.get(gate.wait.remote())

    for number in range(3):
        ref = wait.remote(gate)
        _until(lambda number=number: retinue.get(gate.count.remote()) > number)
        retinue.cancel(ref)
        with pytest.raises(TaskCancelledError):
            retinue.get(ref, timeout=20)
    assert retinue.get([echo.remote(i) for i in range(10)], timeout=20) == list(range(10))
    retinue.get(gate.open.remote())


def test_tasks_that_call_all_the_time_are_cancelled_anywhere_in_the_runtime() -> None:
    @retinue.remote
    def busy(data: bytes) -> None:
        while True:
            retinue.get([echo.remote(i) for i in range(3)])
            retinue.put(data)

    for _ in range(8):
        ref = busy.remote(bytes(200_000))
        retinue.wait([ref], timeout=0.05)
        retinue.cancel(ref)
        with pytest.raises(TaskCancelledError):
            retinue.get(ref, timeout=20)
    assert retinue.get([echo.remote(i) for i in range(10)], timeout=20) == list(range(10))


def test_cancelling_an_async_method_cancels_what_it_called() -> None:
    @retinue.remote(num_cpus=0)
    class Nested:
        async def run(self, gate: Any, marker: str) -> None:
            await spin.remote(gate, marker)

    @retinue.remote
    def spin(gate: Any, marker: str) -> None:
        try:
            gate.wait.remote()
            while True:
                time.sleep(0.001)
        except KeyboardInterrupt:
            open(marker, "w").close()
            raise

    gate = Gate.remote()
    marker = os.path.join(os.environ["RETINUE_TEMP_DIR"], f"cancelled-{time.monotonic_ns()}")
    nested = Nested.remote()
    ref = nested.run.remote(gate, marker)
    _until(lambda: retinue.get(gate.count.remote()) == 1)
    retinue.cancel(ref)
    with pytest.raises(TaskCancelledError):
        retinue.get(ref, timeout=20)
    _until(lambda: os.path.exists(marker))


def test_a_cancelled_stream_of_a_threaded_actor_ends_as_cancelled() -> None:
    @retinue.remote(num_cpus=0, max_concurrency=2)
    class Threaded:
        def stream(self) -> Iterator[int]:
            index = 0
            while True:
                yield index
                index += 1

    generator = (
        Threaded.remote()
        .stream.options(num_returns="streaming", _generator_backpressure_num_objects=3)
        .remote()
    )
    assert retinue.get(next(generator)) == 0
    retinue.cancel(generator)
    with pytest.raises(TaskCancelledError):
        retinue.get(list(generator), timeout=20)


# --- references that calls keep


@pytest.mark.parametrize("fails", [False, True])
def test_a_reference_that_a_call_kept_outlives_its_caller_s(fails: bool) -> None:
    keeper = Keeper.remote()
    inner = retinue.put("precious")
    call = keeper.keep.remote([inner], fails)
    if fails:
        with pytest.raises(ValueError, match="kept"):
            retinue.get(call)
    else:
        retinue.get(call)
    del inner, call
    get_runtime().drain_dropped()
    assert retinue.get(keeper.value.remote(), timeout=20) == "precious"


def test_a_reference_found_by_get_is_kept_too() -> None:
    keeper = Keeper.remote()
    for _ in range(20):
        outer = retinue.put([retinue.put("precious")])
        call = keeper.unpack.remote([outer])
        retinue.get(call)
        del outer, call
        get_runtime().drain_dropped()
        assert retinue.get(keeper.value.remote(), timeout=20) == "precious"


class Carrier(Exception):
    def __init__(self, ref: Any) -> None:
        super().__init__(ref)
        self.ref = ref


def test_a_reference_inside_an_exception_arrives_alive() -> None:
    @retinue.remote(num_cpus=0)
    class Raiser:
        def fail(self) -> None:
            raise Carrier(retinue.put("evidence"))

    raiser = Raiser.remote()
    for _ in range(5):
        with pytest.raises(Carrier) as caught:
            retinue.get(raiser.fail.remote())
        assert retinue.get(caught.value.cause.ref, timeout=20) == "evidence"  # type: ignore[attr-defined]


def test_a_stream_of_references_and_values_loses_nothing() -> None:
    @retinue.remote
    class Streamer:
        def stream(self, refs: list[Any], n: int) -> Iterator[Any]:
            for i in range(n):
                yield [refs[0]] if i % 3 == 0 else i

    @retinue.remote
    def relay(streamer: Any, refs: list[Any]) -> int:
        items = streamer.stream.options(num_returns="streaming").remote(refs, 60)
        found = [retinue.get(ref) for ref in items]
        assert [f for f in found if not isinstance(f, list)] == [i for i in range(60) if i % 3]
        return len(found)

    streamer = Streamer.options(num_cpus=0).remote()
    assert retinue.get(relay.remote(streamer, [retinue.put("ours")]), timeout=60) == 60


# --- repeated


def test_what_another_attempt_puts_is_another_object(tmp_path: Any) -> None:
    keeper = Keeper.remote()

    @retinue.remote(max_retries=1, retry_exceptions=True)
    def flaky(keeper: Any, path: str) -> Any:
        is_first = not os.path.exists(path)
        ref = retinue.put("first" if is_first else "second")
        if is_first:
            open(path, "w").close()
            retinue.get(keeper.keep.remote([ref]))
            raise RuntimeError("again")
        return [ref]

    second = retinue.get(flaky.remote(keeper, str(tmp_path / "tried")), timeout=30)[0]
    assert retinue.get(second) == "second"
    assert retinue.get(keeper.value.remote(), timeout=20) == "first"


def test_a_function_keeps_its_globals_when_another_caller_sends_it() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("cache = []\ndef count():\n    cache.append(1)\n    return len(cache)", namespace)

    @retinue.remote(num_cpus=0)
    class Runner:
        def run(self, function: Any) -> int:
            return retinue.get(function.remote())

    count = retinue.remote(namespace["count"]).options(resources={})
    counts = [retinue.get(count.remote()) for _ in range(5)]
    assert max(counts) > 1, "one worker runs it again and again"


# --- large and many


def test_a_thousand_returns_and_a_thousand_small_arguments() -> None:
    n = 800

    @retinue.remote(num_returns=n)
    def many() -> list[bytes]:
        return [bytes([i % 256]) * 90_000 for i in range(n)]

    @retinue.remote
    def total(*parts: bytes) -> int:
        return sum(len(part) for part in parts)

    refs = many.remote()
    assert sum(len(part) for part in retinue.get(refs, timeout=60)) == n * 90_000
    small = [retinue.put(bytes(90_000)) for _ in range(n)]
    assert retinue.get(total.remote(*small), timeout=60) == n * 90_000


# --- processes that go


def test_answers_leave_before_their_process_does() -> None:
    @retinue.remote(max_calls=1)
    def large(refs: list[Any]) -> list[Any]:
        return [bytes(90_000), refs[0]]

    inner = retinue.put("inner")
    for data, ref in retinue.get([large.remote([inner]) for _ in range(6)], timeout=60):
        assert len(data) == 90_000
        assert retinue.get(ref) == "inner"


def test_a_stream_whose_consumer_dies_frees_its_actor() -> None:
    @retinue.remote(num_cpus=0)
    class Source:
        def stream(self) -> Iterator[int]:
            yield from range(10_000)

        def ping(self) -> str:
            return "here"

    @retinue.remote(max_retries=0)
    def consume(source: Any) -> None:
        items = source.stream.options(num_returns="streaming", _generator_backpressure_num_objects=2).remote()
        retinue.get(next(items))
        os._exit(1)

    source = Source.remote()
    with pytest.raises(retinue.exceptions.WorkerCrashedError):
        retinue.get(consume.remote(source), timeout=30)
    assert retinue.get(source.ping.remote(), timeout=30) == "here"


# --- actors


def test_an_async_actor_of_max_concurrency_1_runs_one_call_at_a_time() -> None:
    @retinue.remote(num_cpus=0, max_concurrency=1)
    class Single:
        def __init__(self) -> None:
            self.running = 0

        async def run(self) -> int:
            self.running += 1
            await asyncio.sleep(0.001)
            self.running -= 1
            return self.running

    single = Single.remote()
    assert retinue.get([single.run.remote() for _ in range(20)]) == [0] * 20


def test_a_class_whose_new_takes_arguments() -> None:
    @retinue.remote(num_cpus=0)
    class Made:
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            made = super().__new__(cls)
            made.args = args  # type: ignore[attr-defined]
            return made

        def __init__(self, first: int, *, second: int) -> None:
            self.task = retinue.get_runtime_context().get_task_id()
            self.values = (self.args, first, second)  # type: ignore[attr-defined]

        def get(self) -> Any:
            return self.values, len(self.task)

    assert retinue.get(Made.remote(1, second=2).get.remote()) == (((1,), 1, 2), 48)


def _until(is_so: Any, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it never came to be so"
        time.sleep(0.005)
