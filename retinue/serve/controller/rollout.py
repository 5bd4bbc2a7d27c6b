"""Which version of a deployment shall run, and when the next replica of it may be started.

A deployment that cannot be brought up goes back to the version that worked before: what was wanted is kept,
with the reasons, until something else is deployed. Starts that fail wait ever longer. Lives here: these two
decisions. Does not: how one version takes the place of another (`reconciler`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST_BACKOFF_S = 0.25
MAX_BACKOFF_S = 64.0
RETRIES_PER_REPLICA = 3
REASONS_KEPT = 5


@dataclass(slots=True)
class StartFailures:
    """Starts of one version that failed since the last success."""

    limit: int
    count: int = 0
    not_before: float = 0.0
    reasons: list[str] = field(default_factory=list)

    def failed(self, reason: str, now: float) -> None:
        self.count += 1
        wait_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(self.count - 1, 16))
        # Replicas of one batch fail together: each counts, but they wait once.
        self.not_before = max(self.not_before, now + wait_s)
        if reason not in self.reasons:
            self.reasons.append(reason)
            del self.reasons[:-REASONS_KEPT]

    def succeeded(self) -> None:
        self.count = 0
        self.not_before = 0.0
        self.reasons.clear()

    @property
    def is_exhausted(self) -> bool:
        return self.count >= self.limit

    @property
    def last_reason(self) -> str:
        return self.reasons[-1] if self.reasons else ""


def failure_limit(max_constructor_retry_count: int, num_replicas: int) -> int:
    """Failures in total after which a version that never ran is given up."""
    return min(max_constructor_retry_count, RETRIES_PER_REPLICA * max(1, num_replicas))


class Rollout:
    """The versions of one deployment: the one that is wanted, and the last that worked.

    `target_version` is what replicas shall be of: the wanted one, until it has failed; then the last good
    one, or, if there never was one, still the wanted: what runs of it stays, and nothing more is started.
    """

    def __init__(self, version: str, *, limit: int, good: str | None = None, has_run: bool = False) -> None:
        self.wanted = version
        self.good = version if has_run else good
        self.is_failed = False
        self.failure = ""
        self.failures = StartFailures(limit)

    def deploy(self, version: str, *, limit: int) -> bool:
        """Want another version; or the same once more, which gives a failed one a new chance.

        True if replicas have to change for it.
        """
        self.failures.limit = limit
        if version == self.wanted and not self.is_failed:
            return False
        self.wanted = version
        self.is_failed = False
        self.failure = ""
        self.failures = StartFailures(limit)
        return True

    @property
    def target_version(self) -> str:
        return self.good if self.is_failed and self.good is not None else self.wanted

    @property
    def is_updating(self) -> bool:
        """The wanted version has not yet proven itself."""
        return self.good != self.wanted and not self.is_failed

    def may_start(self, now: float) -> bool:
        is_hopeless = self.is_failed and self.good is None
        return not is_hopeless and now >= self.failures.not_before

    def replica_ready(self, version: str) -> None:
        if version == self.target_version:
            self.failures.not_before = 0.0
            if not self.is_updating:
                self.failures.succeeded()

    def completed(self) -> None:
        """All replicas of the wanted version run, and no other does."""
        if not self.is_failed:
            self.good = self.wanted
            self.failures.succeeded()

    def replica_failed(self, version: str, reason: str, now: float) -> bool:
        """A replica did not start, or died, or was found ill. True if that ends the update."""
        if version != self.target_version:
            return False
        self.failures.failed(reason, now)
        if self.is_updating and self.failures.is_exhausted:
            return self.fail(reason)
        return False

    def fail(self, reason: str) -> bool:
        """Give the wanted version up. Starts of the one before wait for nothing."""
        self.is_failed = True
        self.failure = reason
        self.failures.not_before = 0.0
        return True
