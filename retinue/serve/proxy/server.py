"""The proxy's HTTP server: its socket, its connections' time-outs, and what it answers itself.

Lives here: serving, draining, the proxy's own paths, the access log's rhythm. Does not: one connection
(`http`, `asgi_side`), which replica answers (`routing`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from retinue.serve.access_log import Access, AccessLog
from retinue.serve.messages import HttpHead, Route, RouteTable
from retinue.serve.proxy import answers
from retinue.serve.proxy.accepting import Accepting
from retinue.serve.proxy.answers import Answer
from retinue.serve.proxy.asgi_side import AsgiSide
from retinue.serve.proxy.http import ProxyProtocol
from retinue.serve.proxy.measures import RequestMeasures
from retinue.serve.proxy.requests import IdMaker, Passage
from retinue.serve.proxy.routes import RouteFinder

if TYPE_CHECKING:
    from retinue.serve.routing.process import RouterSet
    from retinue.serve.routing.router import RequestMeta, Router

logger = logging.getLogger(__name__)

SWEEP_S = 0.5
# Rarely enough to be cheap, often enough that writing the lines (1.5 us each) holds up no request.
LOG_FLUSH_S = 0.02
DRAIN_LOOK_S = 0.05
OWN_PATHS = ("/-/healthz", "/-/routes", "/livez", "/readyz", "/metrics")


@dataclass(frozen=True)
class Limits:
    """What one client may ask of the proxy. Seconds and bytes; `keep_alive_s`: of an idle connection."""

    max_header_bytes: int = 64 * 1024
    max_body_bytes: int = 16 * 1024**3
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    write_timeout_s: float = 60.0
    keep_alive_s: float = 90.0
    backlog: int = 2048
    max_connections: int | None = None


@dataclass(frozen=True)
class Tls:
    """Paths of PEM files. `ca_certs`: clients must show a certificate signed by one of them."""

    certfile: str
    keyfile: str
    password: str | None = None
    ca_certs: str | None = None


class HttpServer:
    """Build it, `start` it on a listening socket, `drain` it, `close` it; all on one loop."""

    def __init__(
        self,
        routers: RouterSet,
        *,
        limits: Limits,
        access_log: AccessLog | None,
        measures: RequestMeasures,
        metrics_page: Callable[[], Awaitable[bytes]],
        root_path: str = "",
        shows_errors: bool = False,
        request_timeout_s: float | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.limits = limits
        self.root_path = root_path
        self.shows_errors = shows_errors
        self.request_timeout_s = request_timeout_s
        self.ids = IdMaker()
        self.routes = RouteFinder()
        self.own_paths = frozenset(OWN_PATHS)
        self.is_draining = False
        self._has_routes = False
        self._routers = routers
        self._by_route: dict[str, Router] = {}
        self._access_log = access_log
        self._measures = measures
        measures.open_connections = lambda: self.open_connections
        measures.ongoing = self._ongoing
        self._metrics_page = metrics_page
        self._scrape: asyncio.Task[bytes] | None = None
        self._servers: list[asyncio.Server | Accepting] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._state = ServerState()
        self._config = Config(
            AsgiSide(self),
            http=ProxyProtocol,
            ws="websockets-sansio",
            lifespan="off",
            log_config=None,
            access_log=False,
            ws_per_message_deflate=False,
            ssl_certfile=tls.certfile if tls is not None else None,
            ssl_keyfile=tls.keyfile if tls is not None else None,
            ssl_keyfile_password=tls.password if tls is not None else None,
            ssl_ca_certs=tls.ca_certs if tls is not None else None,
            ssl_cert_reqs=2 if tls is not None and tls.ca_certs else 0,  # ssl.CERT_REQUIRED
        )

    # --- its life

    async def start(self, listener: socket.socket) -> None:
        """Serve on a listening socket, which stays the caller's."""
        loop = asyncio.get_running_loop()
        self._config.load()

        def protocol() -> ProxyProtocol:
            return ProxyProtocol(self._config, self._state, self, loop)

        limit = self.limits.max_connections
        if limit is not None:
            accepting = Accepting(limit, protocol, self._config.ssl)
            self._state.connections = accepting.connections
            accepting.start(listener)
            self._servers.append(accepting)
        else:
            self._servers.append(
                await loop.create_server(
                    protocol, sock=listener, ssl=self._config.ssl, backlog=self.limits.backlog
                )
            )
        self._tasks = [
            loop.create_task(self._repeat(SWEEP_S, self._sweep)),
            loop.create_task(self._repeat(LOG_FLUSH_S, self._flush_log)),
        ]

    async def drain(self, timeout_s: float) -> None:
        """Take no more connections, and end those that there are behind their present request.

        Returns when none is left, or after `timeout_s`.
        """
        self.is_draining = True
        for server in self._servers:
            server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        deadline = time.monotonic() + timeout_s
        while self._state.connections and time.monotonic() < deadline:  # noqa: ASYNC110 - uvicorn's set
            await asyncio.sleep(DRAIN_LOOK_S)

    async def close(self) -> None:
        """End everything now."""
        for server in self._servers:
            server.close()
        for connection in list(self._state.connections):
            connection.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._measures.close()
        if self._access_log is not None:
            self._access_log.close()

    @property
    def open_connections(self) -> int:
        return len(self._state.connections)

    def _ongoing(self) -> int:
        """Requests that are being answered; for any thread."""
        connections = list(self._state.connections)
        return sum(isinstance(each, ProxyProtocol) and each.is_answering for each in connections)

    @staticmethod
    async def _repeat(interval_s: float, function: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(interval_s)
            try:
                function()
            except Exception:
                logger.exception("the proxy's %s failed", function.__name__)

    def _sweep(self) -> None:
        now = time.monotonic()
        for connection in list(self._state.connections):
            if isinstance(connection, ProxyProtocol):
                connection.sweep(now)

    def _flush_log(self) -> None:
        if self._access_log is not None:
            self._access_log.flush()

    # --- routes

    def use_routes(self, table: RouteTable) -> None:
        """The controller's last word on which applications there are."""
        self.routes = RouteFinder(table.routes)
        self._has_routes = True
        self._by_route = {}
        for route in table.routes:
            self.router(route)  # connects to the replicas now, not with the first request

    def router(self, route: Route) -> Router:
        """The router of a route's ingress."""
        router = self._by_route.get(route.prefix)
        if router is None:
            router = self._routers.get(route.app_name, route.deployment_name)
            self._by_route[route.prefix] = router
        return router

    def head_of(
        self, scope: Any, route: Route, meta: RequestMeta, passage: Passage, subprotocols: Sequence[str] = ()
    ) -> HttpHead:
        """A request's head as the replica gets it."""
        return HttpHead(
            scope.get("method", "GET"),  # websockets have none
            scope["path"],
            scope["raw_path"],
            scope["query_string"],
            scope["headers"],
            route.prefix,
            self.root_path,
            scope["scheme"],
            scope["http_version"],
            scope["client"],
            scope["server"],
            meta.model_id,
            meta.session_id,
            list(subprotocols),
            passage.ignores_disconnect,
            self.shows_errors,
        )

    # --- what it answers itself

    def own_answer(self, path: str) -> Answer:
        """The answer to one of `OWN_PATHS` but the metrics', or to a path that is no application's."""
        if path == "/livez":
            return Answer(200, b"success")
        if path in ("/-/healthz", "/readyz"):
            if self.is_draining:
                return answers.DRAINING
            return Answer(200, b"success") if self._has_routes else answers.NOT_READY
        if path == "/-/routes":
            names = {route.prefix: route.app_name for route in self.routes.routes}
            return Answer(200, json.dumps(names).encode(), [answers.JSON])
        if not self._has_routes:
            return answers.NOT_READY
        return answers.not_found(path)

    async def metrics_answer(self) -> Answer:
        """The answer to `METRICS_PATH`. Those who ask at the same time get the same page."""
        if self._scrape is None or self._scrape.done():
            self._scrape = asyncio.ensure_future(self._metrics_page())
        page = await asyncio.shield(self._scrape)
        return Answer(200, page, [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")])

    # --- what is remembered

    def finished(self, passage: Passage, status: int, client: Any) -> None:
        """A request is over: count it, and log it, once."""
        if passage.is_over:
            return
        passage.is_over = True
        seconds = time.monotonic() - passage.began
        self._measures.finished(passage, status, seconds)
        if self._access_log is not None:
            self._access_log.add(
                Access(
                    time.time(),
                    f"{client[0]}:{client[1]}" if client else "",
                    passage.method,
                    passage.path,
                    status,
                    seconds,
                    passage.request_id,
                    passage.route,
                    passage.app_name,
                )
            )

    def first_chunk(self, passage: Passage) -> None:
        """A streamed answer has begun."""
        self._measures.first_chunk(passage, time.monotonic() - passage.began)

    def answer_to(self, error: Exception, passage: Passage) -> Answer:
        """What a request's client is told of an error; one that is not foreseen is logged, too."""
        answer = answers.of_error(error)
        if answer.is_unexpected:
            self.log_failure(passage, error)
        return answer

    @staticmethod
    def log_failure(passage: Passage, error: Exception) -> None:
        """For us, not for the client."""
        logger.error(
            "request %s to %r (application %s) failed: %s",
            passage.request_id,
            passage.path,
            passage.app_name,
            error,
        )
