"""Users' autoscaling policies, off the loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from retinue.serve.autoscaling_options import AutoscalingPolicy
from retinue.serve.controller.policies import PolicyRunner


class Told:
    def __init__(self) -> None:
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self.failures: asyncio.Queue[str] = asyncio.Queue()

    def runner(self, policy: Any, limit_s: float = 30.0) -> PolicyRunner:
        reference = AutoscalingPolicy(policy_function="theirs:policy")
        reference._cached = policy
        return PolicyRunner(reference, self.answers.put_nowait, self.failures.put_nowait, limit_s=limit_s)


def test_it_answers_in_a_thread_of_its_own() -> None:
    async def check() -> None:
        told = Told()
        told.runner(lambda argument: (argument, threading.current_thread().name)).ask(3)
        assert await told.answers.get() == (3, "policy")

    asyncio.run(asyncio.wait_for(check(), 10))


def test_what_it_raises_is_told() -> None:
    async def check() -> None:
        told = Told()
        told.runner(lambda argument: 1 // argument).ask(0)
        assert (await told.failures.get()).startswith("the policy theirs:policy raised ZeroDivisionError")

    asyncio.run(asyncio.wait_for(check(), 10))


def test_one_that_does_not_return_is_told_of_and_not_asked_again_until_it_does() -> None:
    async def check() -> None:
        told, may_end, asked = Told(), threading.Event(), []

        def slow(argument: int) -> int:
            asked.append(argument)
            may_end.wait()
            return argument

        runner = told.runner(slow, limit_s=0.01)
        runner.ask(1)
        assert "has not returned for 0.01 s" in await told.failures.get()
        runner.ask(2)
        may_end.set()
        assert await told.answers.get() == 1
        runner.ask(3)
        assert await told.answers.get() == 3
        assert asked == [1, 3]

    asyncio.run(asyncio.wait_for(check(), 10))
