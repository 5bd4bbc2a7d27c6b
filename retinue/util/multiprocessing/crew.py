"""The actors behind a pool, and the one thread that takes in their results.

Carries out what the dispatcher decides. The thread ends, and lets go of everything, when the dispatcher is
finished; `Pool.join` waits for that.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import retinue
from retinue.util.multiprocessing.dispatch import Decision, Dispatcher, Drop, Kill, Retire, Send, Start
from retinue.util.multiprocessing.results import Deliver, Outcomes, PoolTerminatedError
from retinue.util.multiprocessing.worker import Call, Failure, PoolWorker


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some items for one function, and who gets their outcomes. `function` may be a reference to it."""

    function: Any
    items: list[Any]
    call: Call
    deliver: Deliver


@dataclass(frozen=True, slots=True)
class _Finished:
    chunk: int
    future: Future[Outcomes]


@dataclass(frozen=True, slots=True)
class _Dropped:
    chunks: list[Chunk]


class _Abandoned:
    """Nobody holds the pool any more."""


_Event = _Finished | _Dropped | _Abandoned


class Crew:
    """Starts the actors, and runs the chunks it is given on them."""

    def __init__(
        self,
        *,
        processes: int,
        chunks_per_worker: int | None,
        initializer: Callable[..., Any] | None,
        initargs: Iterable[Any],
        actor_options: dict[str, Any],
    ) -> None:
        self._dispatcher = Dispatcher(processes=processes, chunks_per_worker=chunks_per_worker)
        self._actor_class = retinue.remote(PoolWorker).options(**{"num_cpus": 0, **actor_options})
        self._actor_args = (initializer, tuple(initargs))
        self._actors: dict[int, Any] = {}
        self._retiring: list[Any] = []
        self._chunks: dict[int, Chunk] = {}
        self._num_chunks = 0
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of everything above
        self._thread = threading.Thread(target=self._take_results, name="retinue-pool", daemon=True)

    def start(self) -> None:
        """Start the actors and wait for their initializers; an exception of those is raised here."""
        self._decide(self._dispatcher.start)
        try:
            retinue.get([actor.ready.remote() for actor in self._actors.values()])
        except BaseException:
            self._decide(self._dispatcher.terminate)
            raise
        self._thread.start()

    @property
    def is_started(self) -> bool:
        """Say whether `start` succeeded."""
        return self._thread.ident is not None

    @property
    def is_closed(self) -> bool:
        """Say whether no further chunk is accepted."""
        return self._dispatcher.is_closed

    def submit(self, chunk: Chunk) -> None:
        """Run a chunk as soon as an actor is free. Raises ValueError after `close`."""

        def accept() -> list[Decision]:
            if self._dispatcher.is_closed:
                raise ValueError("Pool not running")
            number = self._num_chunks
            self._num_chunks += 1
            self._chunks[number] = chunk
            return self._dispatcher.chunk_submitted(number)

        self._decide(accept)

    def close(self) -> None:
        """Accept nothing more, and let the actors end when the work is done."""
        self._decide(self._dispatcher.close)

    def terminate(self) -> None:
        """End the actors now; what is not finished gets a PoolTerminatedError."""
        self._decide(self._dispatcher.terminate)

    def abandon(self) -> None:
        """Terminate from a finalizer: only a note to the thread, because a finalizer must take no lock."""
        self._events.put(_Abandoned())

    def join(self) -> None:
        """Wait until all work is done and all actors have ended."""
        self._thread.join()
        if self._retiring:
            retinue.wait(self._retiring, num_returns=len(self._retiring))
            self._retiring.clear()

    def _take_results(self) -> None:
        while not self._is_done():
            match self._events.get():
                case _Finished(number, future):
                    self._finish(number, future)
                case _Dropped(chunks):
                    for chunk in chunks:
                        chunk.deliver(_failures(chunk, PoolTerminatedError("the pool was terminated")))
                case _Abandoned():
                    self._decide(self._dispatcher.terminate)

    def _is_done(self) -> bool:
        with self._lock:  # or else _decide may be about to put something
            return self._dispatcher.is_finished and self._events.empty()

    def _finish(self, number: int, future: Future[Outcomes]) -> None:
        error = future.exception()
        lives = not isinstance(error, retinue.exceptions.RetinueActorError)
        with self._lock:
            chunk = self._chunks.pop(number, None)
        if chunk is None:
            return  # terminated meanwhile
        self._decide(lambda: self._dispatcher.chunk_finished(number, worker_lives=lives))
        # Without the lock: it may end in a callback of the application, which may submit.
        chunk.deliver(future.result() if error is None else _failures(chunk, error))

    def _decide(self, decide: Callable[[], list[Decision]]) -> None:
        """Carry out a decision. What it leaves for the thread to do is put last, and wakes the thread."""
        dropped: list[Chunk] = []
        with self._lock:
            for decision in decide():
                match decision:
                    case Start(worker):
                        self._actors[worker] = self._actor_class.remote(*self._actor_args)
                    case Send(chunk, worker):
                        self._send(chunk, worker)
                    case Retire(worker):
                        self._retire(self._actors.pop(worker))
                    case Kill(worker):
                        retinue.kill(self._actors.pop(worker))
                    case Drop(chunk):
                        dropped.append(self._chunks.pop(chunk))
            if self._dispatcher.is_closed:
                self._events.put(_Dropped(dropped))

    def _send(self, number: int, worker: int) -> None:
        chunk = self._chunks[number]
        ref = self._actors[worker].run.remote(chunk.function, chunk.items, int(chunk.call))
        # The callback keeps the reference, and with it the result, until it is called.
        ref.future().add_done_callback(lambda future, ref=ref: self._events.put(_Finished(number, future)))

    def _retire(self, actor: Any) -> None:
        if self._retiring:
            _, self._retiring = retinue.wait(self._retiring, num_returns=len(self._retiring), timeout=0)
        self._retiring.append(actor.__ray_terminate__.remote())


def _failures(chunk: Chunk, error: BaseException) -> Outcomes:
    """Give every item of a chunk that did not come back the same exception."""
    as_exception = error if isinstance(error, Exception) else RuntimeError(repr(error))
    return [Failure(as_exception, "") for _ in chunk.items]
