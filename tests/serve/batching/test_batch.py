"""The decorator on a loop: results, errors, cancelling, streams, settings at run time."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest
import uvloop

from retinue import cloudpickle
from retinue.serve.batching import batch
from retinue.serve.batching.decorator import set_home_loop
from retinue.serve.context import (
    RequestContext,
    batch_request_contexts,
    get_multiplexed_model_id,
    request_context,
)
from retinue.serve.exceptions import RetinueServeException


def run(test: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


class Model:
    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    @batch(max_batch_size=4, batch_wait_timeout_s=5)
    async def double(self, items: list[int]) -> list[Any]:
        self.batches.append(items)
        await self.gate.wait()
        return [ValueError(f"bad {item}") if item < 0 else item * 2 for item in items]


def test_calls_that_come_together_are_one_batch() -> None:
    async def test() -> None:
        model = Model()
        assert await asyncio.gather(*(model.double(n) for n in range(3))) == [0, 2, 4]
        assert model.batches == [[0, 1, 2]]
        started = time.monotonic()
        assert await model.double(5) == 10
        assert time.monotonic() - started < 2  # not the wait timeout

    run(test())


def test_the_next_batch_grows_while_one_runs() -> None:
    async def test() -> None:
        model = Model()
        model.gate.clear()
        calls = [asyncio.ensure_future(model.double(n)) for n in range(10)]
        while len(model.batches) < 1:  # noqa: ASYNC110 - others are to run, nothing tells us
            await asyncio.sleep(0)
        model.gate.set()
        assert await asyncio.gather(*calls) == [n * 2 for n in range(10)]
        assert [len(each) for each in model.batches] == [4, 4, 2]

    run(test())


def test_an_exception_among_the_results_fails_its_own_caller() -> None:
    async def test() -> None:
        results = await asyncio.gather(*(Model().double(n) for n in (1, -1)), return_exceptions=True)
        model = Model()
        results = await asyncio.gather(model.double(1), model.double(-1), return_exceptions=True)
        assert results[0] == 2
        assert isinstance(results[1], ValueError)

    run(test())


def test_an_exception_of_the_function_fails_all() -> None:
    @batch
    async def fail(items: list[int]) -> list[int]:
        raise KeyError("all")

    @batch
    async def too_few(items: list[int]) -> list[int]:
        return []

    @batch
    async def nothing(items: list[int]) -> Any:
        return None

    async def test() -> None:
        errors = await asyncio.gather(fail(1), fail(2), return_exceptions=True)
        assert [type(each) for each in errors] == [KeyError, KeyError]
        with pytest.raises(RetinueServeException, match="1 items and returned 0"):
            await too_few(1)
        with pytest.raises(TypeError, match="returns a list"):
            await nothing(1)

    run(test())


def test_cancelled_calls_are_in_no_batch_and_an_abandoned_batch_is_cancelled() -> None:
    async def test() -> None:
        model = Model()
        model.gate.clear()
        first = asyncio.ensure_future(model.double(1))
        while not model.batches:  # noqa: ASYNC110 - others are to run, nothing tells us
            await asyncio.sleep(0)
        second, third = (asyncio.ensure_future(model.double(n)) for n in (2, 3))
        await asyncio.sleep(0)
        second.cancel()
        first.cancel()
        await asyncio.wait({first, second})
        model.gate.set()
        assert await third == 6
        assert model.batches == [[1], [3]]

    run(test())


def test_late_calls_are_in_no_batch() -> None:
    async def test() -> None:
        model = Model()
        model.gate.clear()
        first = asyncio.ensure_future(model.double(1))
        while not model.batches:  # noqa: ASYNC110 - others are to run, nothing tells us
            await asyncio.sleep(0)
        request_context.set(RequestContext(deadline=time.monotonic() + 0.05))
        with pytest.raises(TimeoutError):
            await model.double(2)
        model.gate.set()
        assert await first == 2
        assert model.batches == [[1]]

    run(test())


def test_batches_know_their_requests_and_do_not_mix_models() -> None:
    seen: list[tuple[str, list[str]]] = []

    @batch
    async def note(items: list[int]) -> list[int]:
        seen.append((get_multiplexed_model_id(), [c.request_id for c in batch_request_contexts.get()]))
        return items

    async def ask(request_id: str, model_id: str) -> None:
        request_context.set(RequestContext(request_id=request_id, multiplexed_model_id=model_id))
        await note(1)

    async def test() -> None:
        await asyncio.gather(ask("1", "a"), ask("2", "b"), ask("3", "a"))
        assert seen == [("a", ["1", "3"]), ("b", ["2"])]

    run(test())


def test_settings_change_at_run_time_also_through_a_pickle() -> None:
    async def test() -> None:
        model = cloudpickle.loads(cloudpickle.dumps(Model))()
        assert model.double.get_max_batch_size() == 4
        await model.double(1)
        model.double.set_max_batch_size(2)
        model.double.set_batch_wait_timeout_s(0)
        assert (model.double.get_max_batch_size(), model.double.get_batch_wait_timeout_s()) == (2, 0)
        await asyncio.gather(*(model.double(n) for n in range(4)))
        assert [len(each) for each in model.batches] == [1, 2, 2]

    run(test())


def test_plain_functions_run_in_a_thread_and_can_be_called_from_one() -> None:
    class Plain:
        @batch(max_batch_size=8)
        def square(self, items: list[int]) -> list[int]:
            assert threading.current_thread() is not threading.main_thread()
            return [n * n for n in items]

    async def test() -> None:
        model = Plain()
        set_home_loop(asyncio.get_running_loop())
        try:
            assert await asyncio.gather(model.square(2), model.square(3)) == [4, 9]
            assert await asyncio.to_thread(model.square, 4) == 16
        finally:
            set_home_loop(None)
        with pytest.raises(RuntimeError, match="on a loop"):
            await asyncio.to_thread(model.square, 4)

    run(test())


def test_several_arguments_become_several_lists() -> None:
    @batch
    async def add(a: list[int], b: list[int], *, c: list[int]) -> list[int]:
        return [x + y + z for x, y, z in zip(a, b, c, strict=True)]

    async def test() -> None:
        assert await asyncio.gather(add(1, 2, c=3), add(4, 5, c=6)) == [6, 15]

    run(test())


def test_sizes_are_counted_by_the_user() -> None:
    batches: list[list[str]] = []

    @batch(max_batch_size=5, batch_size_fn=lambda items: sum(len(item) for item in items))
    async def upper(items: list[str]) -> list[str]:
        batches.append(items)
        return [item.upper() for item in items]

    async def test() -> None:
        results = await asyncio.gather(
            upper("abc"), upper("de"), upper("f"), upper("toolong"), return_exceptions=True
        )
        assert results[:3] == ["ABC", "DE", "F"]
        assert isinstance(results[3], RuntimeError)
        assert batches == [["abc", "de"], ["f"]]

    run(test())


class Streams:
    @batch(max_batch_size=4)
    async def count(self, limits: list[int]) -> AsyncIterator[list[Any]]:
        for n in range(max(limits)):
            yield [n if n < limit else StopIteration for limit in limits]
            await asyncio.sleep(0)


def test_generating_batches_stream_to_each_caller() -> None:
    async def test() -> None:
        model = Streams()

        async def read(limit: int) -> list[int]:
            return [n async for n in model.count(limit)]

        assert await asyncio.gather(read(3), read(1), read(200)) == [[0, 1, 2], [0], list(range(200))]

    run(test())


def test_a_reader_that_leaves_does_not_hold_up_the_others() -> None:
    async def test() -> None:
        model = Streams()

        async def leave() -> None:
            stream = model.count(1000)
            assert await anext(stream) == 0
            await stream.aclose()

        async def read() -> int:
            return len([n async for n in model.count(300)])

        assert (await asyncio.gather(leave(), read()))[1] == 300

    run(test())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_batch_size": 0}, ValueError),
        ({"max_batch_size": 1.5}, TypeError),
        ({"batch_wait_timeout_s": -1}, ValueError),
        ({"batch_wait_timeout_s": "1"}, TypeError),
        ({"max_concurrent_batches": 0}, ValueError),
        ({"batch_size_fn": 5}, TypeError),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        batch(**options)


def test_a_caller_that_leaves_as_its_batch_begins_does_not_stop_later_ones() -> None:
    async def test() -> None:
        model = Model()
        for turns in range(6):
            call = asyncio.ensure_future(model.double(1))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait({call})
            assert await model.double(2) == 4

    run(test())


def test_an_item_whose_size_cannot_be_told_fails_alone() -> None:
    @batch(max_batch_size=10, batch_wait_timeout_s=5, batch_size_fn=lambda items: sum(map(len, items)))
    async def lengths(items: list[Any]) -> list[int]:
        return [len(item) for item in items]

    async def test() -> None:
        calls = [lengths(item) for item in ("a", 5, "bcd", None, "xy")]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [r if isinstance(r, int) else type(r) for r in results] == [1, TypeError, 3, TypeError, 2]

    run(test())


def test_plain_code_that_everyone_has_left_is_not_run_beside_the_next_batch() -> None:
    began, gate = threading.Event(), threading.Event()
    running = 0
    most = 0

    @batch(max_batch_size=4)
    def work(items: list[int]) -> list[int]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        began.set()
        gate.wait(10)
        running -= 1
        return items

    async def test() -> None:
        call = asyncio.ensure_future(work(1))
        await asyncio.to_thread(began.wait, 10)
        call.cancel()
        await asyncio.wait({call})
        following = asyncio.ensure_future(work(2))
        for _ in range(10):
            await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.05, gate.set)
        assert await following == 2
        assert most == 1

    run(test())
