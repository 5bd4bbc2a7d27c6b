"""Which worker runs what, and when workers come and go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from retinue.util.multiprocessing.dispatch import Decision, Dispatcher, Drop, Kill, Retire, Send, Start


@pytest.fixture
def two() -> Iterator[Dispatcher]:
    dispatcher = Dispatcher(processes=2)
    assert dispatcher.start() == [Start(0), Start(1)]
    yield dispatcher
    dispatcher.check_invariants()


def test_a_chunk_waits_for_a_free_worker(two: Dispatcher) -> None:
    assert two.chunk_submitted(10) == [Send(10, 0)]
    assert two.chunk_submitted(11) == [Send(11, 1)]
    assert two.chunk_submitted(12) == []
    assert two.chunk_finished(11, worker_lives=True) == [Send(12, 1)]


def test_all_workers_get_their_share(two: Dispatcher) -> None:
    assert two.chunk_submitted(10) == [Send(10, 0)]
    assert two.chunk_finished(10, worker_lives=True) == []
    assert two.chunk_submitted(11) == [Send(11, 1)]


def test_a_dead_worker_is_replaced(two: Dispatcher) -> None:
    two.chunk_submitted(10)
    two.chunk_submitted(11)
    two.chunk_submitted(12)
    assert two.chunk_finished(10, worker_lives=False) == [Kill(0), Start(2), Send(12, 2)]


def test_a_worker_that_ran_its_share_is_replaced() -> None:
    dispatcher = Dispatcher(processes=1, chunks_per_worker=2)
    dispatcher.start()
    dispatcher.chunk_submitted(10)
    dispatcher.chunk_submitted(11)
    assert dispatcher.chunk_finished(10, worker_lives=True) == [Send(11, 0)]
    dispatcher.chunk_submitted(12)
    assert dispatcher.chunk_finished(11, worker_lives=True) == [Retire(0), Start(1), Send(12, 1)]
    dispatcher.check_invariants()


def test_after_close_workers_retire_when_the_work_is_done(two: Dispatcher) -> None:
    two.chunk_submitted(10)
    assert two.close() == []
    assert two.is_closed
    assert not two.is_finished
    assert two.chunk_finished(10, worker_lives=True) == [Retire(0), Retire(1)]
    assert two.is_finished
    assert two.close() == []


def test_an_idle_pool_closes_at_once(two: Dispatcher) -> None:
    assert two.close() == [Retire(0), Retire(1)]
    assert two.is_finished


def test_a_closed_pool_starts_no_worker_that_it_does_not_need(two: Dispatcher) -> None:
    two.chunk_submitted(10)
    two.chunk_submitted(11)
    two.chunk_submitted(12)
    two.close()
    assert two.chunk_finished(10, worker_lives=False) == [Kill(0), Start(2), Send(12, 2)]
    assert two.chunk_finished(11, worker_lives=False) == [Kill(1)]
    assert two.chunk_finished(12, worker_lives=False) == [Kill(2)]
    assert two.is_finished


def test_terminate_drops_everything(two: Dispatcher) -> None:
    for chunk in (10, 11, 12):
        two.chunk_submitted(chunk)
    assert two.terminate() == [Kill(0), Kill(1), Drop(10), Drop(11), Drop(12)]
    assert two.is_finished
    assert two.chunk_finished(10, worker_lives=False) == []
    assert two.terminate() == []


class Pools(RuleBasedStateMachine):
    """Random lives of a pool: every chunk is run once or dropped, and no worker is left over."""

    @initialize(processes=st.integers(1, 4), share=st.none() | st.integers(1, 3))
    def begin(self, processes: int, share: int | None) -> None:
        self.workers: set[int] = set()
        self.running: dict[int, int] = {}
        self.submitted: list[int] = []
        self.settled: list[int] = []
        self.dispatcher = Dispatcher(processes=processes, chunks_per_worker=share)
        self.carry_out(self.dispatcher.start())

    def carry_out(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Start(worker):
                    assert worker not in self.workers
                    self.workers.add(worker)
                case Send(chunk, worker):
                    assert worker in self.workers
                    assert worker not in self.running.values(), "one chunk at a time"
                    self.running[chunk] = worker
                case Retire(worker):
                    assert worker not in self.running.values()
                    self.workers.remove(worker)
                case Kill(worker):
                    self.workers.remove(worker)
                case Drop(chunk):
                    self.running.pop(chunk, None)
                    self.settled.append(chunk)

    @precondition(lambda self: not self.dispatcher.is_closed)
    @rule()
    def submit(self) -> None:
        self.submitted.append(len(self.submitted))
        self.carry_out(self.dispatcher.chunk_submitted(self.submitted[-1]))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), lives=st.booleans())
    def finish(self, data: st.DataObject, lives: bool) -> None:
        chunk = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[chunk]
        self.settled.append(chunk)
        self.carry_out(self.dispatcher.chunk_finished(chunk, worker_lives=lives))

    @rule()
    def close(self) -> None:
        self.carry_out(self.dispatcher.close())

    @rule()
    def terminate(self) -> None:
        self.carry_out(self.dispatcher.terminate())

    @invariant()
    def nothing_is_lost(self) -> None:
        self.dispatcher.check_invariants()
        if not self.running:
            assert sorted(self.settled) == self.submitted, "work is left, and nobody runs it"
        assert self.dispatcher.is_finished == (self.dispatcher.is_closed and not self.workers)

    def teardown(self) -> None:
        if not hasattr(self, "dispatcher"):
            return
        self.carry_out(self.dispatcher.close())
        while self.running:
            chunk = min(self.running)
            del self.running[chunk]
            self.settled.append(chunk)
            self.carry_out(self.dispatcher.chunk_finished(chunk, worker_lives=True))
        assert self.dispatcher.is_finished
        assert not self.workers


TestPools = Pools.TestCase
TestPools.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
