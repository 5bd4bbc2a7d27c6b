"""Routes of libraries in the cluster's admin server.

A distribution names a function in the entry point group `ROUTES_GROUP`:

    [project.entry-points."retinue.admin_routes"]
    mine = "mine.admin:routes"

The admin server calls it once, at its start, and adds what it returns behind the cluster's token:

    def routes(context: AdminContext) -> list[BaseRoute]:
        return [Route("/api/mine/things", lambda request: JSONResponse(things(context)))]

One that raises is left out, and logged. Lives here: the names. Does not: the server (`admin.server`), which
needs the extra `admin`; not even this module imports it, so that a library's other processes go without.
"""

from __future__ import annotations

from retinue.core.admin.context import ROUTES_GROUP, AdminContext

__all__ = ["ROUTES_GROUP", "AdminContext"]
