from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from typing import Any

import pytest

import retinue
from retinue.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    PendingCallsLimitExceeded,
    RetinueActorError,
    RetinueTaskError,
    TaskCancelledError,
)


@retinue.remote(num_cpus=0)
class Counter:
    def __init__(self, value: int = 0) -> None:
        self.value = value

    def add(self, amount: int = 1) -> int:
        self.value += amount
        return self.value

    def fail(self) -> None:
        raise ValueError(self.value)

    def pid(self) -> int:
        return os.getpid()

    @retinue.method(num_returns=2)
    def two(self) -> tuple[int, int]:
        return self.value, -self.value

    def count_to(self, n: int) -> Any:
        yield from range(n)

    def leave(self) -> None:
        retinue.actor.exit_actor()


def test_calls_of_one_caller_run_in_order() -> None:
    counter = Counter.remote(10)
    assert retinue.get([counter.add.remote() for _ in range(500)]) == list(range(11, 511))


def test_several_returns_streams_and_errors() -> None:
    counter = Counter.remote(3)
    assert retinue.get(counter.two.remote()) == [3, -3]
    assert [retinue.get(r) for r in counter.count_to.remote(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="3"):
        retinue.get(counter.fail.remote())
    assert retinue.get(counter.add.remote()) == 4


def test_a_constructor_that_raises_fails_every_call_with_its_traceback() -> None:
    @retinue.remote(num_cpus=0)
    class Broken:
        def __init__(self) -> None:
            raise LookupError("no such model")

        def call(self) -> None: ...

    broken = Broken.remote()
    for _ in range(2):
        with pytest.raises(ActorDiedError, match="no such model") as caught:
            retinue.get(broken.call.remote(), timeout=20)
        assert "in __init__" in str(caught.value)
        assert not isinstance(caught.value, LookupError), "as in Ray: the actor died, whatever the reason"


def test_named_actors_are_found_and_names_are_taken_once() -> None:
    first = Counter.options(name="the one").remote(1)
    assert retinue.get(first.add.remote()) == 2
    assert retinue.get(retinue.get_actor("the one").add.remote()) == 3
    with pytest.raises(ValueError, match="the one"):
        Counter.options(name="the one").remote()
    same = Counter.options(name="the one", get_if_exists=True).remote(100)
    assert retinue.get(same.add.remote()) == 4
    with pytest.raises(ValueError, match="nobody"):
        retinue.get_actor("nobody")
    retinue.kill(first)


def test_handles_are_passed_around_and_the_last_one_ends_the_actor() -> None:
    @retinue.remote
    def use(counter: Any) -> int:
        return retinue.get(counter.add.remote(5))

    @retinue.remote(num_cpus=0)
    class Keeper:
        def keep(self, counter: Any) -> None:
            self.counter = counter

        def use(self) -> int:
            return retinue.get(self.counter.add.remote())

        def drop(self) -> None:
            del self.counter

    counter = Counter.remote()
    pid = retinue.get(counter.pid.remote())
    assert retinue.get(use.remote(counter)) == 5
    keeper = Keeper.remote()
    retinue.get(keeper.keep.remote(counter))
    pending = counter.add.remote()
    del counter
    assert retinue.get(pending) == 6
    assert retinue.get(keeper.use.remote()) == 7
    retinue.get(keeper.drop.remote())
    _until(lambda: not _is_alive(pid))


def test_an_async_actor_interleaves_its_calls() -> None:
    @retinue.remote(num_cpus=0)
    class Async:
        def __init__(self) -> None:
            self.event = asyncio.Event()

        async def wait(self) -> str:
            await self.event.wait()
            return "woken"

        async def wake(self) -> None:
            self.event.set()

        async def stream(self, n: int) -> Any:
            for i in range(n):
                await asyncio.sleep(0)
                yield i

        async def forever(self) -> None:
            await asyncio.sleep(1000)

    actor = Async.remote()
    waiting = [actor.wait.remote() for _ in range(10)]
    retinue.get(actor.wake.remote())
    assert retinue.get(waiting) == ["woken"] * 10
    assert [retinue.get(r) for r in actor.stream.remote(5)] == [0, 1, 2, 3, 4]
    endless = actor.forever.remote()
    retinue.cancel(endless)
    with pytest.raises(TaskCancelledError):
        retinue.get(endless, timeout=10)


def test_a_threaded_actor_and_concurrency_groups_run_calls_at_once() -> None:
    @retinue.remote(num_cpus=0, concurrency_groups={"io": 2})
    class Threaded:
        def __init__(self) -> None:
            self.barrier = threading.Barrier(2)

        @retinue.method(concurrency_group="io")
        def meet(self) -> int:
            return self.barrier.wait(timeout=20)

        def quick(self) -> str:
            return "quick"

    actor = Threaded.remote()
    assert sorted(retinue.get([actor.meet.remote(), actor.meet.remote()], timeout=30)) == [0, 1]
    assert retinue.get(actor.quick.remote()) == "quick"


def test_a_killed_process_restarts_and_repeats_only_what_may_be_repeated() -> None:
    actor = Counter.options(max_restarts=1, max_task_retries=1).remote(7)
    assert retinue.get(actor.add.remote()) == 8
    os.kill(retinue.get(actor.pid.remote()), signal.SIGKILL)
    assert retinue.get(actor.add.remote(), timeout=30) == 8, "its constructor ran again"
    os.kill(retinue.get(actor.pid.remote()), signal.SIGKILL)
    with pytest.raises(ActorDiedError, match="signal 9"):
        retinue.get(actor.add.remote(), timeout=30)


def test_a_call_under_way_fails_with_the_way_the_process_died() -> None:
    @retinue.remote(num_cpus=0, max_restarts=1)
    class Mortal:
        def die(self) -> None:
            os._exit(7)

        def live(self) -> str:
            return "alive"

    actor = Mortal.remote()
    with pytest.raises((ActorDiedError, ActorUnavailableError), match="code 7"):
        retinue.get(actor.die.remote(), timeout=30)
    assert retinue.get(actor.live.remote(), timeout=30) == "alive"


def test_exit_kill_and_terminate_end_an_actor() -> None:
    for end in (lambda a: a.leave.remote(), lambda a: a.__ray_terminate__.remote(), retinue.kill):
        actor = Counter.remote()
        assert retinue.get(actor.__ray_ready__.remote()) is True
        end(actor)
        with pytest.raises(ActorDiedError):
            retinue.get(actor.add.remote(), timeout=30)


@pytest.mark.parametrize("kind", ["sync", "threaded", "async"])
def test_sys_exit_ends_an_actor_and_a_code_lets_it_restart(kind: str) -> None:
    class Leaver:
        def __init__(self) -> None:
            self.pid = os.getpid()

        def leave(self, code: int) -> None:
            sys.exit(code)

        def get_pid(self) -> int:
            return self.pid

    class AsyncLeaver(Leaver):
        async def leave(self, code: int) -> None:
            sys.exit(code)

    options = {"num_cpus": 0, "max_restarts": 1, "max_concurrency": 2 if kind == "threaded" else None}
    cls = AsyncLeaver if kind == "async" else Leaver
    actor = retinue.remote(**options)(cls).remote()
    first = retinue.get(actor.get_pid.remote(), timeout=30)
    with pytest.raises(RetinueActorError, match="exited with code 3"):
        retinue.get(actor.leave.remote(3), timeout=30)
    assert retinue.get(actor.get_pid.options(max_task_retries=-1).remote(), timeout=30) != first
    with pytest.raises(ActorDiedError, match=r"sys\.exit\(0\) was called"):
        retinue.get(actor.leave.remote(0), timeout=30)


def test_sys_exit_in_a_task_fails_the_task() -> None:
    @retinue.remote
    def leave() -> None:
        sys.exit(2)

    with pytest.raises(RetinueTaskError, match="SystemExit: 2"):
        retinue.get(leave.remote(), timeout=30)


def test_calls_beyond_max_pending_calls_are_refused_by_an_error() -> None:
    @retinue.remote(num_cpus=0, max_pending_calls=3)
    class Slow:
        def wait(self, seconds: float) -> None:
            time.sleep(seconds)

    slow = Slow.remote()
    pending = [slow.wait.remote(0.3) for _ in range(3)]
    with pytest.raises(PendingCallsLimitExceeded):
        slow.wait.remote(0)
    retinue.get(pending)
    retinue.get(slow.wait.remote(0))


def test_two_actors_that_call_each_other_with_large_arguments_never_block() -> None:
    @retinue.remote(num_cpus=0)
    class Peer:
        async def bounce(self, other: Any, data: bytes, times: int) -> int:
            if times == 0:
                return len(data)
            return await other.bounce.remote(retinue.get_runtime_context().current_actor, data, times - 1)

    a, b = Peer.remote(), Peer.remote()
    data = bytes(10 << 20)
    sizes = retinue.get([a.bounce.remote(b, data, 4), b.bounce.remote(a, data, 4)], timeout=60)
    assert sizes == [10 << 20] * 2


def test_an_actors_method_sees_that_it_was_cancelled() -> None:
    @retinue.remote(num_cpus=0)
    class Patient:
        def wait(self) -> str:
            context = retinue.get_runtime_context()
            while not context.is_canceled():
                time.sleep(0.005)
            return "noticed"

    actor = Patient.remote()
    ref = actor.wait.remote()
    retinue.wait([ref], timeout=0.3)
    retinue.cancel(ref)
    assert retinue.get(ref, timeout=20) == "noticed"


def test_a_detached_actor_outlives_its_handles() -> None:
    Counter.options(name="kept", lifetime="detached", namespace="elsewhere").remote(5)
    actor = retinue.get_actor("kept", namespace="elsewhere")
    assert retinue.get(actor.add.remote()) == 6
    retinue.kill(actor)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _until(is_so: Any, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it never came to be so"
        time.sleep(0.005)


def test_a_second_caller_is_heard_while_the_first_calls_without_a_pause() -> None:
    """The worker reads an only caller's socket without epoll: another one's arrival must wake it."""

    @retinue.remote(num_cpus=0)
    def call_often(counter: Any) -> None:
        for _ in range(20):
            retinue.get(counter.add.remote())

    counter = Counter.remote()
    total = 0
    for _ in range(5):
        others = [call_often.remote(counter) for _ in range(2)]
        while len(retinue.wait(others, num_returns=2, timeout=0)[0]) < 2:
            retinue.get(counter.add.remote())
            total += 1
        retinue.get(others)
        total += 40
        assert retinue.get(counter.add.remote(0)) == total


def test_an_actor_starts_actors_of_its_own_class() -> None:
    # Of `__main__`, whose classes travel by value: the class is inside itself.
    source = """
class Tree:
    def __init__(self, depth):
        self.children = [Remote.remote(depth - 1) for _ in range(2)] if depth else []

    async def count(self):
        return 1 + sum([await child.count.remote() for child in self.children])

Remote = retinue.remote(num_cpus=0)(Tree)
"""
    names = {"retinue": retinue, "__name__": "__main__"}
    exec(source, names)
    assert retinue.get(names["Remote"].remote(2).count.remote(), timeout=60) == 7
