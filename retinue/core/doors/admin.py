"""Routes of libraries in the cluster's admin server, and the same view of a cluster for their commands.

A distribution names a function in the entry point group `ROUTES_GROUP`:

    [project.entry-points."retinue.admin_routes"]
    mine = "mine.admin:routes"

The admin server calls it once, at its start, and adds what it returns behind the cluster's token:

    def routes(context: AdminContext) -> list[BaseRoute]:
        return [Route("/api/mine/things", lambda request: JSONResponse(things(context)))]

One that raises is left out, and logged. A command gets an AdminContext from `find_cluster`.

Lives here: the names. Does not: the server (`admin.server`), which needs the extra `admin`; not even this
module imports it, so that a library's other processes go without.
"""

from __future__ import annotations

from retinue.core.admin.ask import ServerUnavailable, find_target
from retinue.core.admin.context import ROUTES_GROUP, AdminContext

__all__ = ["ROUTES_GROUP", "AdminContext", "ServerUnavailable", "find_cluster"]


def find_cluster(address: str | None = None) -> AdminContext:
    """The cluster whose head is at `address`; without one (or "auto") the one that `retinue status` finds.

    Drivers' own clusters are found if there is no other. Raises ConnectionError if there is none.
    """
    return AdminContext(find_target(address))
