"""The proxy's process: a detached actor on each node, for each of its slots.

Lives here: putting its parts together, starting and ending them. Does not: what they do; when proxies start
(`controller`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import TYPE_CHECKING

from msgspec import Struct

from retinue.core import doors
from retinue.core.doors.admin import ServerUnavailable, find_cluster
from retinue.serve import logs
from retinue.serve.access_log import AccessLog
from retinue.serve.config import HTTPOptions, gRPCOptions
from retinue.serve.proxy.measures import RequestMeasures
from retinue.serve.proxy.server import HttpServer, Limits, Tls
from retinue.serve.routing.process import RouterSet, use_this_loop
from retinue.util.metrics import render_prometheus, snapshot

if TYPE_CHECKING:
    from retinue.serve.proxy.grpc_server import GrpcServer

DRAIN_TIMEOUT_S = 30.0
METRICS_TIMEOUT_S = 5.0
_FOREVER_S = 7 * 24 * 3600.0
_ANY_SIZE = 1 << 62
# Clients that come before the routes are known wait so long, in the listener's queue.
ROUTES_WAIT_S = 3.0


class ProxyStarted(Struct, frozen=True):
    """Where a proxy listens; "" for what it does not serve."""

    pid: int
    http_address: str
    grpc_address: str = ""
    log_file: str = ""


class ProxyActor:
    """Serves HTTP (and gRPC) on its slot of a node. `ready` starts it."""

    def __init__(
        self,
        node_id: str,
        slot: int,
        http_options_json: str,
        grpc_options_json: str,
        logging_config_json: str = "",
    ) -> None:
        self._node_id = node_id
        self._slot = slot
        self._http_options = HTTPOptions.model_validate_json(http_options_json)
        self._grpc_options = gRPCOptions.model_validate_json(grpc_options_json)
        self._http: HttpServer | None = None
        self._grpc: GrpcServer | None = None
        self._listener: socket.socket | None = None
        self._starting = asyncio.Lock()
        self._started: ProxyStarted | None = None
        self._access_logs: list[AccessLog] = []
        self._use_logging(logging_config_json)

    async def ready(self) -> ProxyStarted:
        """Start serving, once; returns when connections are accepted.

        Raises ListenerError where the port cannot be had, OSError and ssl.SSLError for certificates, and what
        importing the servicers of gRPC raises.
        """
        async with self._starting:
            if self._started is None:
                self._started = await self._start()
            return self._started

    async def _start(self) -> ProxyStarted:
        router_set = use_this_loop("proxy")
        address = grpc_address = ""
        if self._grpc_options.grpc_servicer_functions:
            grpc_address = await self._start_grpc(router_set)
        if self._http_options.host is not None:
            try:
                await self._start_http(router_set)
            except BaseException:
                await self._close_grpc()  # `ready` will be called again
                raise
            assert self._listener is not None
            host, port = self._listener.getsockname()[:2]
            scheme = "https" if self._http_options.ssl_certfile else "http"
            address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        return ProxyStarted(os.getpid(), address, grpc_address, str(self._log_file.path))

    def _use_logging(self, config_json: str) -> None:
        for access_log in self._access_logs:
            access_log.flush()
        self._log_settings = logs.read_settings(config_json.encode())
        self._log_file = logs.configure(
            self._log_settings,
            file_name=f"proxy_{self._slot}.log",
            component="proxy",
            component_id=f"{self._node_id[:12]}-{self._slot}",
            terminal_level=logging.WARNING,
        )
        for access_log in self._access_logs:
            access_log.use(self._log_file, **self._access_options())

    def _access_options(self) -> dict[str, bool]:
        settings = self._log_settings
        return {"is_json": settings.encoding == "JSON", "is_on": settings.enable_access_log}

    def _make_access_log(self) -> AccessLog:
        access_log = AccessLog(self._log_file)
        access_log.use(self._log_file, **self._access_options())
        self._access_logs.append(access_log)
        return access_log

    async def configure_logs(self, logging_config_json: str) -> str:
        """Log by these options (JSON of LoggingConfig) from now on, to the file that this returns."""
        self._use_logging(logging_config_json)
        return str(self._log_file.path)

    async def _start_http(self, router_set: RouterSet) -> None:
        options = self._http_options
        server = HttpServer(
            router_set,
            limits=limits_of(options),
            access_log=self._make_access_log(),
            measures=RequestMeasures(),
            metrics_page=lambda: asyncio.to_thread(_metrics_page),
            root_path=options.root_path,
            shows_errors=options.expose_tracebacks,
            request_timeout_s=options.request_timeout_s,
            tls=tls_of(options),
        )
        has_routes = asyncio.Event()
        router_set.on_routes(server.use_routes)
        router_set.on_routes(lambda table: has_routes.set())
        self._listener = await asyncio.to_thread(
            doors.open_listener,
            listener_name(self._node_id, self._slot),
            host=options.host or "",
            port=options.port,
            is_detached=True,
        )
        try:
            async with asyncio.timeout(ROUTES_WAIT_S):
                await has_routes.wait()
        except TimeoutError:
            pass  # it says 503 until they come
        await server.start(self._listener)
        self._http = server

    async def _start_grpc(self, router_set: RouterSet) -> str:
        # Here, as it imports grpc: 43 ms, and an optional package.
        from retinue.serve.proxy.grpc_server import GrpcServer

        self._grpc = GrpcServer(
            router_set,
            self._grpc_options,
            access_log=self._make_access_log(),
            measures=RequestMeasures("grpc"),
        )
        try:
            return await self._grpc.start()
        except BaseException:
            await self._close_grpc()
            raise

    async def _close_grpc(self) -> None:
        server, self._grpc = self._grpc, None
        if server is not None:
            await server.close()

    async def check_health(self) -> None:
        """Answers while the loop runs and the proxy serves. Raises RuntimeError if it does not."""
        if self._started is None:
            raise RuntimeError("the proxy has not started")

    async def drain(self) -> None:
        """Take no more connections; returns when the last request is answered, or after 30 s.

        The slot's sockets are given up: no successor comes, and whoever connected would wait in vain.
        """
        await asyncio.gather(self._drain_http(), self._drain_grpc())
        if self._listener is not None:
            name = listener_name(self._node_id, self._slot)
            await asyncio.to_thread(doors.release_listener, name)

    async def _drain_http(self) -> None:
        if self._http is not None:
            await self._http.drain(DRAIN_TIMEOUT_S)
            await self._http.close()
            self._http = None

    async def _drain_grpc(self) -> None:
        if self._grpc is not None:
            await self._grpc.drain(DRAIN_TIMEOUT_S)
            await self._close_grpc()


def _metrics_page() -> bytes:
    """The whole cluster's, as the admin server has it; this process's, if the cluster does not answer."""
    try:
        return find_cluster().metrics(METRICS_TIMEOUT_S).encode()
    except (ServerUnavailable, ConnectionError) as error:
        reason = " ".join(str(error).split())
        return f"# this proxy alone: {reason}\n{render_prometheus([snapshot()])}".encode()


def listener_name(node_id: str, slot: int) -> str:
    """The slot of the node under which a proxy's listening socket is kept."""
    return f"serve-http-{node_id}-{slot}"


def limits_of(options: HTTPOptions) -> Limits:
    return Limits(
        max_header_bytes=options.max_header_bytes,
        max_body_bytes=options.max_body_bytes or _ANY_SIZE,
        header_timeout_s=options.header_timeout_s or _FOREVER_S,
        body_timeout_s=options.body_timeout_s or _FOREVER_S,
        write_timeout_s=options.write_timeout_s or _FOREVER_S,
        keep_alive_s=float(options.keep_alive_timeout_s),
        max_connections=options.max_connections,
    )


def tls_of(options: HTTPOptions) -> Tls | None:
    if not options.ssl_certfile or not options.ssl_keyfile:
        return None
    return Tls(options.ssl_certfile, options.ssl_keyfile, options.ssl_keyfile_password, options.ssl_ca_certs)
