"""The proxy's process: a detached actor on each node, for each of its slots.

Lives here: putting its parts together, starting and ending them. Does not: what they do; when proxies start
(`controller`).
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

from msgspec import Struct

from retinue.core import doors
from retinue.serve.access_log import AccessLog
from retinue.serve.config import HTTPOptions, gRPCOptions
from retinue.serve.proxy.measures import RequestMeasures
from retinue.serve.proxy.server import HttpServer, Limits, Tls
from retinue.serve.routing.process import RouterSet, use_this_loop
from retinue.util.metrics import render_prometheus, snapshot

DRAIN_TIMEOUT_S = 30.0
_FOREVER_S = 7 * 24 * 3600.0
_ANY_SIZE = 1 << 62


class ProxyStarted(Struct, frozen=True):
    """Where a proxy listens; "" for what it does not serve."""

    pid: int
    http_address: str
    grpc_address: str = ""
    log_file: str = ""


class ProxyActor:
    """Serves HTTP (and gRPC) on its slot of a node. `ready` starts it."""

    def __init__(self, node_id: str, slot: int, http_options_json: str, grpc_options_json: str) -> None:
        self._node_id = node_id
        self._slot = slot
        self._http_options = HTTPOptions.model_validate_json(http_options_json)
        self._grpc_options = gRPCOptions.model_validate_json(grpc_options_json)
        self._http: HttpServer | None = None
        self._listener: socket.socket | None = None
        self._starting = asyncio.Lock()
        self._started: ProxyStarted | None = None

    async def ready(self) -> ProxyStarted:
        """Start serving, once; returns when connections are accepted.

        Raises ListenerError where the port cannot be had, OSError and ssl.SSLError for certificates.
        """
        async with self._starting:
            if self._started is None:
                self._started = await self._start()
            return self._started

    async def _start(self) -> ProxyStarted:
        router_set = use_this_loop("proxy")
        address = log_file = ""
        if self._http_options.host is not None:
            log_file = await self._start_http(router_set)
            assert self._listener is not None
            host, port = self._listener.getsockname()[:2]
            scheme = "https" if self._http_options.ssl_certfile else "http"
            address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        return ProxyStarted(os.getpid(), address, "", log_file)

    async def _start_http(self, router_set: RouterSet) -> str:
        options = self._http_options
        log_file = Path(doors.session_dir()) / "logs" / "serve" / f"proxy_{self._slot}.log"
        log_file.parent.mkdir(parents=True, exist_ok=True)
        server = HttpServer(
            router_set,
            limits=limits_of(options),
            access_log=AccessLog(log_file.open("a", encoding="utf-8"), is_json=False),
            measures=RequestMeasures(),
            metrics_page=lambda: render_prometheus([snapshot()]).encode(),
            root_path=options.root_path,
            request_timeout_s=options.request_timeout_s,
            tls=tls_of(options),
        )
        router_set.on_routes(server.use_routes)
        self._listener = await asyncio.to_thread(
            doors.open_listener,
            listener_name(self._node_id, self._slot),
            host=options.host or "",
            port=options.port,
            is_detached=True,
        )
        await server.start(self._listener)
        self._http = server
        return str(log_file)

    async def check_health(self) -> None:
        """Answers while the loop runs and the proxy serves. Raises RuntimeError if it does not."""
        if self._started is None:
            raise RuntimeError("the proxy has not started")

    async def drain(self) -> None:
        """Take no more connections; returns when the last request is answered, or after 30 s."""
        if self._http is not None:
            await self._http.drain(DRAIN_TIMEOUT_S)
            await self._http.close()
            self._http = None


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
    )


def tls_of(options: HTTPOptions) -> Tls | None:
    if not options.ssl_certfile or not options.ssl_keyfile:
        return None
    return Tls(options.ssl_certfile, options.ssl_keyfile, options.ssl_keyfile_password, options.ssl_ca_certs)
