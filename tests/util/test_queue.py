from __future__ import annotations

import asyncio
import queue
from typing import Any

import pytest

import retinue
from retinue.util.queue import Empty, Full, Queue, _QueueActor


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


class TestItems:
    """The actor's class, on an event loop of the test."""

    def test_items_come_in_order(self) -> None:
        async def scenario() -> None:
            items = _QueueActor(0)
            items.put_nowait_batch([1, 2])
            await items.put(3)
            assert (items.qsize(), items.empty(), items.full()) == (3, False, False)
            assert items.get_nowait_batch(2) == [1, 2]
            assert await items.get() == 3
            assert items.empty()

        run(scenario())

    def test_a_waiting_get_takes_what_is_put(self) -> None:
        async def scenario() -> None:
            items = _QueueActor(0)
            waiting = asyncio.create_task(items.get())
            await asyncio.sleep(0)
            items.put_nowait("item")
            assert await waiting == "item"

        run(scenario())

    def test_a_waiting_put_gets_the_room(self) -> None:
        async def scenario() -> None:
            items = _QueueActor(1)
            items.put_nowait(1)
            waiting = asyncio.create_task(items.put(2))
            await asyncio.sleep(0)
            assert not waiting.done()
            assert items.get_nowait() == 1
            await waiting
            assert items.get_nowait() == 2

        run(scenario())

    def test_batches_are_all_or_nothing(self) -> None:
        async def scenario() -> None:
            items = _QueueActor(3)
            items.put_nowait(0)
            with pytest.raises(Full, match="3 items do not fit"):
                items.put_nowait_batch([1, 2, 3])
            with pytest.raises(Empty, match="2 items"):
                items.get_nowait_batch(2)
            assert items.qsize() == 1

        run(scenario())

    def test_timeouts(self) -> None:
        async def scenario() -> None:
            items = _QueueActor(1)
            with pytest.raises(Empty):
                await items.get(0)
            items.put_nowait(1)
            with pytest.raises(Full):
                await items.put(2, 0)
            assert items.qsize() == 1

        run(scenario())


def test_errors_are_those_of_the_standard_library() -> None:
    assert issubclass(Empty, queue.Empty)
    assert issubclass(Full, queue.Full)


@pytest.mark.e2e
@pytest.mark.usefixtures("cluster")
class TestQueue:
    def test_put_get_and_sizes(self) -> None:
        q = Queue(maxsize=2)
        assert (len(q), q.size(), q.qsize(), q.empty(), q.full()) == (0, 0, 0, True, False)
        q.put(1)
        q.put_nowait({"two": 2})
        assert (len(q), q.full(), q.maxsize) == (2, True, 2)
        assert (q.get(), q.get_nowait()) == (1, {"two": 2})
        q.shutdown()

    def test_errors_are_plain(self) -> None:
        q = Queue(maxsize=1)
        for take in (q.get_nowait, lambda: q.get(timeout=0.01), lambda: q.get_nowait_batch(1)):
            with pytest.raises(Empty) as empty:
                take()
            assert type(empty.value) is Empty
        q.put(1)
        for give in (
            lambda: q.put_nowait(2),
            lambda: q.put(2, timeout=0.01),
            lambda: q.put_nowait_batch([2]),
        ):
            with pytest.raises(Full) as full:
                give()
            assert type(full.value) is Full
        q.shutdown(force=True)

    def test_arguments_are_checked(self) -> None:
        q = Queue()
        with pytest.raises(ValueError, match="negative"):
            q.get(timeout=-1)
        with pytest.raises(ValueError, match="negative"):
            q.put(1, timeout=-1)
        with pytest.raises(ValueError, match="negative"):
            q.get_nowait_batch(-1)
        with pytest.raises(TypeError):
            q.get_nowait_batch("1")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            q.put_nowait_batch(1)  # type: ignore[arg-type]
        q.shutdown()

    def test_tasks_meet_at_a_queue(self) -> None:
        q = Queue()

        def produce(q: Queue, n: int) -> None:
            for i in range(n):
                q.put(i)

        def consume(q: Queue, n: int) -> int:
            return sum(q.get() for _ in range(n))

        consumed = retinue.remote(num_cpus=0)(consume).remote(q, 20)
        produced = retinue.remote(num_cpus=0)(produce).remote(q, 20)
        assert retinue.get([consumed, produced], timeout=60) == [190, None]
        q.shutdown()

    def test_async_forms(self) -> None:
        q = Queue(maxsize=1)

        async def scenario() -> Any:
            waiting = asyncio.create_task(q.get_async())
            await q.put_async("item")
            item = await waiting
            with pytest.raises(Empty):
                await q.get_async(block=False)
            return item

        assert run(scenario()) == "item"
        q.shutdown()

    def test_batches(self) -> None:
        q = Queue(maxsize=3)
        q.put_nowait_batch(iter([1, 2, 3]))
        assert q.get_nowait_batch(3) == [1, 2, 3]
        q.shutdown()

    def test_a_named_queue_with_options(self) -> None:
        q = Queue(actor_options={"name": "shared-queue", "num_cpus": 0})
        assert retinue.get(retinue.get_actor("shared-queue").qsize.remote()) == 0
        q.shutdown()
        q.shutdown()
        assert q.actor is None
