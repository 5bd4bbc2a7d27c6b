"""A cluster, for libraries that look at it from outside: in the admin server, or from a command.

Lives here: asking head and nodes, reading the key-value table, connecting to doors, all without a runtime.
Does not: finding the cluster (`ask`), routes (`server`). Free of the web server's packages.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from retinue.core import current
from retinue.core.admin.ask import NO_ID, Asker, Target
from retinue.core.admin.metrics import cluster_metrics
from retinue.core.metrics_report import METRICS_MODULE
from retinue.core.wire.messages import Address, KvGet

if TYPE_CHECKING:
    from retinue.core.doors.calling import DoorConnection

ROUTES_GROUP = "retinue.admin_routes"
DEFAULT_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class AdminContext:
    """What routes of libraries may use: the cluster, to ask it. `cluster_id` may be "": not asked for."""

    target: Target
    cluster_id: str = ""

    @property
    def address(self) -> str:
        """The head's address, for `retinue.init` and the like: "host:port", or its Unix socket."""
        head = self.target.head
        return f"{head.host}:{head.port}" if head.port else head.path

    def asker(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> Asker:
        return Asker(self.target, timeout_s=timeout_s)

    def get_value(self, namespace: str, key: bytes, timeout_s: float = DEFAULT_TIMEOUT_S) -> bytes | None:
        """A value of the key-value table; None if there is none. Raises ServerUnavailable."""
        answer, value = self.asker(timeout_s).request_head(KvGet(0, namespace, key))
        return value if answer.found else None

    def metrics(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> str:
        """The metrics page of the whole cluster, in Prometheus' text form. Raises ServerUnavailable.

        Other processes' values are up to 2 s old; those of this one, if it is connected, are not.
        """
        return cluster_metrics(self.asker(timeout_s), _own_metrics())

    async def connect(self, address: Address, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> DoorConnection:
        """Connect to the doors of the process at `address`, as `doors.connect` does within a cluster.

        Raises DoorClosedError (retryable) if nobody listens there, AuthenticationError, TimeoutError.
        """
        from retinue.core.doors.process import connect_as

        is_near = _is_near(address)
        own = Address(os.urandom(16), address.node_id if is_near else NO_ID, "")
        return await connect_as(own, address, self.target.token, timeout_s=timeout_s)


def _own_metrics() -> tuple[dict[str, str], list[Any]] | None:
    runtime = current.runtime_or_none()
    module = sys.modules.get(METRICS_MODULE)
    if runtime is None or module is None:
        return None
    labels = {
        "node": runtime.node_id.hex()[:12],
        "worker": runtime.address.worker_id.hex()[:12],
        "job": runtime.job_id.hex(),
    }
    return labels, module.snapshot()


def _is_near(address: Address) -> bool:
    """Whether the process is on this machine."""
    return bool(address.path) and os.path.exists(address.path)
