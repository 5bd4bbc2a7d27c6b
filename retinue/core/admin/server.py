"""The admin server's application: metrics, state, and routes of libraries, behind the cluster's token.

    GET /healthz                 without a token: the server runs
    GET /api/version
    GET /api/state/{resource}    ?filter=key=value&limit=100&detail=true&timeout=30
    GET /metrics                 Prometheus' text form

A library adds routes by an entry point of the group `retinue.admin_routes`: a function that takes an
`AdminContext` and returns Starlette routes. Lives here: the application. Does not: the process (`main`).
Needs the extra `admin`; only this module and `main` import it.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from importlib import metadata
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

import retinue
from retinue.core.admin.ask import RetinueStateApiException, ServerUnavailable
from retinue.core.admin.context import DEFAULT_TIMEOUT_S, ROUTES_GROUP, AdminContext
from retinue.core.admin.filters import DEFAULT_LIMIT, parse_filter
from retinue.core.admin.metrics import CONTENT_TYPE, cluster_metrics
from retinue.core.admin.schemas import SCHEMAS
from retinue.core.admin.state import StateReader

logger = logging.getLogger(__name__)

METRICS_TIMEOUT_S = 10.0
OPEN_PATHS = ("/healthz",)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class TokenRequired:
    """Lets nobody through, on any path but the open ones, who does not send the token."""

    def __init__(self, app: App, token: bytes) -> None:
        self._app = app
        self._expected = b"Bearer " + token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS or self._is_allowed(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "the cluster's token is needed"})
        else:
            text = "send the cluster's token: 'Authorization: Bearer <token>'"
            headers = {"WWW-Authenticate": "Bearer"}
            await JSONResponse({"error": text}, 401, headers)(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)


def make_app(context: AdminContext, token: bytes, routes: Sequence[BaseRoute] = ()) -> Starlette:
    """The application; `routes`: those of libraries."""
    own = [
        Route("/healthz", lambda request: PlainTextResponse("ok\n")),
        Route("/api/version", lambda request: _version(context)),
        Route("/api/state/{resource}", lambda request: _state(context, request)),
        Route("/metrics", lambda request: _metrics(context)),
    ]
    app = Starlette(routes=[*own, *routes], exception_handlers={Exception: _failed, HTTPException: _refused})
    app.add_middleware(TokenRequired, token=token)
    return app


def _version(context: AdminContext) -> Response:
    return JSONResponse({"version": retinue.__version__, "cluster_id": context.cluster_id})


def _metrics(context: AdminContext) -> Response:
    try:
        text = cluster_metrics(context.asker(METRICS_TIMEOUT_S))
    except ServerUnavailable as error:
        raise HTTPException(503, str(error)) from error
    return Response(text, headers={"Content-Type": CONTENT_TYPE})


def _state(context: AdminContext, request: Request) -> Response:
    resource = request.path_params["resource"].replace("-", "_")
    if resource not in SCHEMAS:
        raise HTTPException(404, f"there are {', '.join(SCHEMAS)}; no {resource}")
    query = request.query_params
    try:
        listing = StateReader(context.asker(float(query.get("timeout", DEFAULT_TIMEOUT_S)))).listing(
            resource,
            filters=[parse_filter(text) for text in query.getlist("filter")],
            limit=int(query.get("limit", DEFAULT_LIMIT)),
            detail=query.get("detail", "").lower() in ("1", "true"),
            raise_on_missing_output=False,
        )
    except ServerUnavailable as error:
        raise HTTPException(503, str(error)) from error
    except (RetinueStateApiException, ValueError) as error:
        raise HTTPException(400, str(error)) from error
    return JSONResponse({"rows": [state.asdict() for state in listing.states], "notes": listing.notes})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"{type(error).__name__}: {error}"}, 500)


def library_routes(context: AdminContext) -> list[BaseRoute]:
    """The routes that installed libraries add; one that fails is left out, and logged."""
    found: list[BaseRoute] = []
    for entry in metadata.entry_points(group=ROUTES_GROUP):
        try:
            found.extend(entry.load()(context))
        except Exception:
            logger.exception("the admin routes of %s are left out", entry.value)
    return found
