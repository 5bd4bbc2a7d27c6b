"""What routes of libraries are given: the cluster, to ask it. Free of the web server's packages."""

from __future__ import annotations

from dataclasses import dataclass

from retinue.core.admin.ask import Asker, Target

ROUTES_GROUP = "retinue.admin_routes"
DEFAULT_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class AdminContext:
    """What routes of libraries may use: the cluster, to ask it."""

    target: Target
    cluster_id: str

    def asker(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> Asker:
        return Asker(self.target, timeout_s=timeout_s)
