"""Metrics of a process's routers, read from what they know anyway: a request costs nothing.

Only a request that waits for a replica is timed (0.3 us). Lives here: names and tags. Does not: counting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from retinue.serve.measures import Timings, counter, gauge
from retinue.util.metrics import Sample

if TYPE_CHECKING:
    from retinue.serve.routing.router import Router


class Waits:
    """What one router counts itself."""

    __slots__ = ("by_policy", "refused", "times")

    def __init__(self) -> None:
        self.by_policy = 0  # requests for which a user's router chose
        self.refused = 0
        self.times = Timings(
            "serve_request_router_queue_wait_seconds",
            "How long requests waited for a replica, of those that had to",
            (),
        )


def samples(router: Router, source: str) -> list[Sample]:
    """`source`: "proxy", a replica's id, or "driver"."""
    tags = {"application": router.app_name, "deployment": router.deployment_name, "source": source}
    waits = router.waits
    return [
        counter(
            "serve_num_router_requests",
            "Requests that a router was given",
            router.scheduler.turn + waits.by_policy,
            tags,
        ),
        counter(
            "serve_num_router_refused_requests",
            "Requests refused because too many waited, or for too long",
            waits.refused,
            tags,
        ),
        gauge("serve_deployment_queued_queries", "Requests that wait for a replica", router.queued, tags),
        gauge(
            "serve_num_ongoing_requests_at_replicas",
            "Requests that a router has sent and that have no answer",
            router.scheduler.ongoing,
            tags,
        ),
        *waits.times.samples(tags),
    ]
