"""Calls of the controller from outside of its cluster: from the `serve` command and the admin server.

It needs no runtime: the controller's address is in the key-value table, and tools connect to its door. Lives
here: finding it, calling it, waiting while it is started anew. Does not: what the calls do (`controller`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from retinue.core.doors import DoorClosedError, DoorConnection
from retinue.core.doors.admin import AdminContext
from retinue.serve.controller.admin_door import ADMIN_DOOR, ScaleRequest
from retinue.serve.exceptions import RetinueServeException
from retinue.serve.messages import CONTROLLER_KEY, NAMESPACE, ControllerInfo, decode

logger = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT_S = 60.0  # for an answer, a controller that is started anew included
RETRY_S = 0.1


class ServeNotRunningError(RetinueServeException):
    """There is no controller on the cluster."""

    fault = "caller"
    is_retryable = True
    http_status = 404


class ControllerClient:
    """One cluster's controller, for one event loop. Close it, or use it as an async context.

    Methods raise ServeNotRunningError where serve does not run, TimeoutError if the controller does not
    answer within `timeout_s`, and what the controller raises.
    """

    def __init__(self, cluster: AdminContext, *, timeout_s: float = TIMEOUT_S) -> None:
        self.cluster = cluster
        self._timeout_s = timeout_s
        self._connection: DoorConnection | None = None

    async def details(self) -> bytes:
        """JSON of ServeInstanceDetails."""
        return await self._call("details", may_repeat=True)

    async def status(self) -> bytes:
        """JSON of ServeStatus."""
        return await self._call("status", may_repeat=True)

    async def changed(self, version: int) -> int:
        """The next version of the status; waits, for as long as it takes, while it is `version`."""
        body = msgspec.msgpack.encode(version)
        answer = await self._call("changed", body, may_repeat=True, timeout_s=None)
        return msgspec.msgpack.decode(answer, type=int)

    async def apply_config(self, config_json: bytes) -> None:
        await self._call("apply_config", config_json, may_repeat=True)

    async def delete(self, names: list[str]) -> None:
        await self._call("delete", msgspec.msgpack.encode(names), may_repeat=True)

    async def scale(self, app_name: str, deployment_name: str, num_replicas: int) -> None:
        request = ScaleRequest(app_name, deployment_name, num_replicas)
        await self._call("scale", msgspec.msgpack.encode(request), may_repeat=True)

    async def shutdown(self) -> None:
        """Returns when serve's processes are gone; at once where it does not run."""
        try:
            await self._call("shutdown", timeout_s=None)
        except ServeNotRunningError:
            return
        except DoorClosedError as error:
            if error.is_retryable:
                raise
            logger.debug("the controller ended before its answer came: %s", error)

    async def is_running(self) -> bool:
        return await self._find() is not None

    # --- connecting

    async def _call(
        self, method: str, body: bytes = b"", *, may_repeat: bool = False, timeout_s: float | None = -1.0
    ) -> bytes:
        """`may_repeat`: also when nobody knows whether it was executed."""
        limit_s = self._timeout_s if timeout_s == -1.0 else timeout_s
        async with asyncio.timeout(limit_s):
            while True:
                try:
                    connection = await self._connected()
                    return await connection.call(ADMIN_DOOR, method, body)
                except DoorClosedError as error:
                    self.close()
                    if not (error.is_retryable or may_repeat):
                        raise
                    logger.debug("the controller is away: %s", error)
                await asyncio.sleep(RETRY_S)

    async def _connected(self) -> DoorConnection:
        if self._connection is None or self._connection.is_closed:
            info = await self._find()
            if info is None:
                raise ServeNotRunningError(
                    "serve does not run on this cluster; `serve start` starts it, and so do "
                    "`serve run` and `serve deploy`"
                )
            self._connection = await self.cluster.connect(info.address)
        return self._connection

    async def _find(self) -> ControllerInfo | None:
        value = await asyncio.to_thread(self.cluster.get_value, NAMESPACE, CONTROLLER_KEY)
        return decode(ControllerInfo, value) if value else None

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()


class BlockingControllerClient:
    """As ControllerClient, for commands. Use it as a context."""

    def __init__(self, cluster: AdminContext, *, timeout_s: float = TIMEOUT_S) -> None:
        self.cluster = cluster
        self._client = ControllerClient(cluster, timeout_s=timeout_s)
        self._runner = asyncio.Runner()

    def run(self, call: Callable[[ControllerClient], Coroutine[Any, Any, T]]) -> T:
        """What `call` returns, once it is awaited. Ctrl-C cancels it."""
        return self._runner.run(call(self._client))

    def details(self) -> bytes:
        return self.run(lambda client: client.details())

    def status(self) -> bytes:
        return self.run(lambda client: client.status())

    def changed(self, version: int, *, timeout_s: float | None = None) -> int:
        """Also returns `version` itself, after `timeout_s`."""

        async def wait(client: ControllerClient) -> int:
            try:
                async with asyncio.timeout(timeout_s):
                    return await client.changed(version)
            except TimeoutError:
                return version

        return self.run(wait)

    def apply_config(self, config_json: bytes) -> None:
        self.run(lambda client: client.apply_config(config_json))

    def delete(self, names: list[str]) -> None:
        self.run(lambda client: client.delete(names))

    def shutdown(self) -> None:
        self.run(lambda client: client.shutdown())

    def is_running(self) -> bool:
        return self.run(lambda client: client.is_running())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async def close(client: ControllerClient) -> None:
            client.close()

        self.run(close)
        self._runner.close()
