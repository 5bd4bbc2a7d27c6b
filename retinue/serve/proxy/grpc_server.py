"""The proxy's gRPC server: users' servicers, and beside them health, reflection and a service of our own.

grpc has its own sockets: they cannot be kept by the node's agent as those of HTTP are. Proxies of one node
share the port by SO_REUSEPORT, and connections of one that dies are made anew by its clients.

Lives here: the server's life, which application a call is for, access log and metrics. Does not: a call
(`grpc_calls`), which replica answers (`routing`). This module and those that it imports
are the ones that need grpc.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from retinue.serve import grpc_status, servicers
from retinue.serve.access_log import Access, AccessLog
from retinue.serve.config import gRPCOptions
from retinue.serve.grpc_status import Status
from retinue.serve.messages import Route, RouteTable
from retinue.serve.proxy import grpc_own
from retinue.serve.proxy.grpc_calls import GrpcCall, GrpcMethod
from retinue.serve.proxy.measures import RequestMeasures
from retinue.serve.proxy.requests import IdMaker

if TYPE_CHECKING:
    from retinue.serve.routing.process import RouterSet
    from retinue.serve.routing.router import Router

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 2**31 - 1  # grpc's own limit
LOG_FLUSH_S = 0.02

_NOT_READY = Status(grpc_status.UNAVAILABLE, "this proxy has not heard of any application yet")
_DRAINING = Status(grpc_status.UNAVAILABLE, "this proxy is draining")
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class GrpcServer:
    """Build it, `start` it, `drain` it, `close` it; all on one loop."""

    def __init__(
        self,
        routers: RouterSet,
        options: gRPCOptions,
        *,
        access_log: AccessLog | None,
        measures: RequestMeasures,
    ) -> None:
        self.request_timeout_s = options.request_timeout_s
        self.ids = IdMaker()
        self.ongoing = 0  # calls
        self._options = options
        self._routers = routers
        self._access_log = access_log
        self._measures = measures
        measures.ongoing = lambda: self.ongoing
        self._routes: dict[str, Route] = {}  # by application
        self._has_routes = False
        self._is_draining = False
        self._by_app: dict[str, Router] = {}
        self._methods: dict[str, GrpcMethod] = {}
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()
        self._tasks: list[asyncio.Task[None]] = []

    # --- its life

    async def start(self) -> str:
        """Load the servicers and listen; returns the address. Raises what loading them raises, and OSError
        where the port cannot be had."""
        for path in self._options.grpc_servicer_functions:
            # In a thread: the modules are the user's.
            methods = await asyncio.to_thread(servicers.load, path)
            self._methods |= {name: GrpcMethod(self, method) for name, method in methods.items()}
        services = sorted({name.split("/")[1] for name in self._methods})
        server = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 1),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            )
        )
        server.add_generic_rpc_handlers((_Methods(self._methods),))
        server.add_generic_rpc_handlers(grpc_own.handlers(self._status, lambda: list(self._routes)))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        for service in ("", *services):
            await self._health.set(service, _SERVING if self._has_routes else _NOT_SERVING)
        if self._options.enable_reflection:
            names = [*services, grpc_own.SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME]
            reflection.enable_server_reflection(names, server)
        host = self._options.host
        host = f"[{host}]" if ":" in host else host
        try:
            port = server.add_insecure_port(f"{host}:{self._options.port}")
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen on {host}:{self._options.port}: {error}") from None
        await server.start()
        self._server = server
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._flush_log()))
        self._routers.on_routes(self.use_routes)
        return f"{host}:{port}"

    async def drain(self, timeout_s: float) -> None:
        """Tell clients to go elsewhere; returns when the last call is answered, or after `timeout_s`, which
        cancels what still runs."""
        self._is_draining = True
        await self._health.enter_graceful_shutdown()
        if self._server is not None:
            await self._server.stop(timeout_s)

    async def close(self) -> None:
        """End everything now."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._measures.close()
        if self._access_log is not None:
            self._access_log.close()

    async def _flush_log(self) -> None:
        while True:
            await asyncio.sleep(LOG_FLUSH_S)
            if self._access_log is not None:
                try:
                    self._access_log.flush()
                except OSError:
                    logger.exception("the access log cannot be written")

    # --- applications

    def use_routes(self, table: RouteTable) -> None:
        """The controller's last word on which applications there are."""
        if self._server is None:
            return  # it has been closed
        self._routes = {route.app_name: route for route in table.routes}
        self._by_app = {}
        for route in table.routes:
            self.router(route)  # connects to the replicas now, not with the first call
        if not self._has_routes:
            self._has_routes = True
            self._tasks.append(asyncio.get_running_loop().create_task(self._tell_serving()))

    async def _tell_serving(self) -> None:
        for service in {"", *(name.split("/")[1] for name in self._methods)}:
            await self._health.set(service, _SERVING)

    def router(self, route: Route) -> Router:
        """The router of an application's ingress."""
        router = self._by_app.get(route.app_name)
        if router is None:
            router = self._routers.get(route.app_name, route.deployment_name)
            self._by_app[route.app_name] = router
        return router

    def find(self, app_name: str) -> Route | Status:
        """The application that a call names; where there is one alone, it need not be named."""
        route = self._routes.get(app_name)
        if route is None and not app_name and len(self._routes) == 1:
            route = next(iter(self._routes.values()))
        if route is not None:
            return route
        if not self._has_routes:
            return _NOT_READY
        if app_name:
            problem = f"there is no application {app_name!r}"
        else:
            problem = "the metadata names no application, and there are several or none"
        known = ", ".join(sorted(self._routes)) or "none"
        return Status(grpc_status.NOT_FOUND, grpc_status.cut(f"{problem} (applications: {known})"))

    def _status(self) -> Status:
        if self._is_draining:
            return _DRAINING
        return Status(grpc_status.OK, "success") if self._has_routes else _NOT_READY

    # --- what is remembered

    def finished(self, call: GrpcCall, code: int, seconds: float) -> None:
        """A call is over: count it, and log it."""
        self.ongoing -= 1
        name = grpc_status.name_of(code)
        self._measures.finished(call, name, seconds)
        if self._access_log is not None:
            self._access_log.add(
                Access(
                    time.time(),
                    call.head.peer,
                    "POST",
                    call.method,
                    name,
                    seconds,
                    call.request_id,
                    call.route,
                    call.app_name,
                    "grpc",
                )
            )

    def first_chunk(self, call: GrpcCall, seconds: float) -> None:
        """A streamed answer has begun."""
        self._measures.first_chunk(call, seconds)

    @staticmethod
    def log_failure(call: GrpcCall, error: Exception) -> None:
        """For us, not for the client."""
        logger.error(
            "call %s of %s (application %s) failed: %s", call.request_id, call.method, call.app_name, error
        )


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds the handler of a call."""

    def __init__(self, methods: dict[str, GrpcMethod]) -> None:
        self._handlers = {name: method.handler for name, method in methods.items()}

    def service(self, handler_call_details: Any) -> Any:
        return self._handlers.get(handler_call_details.method)
