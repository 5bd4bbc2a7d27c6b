"""What callers see of results that arrive chunk by chunk."""

from __future__ import annotations

import multiprocessing.pool
from typing import Any

import pytest

from retinue.util.multiprocessing.results import (
    AsyncResult,
    Deliver,
    OrderedIMapIterator,
    UnorderedIMapIterator,
)
from retinue.util.multiprocessing.worker import Call, Failure, PoolWorker


def failure(error: Exception) -> Failure:
    return Failure(error, "Traceback: line 7")


class TestAsyncResult:
    def test_chunks_are_put_in_order(self) -> None:
        heard: list[Any] = []
        result = AsyncResult(num_chunks=2, callback=heard.append, error_callback=pytest.fail)
        result.deliver(1, [3])
        assert not result.ready()
        with pytest.raises(multiprocessing.TimeoutError):
            result.get(timeout=0)
        with pytest.raises(ValueError, match="not ready"):
            result.successful()
        result.deliver(0, [1, 2])
        result.wait(timeout=0)
        assert result.get() == [1, 2, 3]
        assert result.successful()
        assert heard == [[1, 2, 3]]

    def test_a_single_result_is_no_list(self) -> None:
        heard: list[Any] = []
        result = AsyncResult(num_chunks=1, is_single=True, callback=heard.append)
        result.deliver(0, ["value"])
        assert (result.get(), heard) == ("value", ["value"])

    def test_of_nothing_it_is_ready_at_once(self) -> None:
        heard: list[Any] = []
        assert AsyncResult(num_chunks=0, callback=heard.append).get(timeout=0) == []
        assert heard == [[]]

    def test_the_first_error_in_time_is_heard_and_the_first_in_order_raised(self) -> None:
        heard: list[Any] = []
        result = AsyncResult(num_chunks=3, callback=pytest.fail, error_callback=heard.append)
        late, early = KeyError("late"), ValueError("early")
        result.deliver(2, [failure(late)])
        assert heard == [late]
        assert not result.ready(), "the others still run"
        result.deliver(0, [1])
        result.deliver(1, [failure(early), 2])
        with pytest.raises(ValueError, match="early") as caught:
            result.get()
        assert "line 7" in str(caught.value.__cause__)
        assert not result.successful()
        assert heard == [late]

    def test_a_callback_that_raises_does_no_harm(self, caplog: pytest.LogCaptureFixture) -> None:
        result = AsyncResult(num_chunks=1, is_single=True, callback=lambda value: 1 / 0)
        result.deliver(0, [1])
        assert result.get() == 1
        assert "callback" in caplog.text


class Submitted:
    """Stands for the pool: keeps what was submitted, and delivers when the test says so."""

    def __init__(self) -> None:
        self.chunks: list[tuple[list[Any], Deliver]] = []

    def __call__(self, chunk: list[Any], deliver: Deliver) -> None:
        self.chunks.append((chunk, deliver))

    def finish(self, index: int, outcomes: list[Any] | None = None) -> None:
        chunk, deliver = self.chunks[index]
        deliver(chunk if outcomes is None else outcomes)


class TestIMap:
    def test_input_is_read_only_as_results_are_taken(self) -> None:
        submitted = Submitted()
        items = iter(range(100))
        results = UnorderedIMapIterator(submitted, items, chunksize=2, window=3)
        assert [chunk for chunk, _ in submitted.chunks] == [[0, 1], [2, 3], [4, 5]]
        submitted.finish(1)
        assert (next(results), next(results)) == (2, 3)
        assert len(submitted.chunks) == 4
        assert next(items) == 8

    def test_ordered_results_wait_for_their_turn(self) -> None:
        submitted = Submitted()
        results = OrderedIMapIterator(submitted, range(5), chunksize=2, window=3)
        submitted.finish(2)
        submitted.finish(1)
        with pytest.raises(multiprocessing.TimeoutError):
            results.next(timeout=0.001)
        submitted.finish(0)
        assert list(results) == [0, 1, 2, 3, 4]
        with pytest.raises(StopIteration):
            results.next()

    def test_unordered_results_come_as_they_finish(self) -> None:
        submitted = Submitted()
        results = UnorderedIMapIterator(submitted, range(5), chunksize=2, window=3)
        for index in (2, 0, 1):
            submitted.finish(index)
        assert list(results) == [4, 0, 1, 2, 3]

    @pytest.mark.parametrize("kind", [OrderedIMapIterator, UnorderedIMapIterator])
    def test_an_error_is_raised_in_its_turn_and_iteration_goes_on(self, kind: Any) -> None:
        submitted = Submitted()
        results = kind(submitted, range(3), chunksize=3, window=1)
        submitted.finish(0, [0, failure(KeyError(1)), 2])
        assert next(results) == 0
        with pytest.raises(KeyError):
            next(results)
        assert next(results) == 2
        with pytest.raises(StopIteration):
            next(results)

    def test_of_nothing_it_ends_at_once(self) -> None:
        assert list(OrderedIMapIterator(Submitted(), [], chunksize=1, window=2)) == []

    def test_a_none_is_a_result(self) -> None:
        submitted = Submitted()
        results = OrderedIMapIterator(submitted, [None], chunksize=1, window=2)
        submitted.finish(0)
        assert list(results) == [None]


class TestWorker:
    def test_the_ways_to_call(self) -> None:
        worker = PoolWorker(None, ())
        assert worker.run(abs, [-1, 2], Call.ONE) == [1, 2]
        assert worker.run(pow, [(2, 3), (3, 2)], Call.STAR) == [8, 9]
        assert worker.run(int, [(("11",), {"base": 2})], Call.FULL) == [3]

    def test_an_error_ends_its_item_only(self) -> None:
        first, second, third = PoolWorker(None, ()).run(int, ["1", "x", "3"], Call.ONE)
        assert (first, third) == (1, 3)
        assert isinstance(second, Failure)
        error = second.exception()
        assert isinstance(error, ValueError)
        assert "invalid literal" in str(error.__cause__)

    def test_an_error_that_cannot_travel_is_described(self) -> None:
        class Awkward(Exception):
            def __reduce__(self) -> Any:
                raise RuntimeError("not me")

        def fail(item: int) -> None:
            raise Awkward("something")

        [outcome] = PoolWorker(None, ()).run(fail, [1], Call.ONE)
        assert isinstance(outcome.error, multiprocessing.pool.MaybeEncodingError)
        assert "something" in str(outcome.error)

    def test_the_initializer_runs_first(self) -> None:
        seen: list[int] = []
        assert PoolWorker(lambda *args: seen.extend(args), (1, 2)).ready()
        assert seen == [1, 2]
