"""Runs the users' autoscaling policies, off the controller's loop and one at a time.

A policy is asked in a thread of its own. One that takes too long is told of and not asked again until it has
returned: meanwhile its last answer holds. Lives here: that. Does not: what its answer means
(`replica_autoscaling`), when it is asked (`deployments`, `applications`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from retinue.serve.autoscaling_options import AutoscalingPolicy

POLICY_LIMIT_S = 5.0

Answered = Callable[[Any], None]
Failed = Callable[[str], None]


class PolicyRunner:
    """Asks one policy. `answered` gets what it returns, `failed` why it did not; both on the loop."""

    def __init__(
        self,
        policy: AutoscalingPolicy,
        answered: Answered,
        failed: Failed,
        *,
        limit_s: float = POLICY_LIMIT_S,
    ) -> None:
        self.policy = policy
        self._answered = answered
        self._failed = failed
        self._limit_s = limit_s
        self._is_asking = False
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def is_asking(self) -> bool:
        return self._is_asking

    def ask(self, argument: Any) -> None:
        """Ask it, unless it is still at the question before."""
        if self._is_asking:
            return
        self._is_asking = True
        loop = asyncio.get_running_loop()
        self._alarm = loop.call_later(self._limit_s, self._too_long)
        # A daemon: a policy that never returns must not hold up the controller's end.
        threading.Thread(target=self._run, args=(loop, argument), name="policy", daemon=True).start()

    def _run(self, loop: asyncio.AbstractEventLoop, argument: Any) -> None:
        answer, error = None, ""
        try:
            answer = self.policy.get_policy()(argument)
        except Exception as raised:  # noqa: BLE001 - the user's policy: it is told, and nothing changes
            error = f"the policy {self.policy.policy_function} raised {type(raised).__name__}: {raised}"
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._returned, answer, error)

    def _returned(self, answer: Any, error: str) -> None:
        self._is_asking = False
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if error:
            self._failed(error)
        else:
            self._answered(answer)

    def _too_long(self) -> None:
        self._alarm = None
        self._failed(
            f"the policy {self.policy.policy_function} has not returned for {self._limit_s:g} s; "
            "it is not asked again until it does"
        )

    def close(self) -> None:
        """Its answer does not matter any more."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._answered = self._failed = _ignore


def _ignore(answer: Any) -> None:
    pass
